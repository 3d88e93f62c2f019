"""`his2lip captions`: the caption workflow of a project."""

from __future__ import annotations

import getpass
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from his2lip.cli.console import ProgressBar, percent, say, table
from his2lip.cli.options import Cache, Model, check_outputs, refuse_unused, write_csv
from his2lip.cli.registry import command
from his2lip.cli.served_page import check_port, open_page
from his2lip.errors import ConfigError, DatasetError, did_you_mean
from his2lip.resources import CACHE

if TYPE_CHECKING:
    from his2lip.captioning import Acceptance, Price, Project, Report, State

_SHOWN = 10  # unfinished seeds that are named
ProjectName = Annotated[
    str, typer.Argument(metavar="PROJECT", help="Name of a project in runs/captions, or its folder.")
]
ErrorRate = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        max=0.5,
        help="Share of wrong lines above which a batch should not pass. Default: its plan's, else 0.05.",
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        min=0.5,
        max=0.999,
        help="Probability with which a batch of more errors fails. Default: its plan's, else 0.95.",
    ),
]
Allowed = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Wrong lines in the part that is read at which it still passes. Default: its plan's, else 0.",
    ),
]


@command("captions draft")
def draft(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="A name for it, or its new folder.")],
    shards: Annotated[list[str], typer.Option(help="A folder or URI of shards. May be repeated.")],
    model: Model,
    split: Annotated[
        list[str] | None,
        typer.Option(help="A split of role train or select. May be repeated. Default: all of role train."),
    ] = None,
    root: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of the published files, whose slides show more around a patch. One per --shards."
        ),
    ] = None,
    per_key: Annotated[int, typer.Option(min=4, help="Representative patches of a key.")] = 4,
    any_band: Annotated[bool, typer.Option("--any-band", help="One key for all staining bands.")] = False,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Seed of the choice of patches and of the rewordings that are read."),
    ] = 0,
    cache: Cache = CACHE,
) -> None:
    """Choose what to caption: one seed for each tissue type, biomarker and staining band.

    Each key gets representative patches of several cases, with up to 200 µm of tissue around them and a
    scale bar, and a sentence that is prefilled from the measured staining and the biomarker. Keys that cover
    most patches come first. Embeddings and stained areas are cached.
    """
    from his2lip.captioning import SECONDS_PER_SEED, Source, draft_project, project_folder
    from his2lip.data.shards import open_shards
    from his2lip.models import load_model

    folders = list(root or [])
    if folders and len(folders) != len(shards):
        fix = "give one --root for each --shards, or none"
        raise ConfigError("the numbers of --root and --shards differ", key="--root", fix=fix)
    if lost := next((folder for folder in folders if not folder.is_dir()), None):
        raise ConfigError("there is no such folder", where=lost, key="--root", fix="check the path")
    opened = [open_shards(uri) for uri in shards]
    if split and (absent := [name for name in split if all(name not in o.splits for o in opened)]):
        known = sorted({name for o in opened for name in o.splits})
        fix = did_you_mean(absent[0], known)
        raise ConfigError(f"no dataset has the split '{absent[0]}'", key="--split", fix=fix)
    sources = [
        Source(
            shards=one,
            splits=[name for name in split if name in one.splits] if split else None,
            root=folders[i] if folders else None,
        )
        for i, one in enumerate(opened)
        if not split or any(name in one.splits for name in split)
    ]
    check_outputs({"PROJECT": project_folder(project)}, folders=True)
    with ProgressBar("drafting") as bar:
        drafted = draft_project(
            project_folder(project),
            sources,
            load_model(model),
            cache=cache,
            bands=not any_band,
            per_key=per_key,
            seed=seed,
            progress=lambda what, done, total: bar.update(
                f"{what}: {done:,} of {total:,}", done=done, total=total
            ),
        )
    keys, covered = drafted.project.keys, 0
    rows: list[tuple[object, ...]] = []
    for number, key in enumerate(keys, start=1):
        covered += key.patches
        minutes = number * SECONDS_PER_SEED / 60
        rows.append((number, key.title, key.patches, percent(covered / drafted.patches), f"{minutes:.0f}"))
    table(("", "key", "patches", "covered, %", "minutes"), rows)
    total = len(keys) * SECONDS_PER_SEED / 60
    counts = f"{len(keys)} keys cover {drafted.covered:,} of {drafted.patches:,} patches"
    say(f"{counts}; {total:.0f} minutes of review")
    for reason, count in sorted(drafted.left_out.items()):
        say(f"{count:,} patches have no key: {reason}")
    if folders and not any(picture.context_um for key in keys for picture in key.pictures):
        say("note: no picture shows more than its patch: --root has no slide that a patch was cut from")
    say(f"written to {drafted.project.folder}; next: his2lip captions review {project}")


@command("captions reword")
def reword(
    project: ProjectName,
    count: Annotated[int, typer.Option(min=1, max=200, help="Rewordings of each approved seed.")] = 10,
    model: Annotated[
        str | None, typer.Option(help="The chat model's name at the endpoint. Default: OPENAI_MODEL.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="The endpoint's base URL. Default: OPENAI_BASE_URL, else OpenAI's.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="The model to train: its text tower limits the length of captions.")
    ] = "clip",
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at a time.")] = 4,
    per_minute: Annotated[float, typer.Option(min=0.1, help="Requests per minute at most.")] = 60.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 120.0,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Temperature of sampling. Default: the endpoint's.")
    ] = None,
    price_in: Annotated[
        float | None, typer.Option(min=0, help="Price of a million tokens sent, in your currency.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(min=0, help="Price of a million tokens received.")
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(min=0, help="Start no request that would cost more in all. Needs both prices."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the estimate.")] = False,
) -> None:
    """Reword each approved seed through an OpenAI-compatible endpoint, and validate the answers.

    Set OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL: a hosted model, or one under vLLM. Only text is
    sent, never an image. What validation refuses is kept aside with its reason. The same command resumes.
    """
    from his2lip.captioning import Price, Spending, endpoint_from, plan_rewordings, reword_seeds
    from his2lip.models import load_tokenizer

    if max_cost is not None and (price_in is None or price_out is None):
        what, fix = "a limit on the cost needs prices", "give --price-in and --price-out"
        raise ConfigError(what, key="--max-cost", fix=fix)
    price = Price(price_in, price_out)
    found = _open(project)
    todo = plan_rewordings(found, count)
    missing = sum(task.missing for task in todo.tasks)
    say(f"{todo.wanted - missing:,} of {todo.wanted:,} rewordings are there; {missing:,} to ask for")
    if not missing:
        return
    say(f"estimate: {_tokens(todo.tokens_in, todo.tokens_out, price)}, if nothing is refused")
    say(f"at most about: {_tokens(todo.most_in, todo.most_out, price)}, if most is refused")
    if dry_run:
        return
    endpoint = endpoint_from(
        url=base_url,
        model=model,
        concurrency=concurrency,
        per_minute=per_minute,
        timeout_s=timeout,
        temperature=temperature,
    )
    lengths = load_tokenizer(backbone)

    def show_use(report: Report) -> None:
        say(f"used: {_tokens(report.tokens_in, report.tokens_out, price)}, in {report.requests:,} requests")
        say(f"batch {report.batch}: {report.passed:,} passed, {report.refused.total():,} kept aside")
        for check, number in report.refused.most_common():
            say(f"  {number:,} for {check}")

    with ProgressBar("rewording") as bar:
        counter = bar.counter("rewordings")
        spending = Spending(price, max_cost)
        report = reword_seeds(
            found, todo, endpoint, lengths, spending=spending, progress=counter, on_end=show_use
        )
    if report.unfinished:
        for key, why in list(report.unfinished.items())[:_SHOWN]:
            say(f"unfinished: {key}: {why}")
        say(f"{len(report.unfinished):,} seeds lack rewordings; the same command asks for them again")
        raise typer.Exit(1)
    say(f"next: his2lip captions review {project}")


def _tokens(sent: int, received: int, price: Price) -> str:
    cost = price.of(sent, received)
    told = f"{sent:,} tokens sent, {received:,} received"
    return f"{told}; cost {cost:,.2f}" if cost is not None else f"{told}; price unknown"


@command("captions review")
def review(
    project: ProjectName,
    reviewer: Annotated[
        str | None, typer.Option(help="Name of the reviewer's log. Default: the user name.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port of the page.")] = 8300,
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen on. If other machines can reach it, the page needs a token, which is "
            "printed."
        ),
    ] = "127.0.0.1",
    keys: Annotated[Path | None, typer.Option(help="A YAML file of other keys, such as `accept: j`.")] = None,
    error_rate: ErrorRate = None,
    confidence: Confidence = None,
    allowed: Allowed = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the default browser.")] = True,
) -> None:
    """Open the page on which a pathologist accepts, revises or rejects seeds and sampled rewordings.

    Each decision is on the disk before the next item is shown. Stop the page with Ctrl-C; the same command
    continues.
    """
    from his2lip.captioning import LOOPBACK, Review, read_shortcuts, serve

    found = _open(project)
    page = Review(
        found,
        _reviewer(reviewer),
        _acceptance(found, error_rate=error_rate, confidence=confidence, allowed=allowed),
        read_shortcuts(keys),
    )
    for notice in found.repair():
        say(notice)
    token = None if host in LOOPBACK else secrets.token_urlsafe(24)
    check_port(port, host)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/" + (f"?token={token}" if token else "")

    def ready() -> None:
        typer.echo(f"review of {found.folder} by {page.reviewer} on {address}; stop it with Ctrl-C")
        if browser:
            open_page(address)

    serve(page, host=host, port=port, token=token, ready=ready)


@command("captions merge")
def merge(
    project: ProjectName,
    other: Annotated[
        list[str],
        typer.Argument(
            metavar="OTHER...",
            help="Other copies of the project, or JSON files that Label Studio exported from its tasks.",
        ),
    ],
    reviewer: Annotated[
        str | None, typer.Option(help="Who annotated in Label Studio. Needed for its JSON files.")
    ] = None,
    error_rate: ErrorRate = None,
    confidence: Confidence = None,
    allowed: Allowed = None,
) -> None:
    """Add the decisions of other copies of a project, and report where reviewers disagree.

    An item on which they disagree is not exported; a decision about it on the page settles it. A JSON file
    has the annotations of one person; its decisions about a new batch fix the plan of that batch.
    """
    from itertools import combinations

    from his2lip.captioning import between, read_annotations

    annotated = [place for place in other if place.endswith(".json")]
    if not annotated:
        plans = {"--error-rate": error_rate, "--confidence": confidence, "--allowed": allowed}
        what = "is for JSON files of Label Studio; the decisions of a copy have their reviewer and their plan"
        refuse_unused({"--reviewer": reviewer, **plans}, what)
    if annotated and (reviewer is None or len(annotated) > 1):
        what = "each JSON file of Label Studio is merged under the name of its reviewer"
        fix = "merge one such file at a time, with --reviewer NAME"
        raise ConfigError(what, where=annotated[-1], key="--reviewer", fix=fix)
    found = _open(project)
    acceptance = _acceptance(found, error_rate=error_rate, confidence=confidence, allowed=allowed)
    for place in other:
        if place in annotated:
            outcome = read_annotations(found, Path(place), reviewer or "", acceptance)
            told = ", ".join(f"{count} {what}" for what, count in outcome.items())
            say(f"{place}: tasks {told or 'none'}")
        else:
            decisions, variants = found.absorb(_open(place))
            say(f"{place}: {decisions} decisions and {variants} rewordings added")
    state = found.refresh()
    rows = []
    for one, two in combinations(found.reviewers, 2):
        agreement = between(state, one, two)
        say(str(agreement))
        for item, first, second in agreement.disagreeing:
            text = state.items[item].shown
            rows.append((item, f"{one}: {first}", f"{two}: {second}", state.items[item].status, text))
    _say_repeats(found)
    if rows:
        table(("item", "one", "other", "status", "caption"), rows)
    disputed = sum(item.status == "disputed" for item in state.items.values())
    say(f"{disputed} items are disputed; they are not exported until someone decides about them on the page")


@command("captions export")
def export(
    project: ProjectName,
    out: Annotated[Path, typer.Option(help="The file to write (.json), or the folder of --format released.")],
    format: Annotated[
        Literal["bank", "released", "label-studio"],
        typer.Option(
            help="`bank`: what training reads; `released`: TISSUE/BIOMARKER.txt, without staining bands; "
            "`label-studio`: tasks to review there."
        ),
    ] = "bank",
    error_rate: ErrorRate = None,
    confidence: Confidence = None,
    allowed: Allowed = None,
) -> None:
    """Write the approved captions, each with its status and where it comes from.

    A rewording that nobody read is written only where its batch passed, and is called passed by sampling.
    """
    from his2lip.captioning import batches, captions, project_folder, to_bank, write_folder, write_tasks

    folder = project_folder(project)
    own = [folder / "project.json", folder / "keys.json", *folder.glob("*/*.jsonl")]
    check_outputs({"--out": out}, folders=format == "released", inputs=own)
    if format == "label-studio" and out.suffix == ".xml":
        what, fix = "the labelling configuration gets this name", "give the tasks' path, such as tasks.json"
        raise ConfigError(what, where=out, key="--out", fix=fix)
    found = _open(project)
    state = found.refresh()
    if format == "label-studio":
        plans = {"--error-rate": error_rate, "--confidence": confidence, "--allowed": allowed}
        refuse_unused(plans, "is the plan of a batch, and tasks are written whatever it is")
        items = [item for item in state.items.values() if state.is_current(item)]
        beside = write_tasks(items, out)
        say(f"{len(items)} tasks: {out}; their labelling configuration: {beside}")
        return
    _check_plans(state, error_rate=error_rate, confidence=confidence, allowed=allowed)
    acceptance = _acceptance(found, error_rate=error_rate, confidence=confidence, allowed=allowed)
    sampled = batches(state, found.seed, acceptance)
    standing = captions(state, sampled)
    if not standing.lines:
        fix = f"review them first: his2lip captions review {project}"
        raise DatasetError(
            "no caption of this project is approved", where=found.folder, key="captions", fix=fix
        )
    if format == "released":
        unplaced = write_folder(standing.lines, out)
        rows = [
            (k.tissue, k.biomarker, k.staining, line.text, *line.origin)
            for line in standing.lines
            if (k := line.key) and line not in unplaced
        ]
        columns = ("tissue", "biomarker", "staining", "caption", "status", "source")
        write_csv(out.parent / f"{out.name}.origins.csv", columns, rows)
        if unplaced:
            say(f"{len(unplaced)} captions without a tissue type or biomarker have no place in this layout")
    else:
        bank = to_bank(standing.lines)
        bank.save(out)
        say(f"digest of the bank, which runs record: {bank.digest}")
    for batch in sampled:
        say(str(batch))
    _say_repeats(found)
    for item in state.seeds:
        if item.status == "wrong label":
            told = f"{item.key.patches:,} patches of {item.key.title}, whose label the reviewer calls wrong"
            say(f"{told}, may still be trained on with templates; correct or leave out their labels")
    say(str(standing))
    say(f"captions: {out}")


def _say_repeats(project: Project) -> None:
    """Prints each reviewer's agreement with himself or herself, where items were shown again."""
    from his2lip.captioning import with_oneself

    state = project.refresh()
    for name in project.reviewers:
        if (again := with_oneself(state, name)).n:
            say(f"blind repeats: {again}")


def _open(name: str) -> Project:
    from his2lip.captioning import Project, project_folder

    return Project.open(project_folder(name))


def _acceptance(project: Project, **given: float | None) -> Acceptance:
    """The plan of batches of which nothing was decided yet.

    Raises ConfigError for options that would change the plan of another batch and concern no new one.
    """
    from his2lip.captioning import Acceptance

    state = project.refresh()
    options = {name: value for name, value in given.items() if value is not None}
    if {item.batch for item in state.variants} <= set(state.plans):
        _check_plans(state, **given)
    return Acceptance.model_validate(options)


def _check_plans(state: State, **given: float | None) -> None:
    """Raises ConfigError for options that differ from the plan of a batch of which a line was decided."""
    for batch, plan in state.plans.items():
        for name, value in given.items():
            if value is not None and value != getattr(plan, name):
                what = f"the plan of batch {batch} was fixed by the first decision about it: {plan}"
                fix = "leave out --error-rate, --confidence and --allowed; a new batch may have another plan"
                raise ConfigError(what, key=f"--{name.replace('_', '-')}", fix=fix)


def _reviewer(name: str | None) -> str:
    """The name of the log, which becomes a file's."""
    if name is not None:
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        what, fix = "this machine does not know your user name", "give --reviewer"
        raise ConfigError(what, key="--reviewer", fix=fix) from None
