"""`his2lip benchmark` and `report`: every model on every dataset, in MLflow and on the leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from his2lip.cli.benchmark_record import record_benchmark
from his2lip.cli.console import ProgressBar, percent, say, table, wide_table
from his2lip.cli.estimates import show_grid_estimate
from his2lip.cli.jobs import Address, submit_if_asked
from his2lip.cli.options import (
    ConfigFile,
    Options,
    Overrides,
    Schema,
    check_outputs,
    refuse_unused,
    split_names,
)
from his2lip.cli.registry import command
from his2lip.errors import ConfigError, RunError
from his2lip.resources import STORAGE, find

if TYPE_CHECKING:
    from his2lip.evaluation import (
        BenchmarkConfig,
        CellFailure,
        CellResult,
        GridResult,
        ImageProgress,
        ModelEntry,
        TaskCell,
        Verified,
    )

EXPERIMENT = "his2lip-benchmark"
IMAGES = "images"  # after --verify
_CURVE = "alpha.csv"  # of blended models, among the pages
BOARD = f"{STORAGE}/benchmark/zero-shot"

Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A row of the board, a model or baseline:NAME: show the difference of every model from it, with "
        "intervals. Default: `reference` of the config.",
    ),
]


@command("benchmark")
def benchmark(
    config: ConfigFile,
    overrides: Overrides = None,
    models: Annotated[
        str | None, typer.Option(help="Comma-separated models that replace those of the file.")
    ] = None,
    datasets: Annotated[
        str | None, typer.Option(help="Comma-separated datasets, a subset of those of the file.")
    ] = None,
    baseline: Baseline = None,
    address: Address = None,
    options: Options = False,
    schema: Schema = False,
) -> None:
    """Score every model on every dataset; grid cells that are finished are not scored again.

    First an estimate is printed: grid cells, images that are not in the cache of embeddings, time and disk by
    earlier benchmarks with the same cache, and the price on a cluster. The exit code is 1 where a grid cell
    failed; all others are scored first.
    """
    submit_if_asked(address)
    from his2lip.config import load, parse_overrides
    from his2lip.evaluation import BenchmarkConfig

    chosen = parse_overrides(overrides or [])
    replaced = split_names(models)
    if replaced is not None:
        chosen["models"] = replaced
    if baseline is not None:
        chosen["reference"] = baseline
    asked = load(BenchmarkConfig, find(config), chosen)
    if run_benchmark(asked, datasets=split_names(datasets)).failed:
        raise typer.Exit(1)


@command("report")
def report(
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BENCHMARK]...",
            help=f"The folder of a benchmark, below its storage. Default: {BOARD}. "
            "Several are merged into --out.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the pages. Default: `report` in the benchmark's folder. Of several benchmarks: "
            "folder of the merged board."
        ),
    ] = None,
    baseline: Baseline = None,
    samples: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also write the predictions of each grid cell as JSON lines."),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Write nothing: compute the board from the stored predictions, and compare it to the byte. "
            "`--verify images` instead embeds a sample of the images again and scores every row again.",
        ),
    ] = False,
) -> None:
    """Write the leaderboard as HTML, CSV, Markdown and LaTeX, merge several, or verify one.

    A merged board has the grid cells of all benchmarks; those that were scored from other data, prompts,
    weights or code are refused by name.

    With --verify, what is different is named by its file, row and column, and the exit code is 1.
    """
    from his2lip.files import at_hand

    names = list(folders or [])
    from_images = verify and IMAGES in names  # a folder of that name is ./images
    if from_images:
        names.remove(IMAGES)
    places = names or [BOARD]
    if verify:
        refuse_unused({"--baseline": baseline, "--samples": samples}, "writes, and --verify writes nothing")
        if from_images:
            refuse_unused({"--out": out}, "names pages, and `--verify images` looks at images only")
        for place in places:
            with at_hand(place) as folder:
                verify_report(folder, out, from_images=from_images)
        return
    check_outputs({"--out": out, "--samples": samples}, folders=True)
    place = places[0]
    if len(places) > 1:
        place, out = str(merge_reports(places, out)), None
    with at_hand(place) as folder:
        page = write_report(folder, out, reference=baseline)
        say(f"leaderboard: {f'{place}/report/{page.name}' if out is None else page}")
        if samples is not None:
            from his2lip.evaluation import write_samples

            say(f"samples: {len(write_samples(folder, samples))} files in {samples}")


def merge_reports(folders: Sequence[str], out: Path | None) -> Path:
    """The folder of the board that the boards in `folders` make together."""
    from his2lip.evaluation import merge_boards

    if out is None:
        what = "several boards are merged into a folder of their own"
        raise ConfigError(what, key="--out", fix="name it with --out")
    merged = merge_boards(list(folders), str(out))
    for note in merged.notes:
        say(f"note: {note}")
    say(f"merged: {merged.rows} grid cells of {len(folders)} boards")
    return out


def verify_report(folder: Path, out: Path | None = None, *, from_images: bool = False) -> None:
    """Prints what of a board does not follow from its stored predictions; exits with 1 where there is any.

    out          the folder of its pages, which are compared too; default: `report`, where there is one
    from_images  compares with the images and models instead
    """
    from his2lip.evaluation import verify_board, verify_images
    from his2lip.report import verify_pages

    if from_images:
        _show_verified(verify_images(str(folder)))
        return

    found = verify_board(str(folder))
    place = out or folder / "report"
    if not found.mismatches and place.is_dir():
        pages = verify_pages(folder, place)
        written = [*found.files, *(f"{place.name}/{name}" for name in pages.files)]
        notes = [*found.notes, *pages.notes]
        found = replace(found, files=written, mismatches=pages.mismatches, notes=notes)
    _show_verified(found)


def _show_verified(found: Verified) -> None:
    """What is different, and how much was compared; exits with 1 where anything is different."""
    for mismatch in found.mismatches:
        say(f"different: {mismatch}")
    for note in found.notes:
        say(f"note: {note}")
    if found.mismatches:
        say(f"{len(found.mismatches)} differences")
        raise typer.Exit(1)
    say(f"the same: {len(found.cells)} grid cells, {', '.join(found.files)}")


def run_benchmark(config: BenchmarkConfig, *, datasets: list[str] | None = None) -> GridResult:
    """Runs the grid, records it in MLflow and writes its pages; failures are printed, not raised.

    With `datasets`, only these are scored, and the leaderboard keeps its rows of the others. Raises RunError
    where another command runs a benchmark in the same folder; an object store has no locks.
    """
    from his2lip.evaluation import check_inputs
    from his2lip.files import check_writable, locked

    check_writable(config.folder, fix="set storage to a folder that you can write to")
    check_writable(config.cache, fix="set cache to a folder that you can write to")
    check_inputs(config, datasets=datasets)
    if "://" in config.folder:
        return _run_benchmark(config, datasets)
    what, fix = "another command is running this benchmark", "wait for it, or give this one another name"
    busy = RunError(what, where=config.folder, key="name", fix=fix)
    with locked(Path(config.folder, ".lock"), busy=busy):
        return _run_benchmark(config, datasets)


def _run_benchmark(config: BenchmarkConfig, datasets: list[str] | None) -> GridResult:
    from his2lip.config import digest, recorded
    from his2lip.evaluation import run_grid
    from his2lip.files import at_hand
    from his2lip.models import is_registered
    from his2lip.runtime import start_ray
    from his2lip.tracking import RUN_ID, Tracker

    tracker = Tracker.open(needed=any(is_registered(model.path) for model in config.models))
    config = _with_local_models(config)
    _show_licences(config)
    start_ray()
    tags = {RUN_ID: digest(config)}
    beside = f"{config.storage.rstrip('/')}/benchmark"
    with tracker.run(EXPERIMENT, config.name, recorded(config), tags=tags, beside=beside) as run:
        with ProgressBar(config.name) as bar:
            cells = "0 grid cells"

            def on_cell(cell: CellResult | TaskCell | CellFailure, done: int, total: int) -> None:
                nonlocal cells
                cells = f"{done} of {total} grid cells"
                bar.update(f"{cells}, {cell.model} on {cell.dataset}", done=done, total=total)

            def on_images(now: ImageProgress) -> None:
                bar.update(f"{cells}, {now.model} on {now.dataset}: {now.done:,} of {now.total:,} images")

            result = run_grid(
                config,
                datasets=datasets,
                on_cell=on_cell,
                on_images=on_images,
                on_estimate=show_grid_estimate,
            )
        with at_hand(config.folder) as folder:
            record_benchmark(run, config, result, folder)
            page = write_report(folder)
            run.artifact(page)
            if (order := page.with_name("prompt_order.csv")).is_file():
                run.artifact(order)
            has_curve = page.with_name(_CURVE).is_file()
    _show_result(config, result, has_curve=has_curve)
    return result


def write_report(folder: Path, out: Path | None = None, *, reference: str | None = None) -> Path:
    """Writes HTML, CSV, Markdown and LaTeX from the folder of a benchmark; the path of the HTML page.

    reference  the row that differences are from; None: that of the benchmark
    """
    from his2lip.report import write_pages

    board = folder / "leaderboard.csv"
    if not board.is_file():
        what = "no benchmark has been run here (there is no leaderboard.csv)"
        raise ConfigError(what, where=folder, fix="his2lip benchmark benchmarks/zero_shot.yaml")
    return write_pages(board, out or folder / "report", reference=reference)


def _with_local_models(config: BenchmarkConfig) -> BenchmarkConfig:
    """The same benchmark with registered models as local folders, since tasks do not read the MLflow store.

    The rows keep the models' names.
    """
    from his2lip.models import is_elsewhere, local_name

    def place(name: str) -> str:
        return local_name(name, config.storage) if is_elsewhere(name) else name

    def local(entry: ModelEntry) -> ModelEntry:
        blend = entry.blend
        if blend is not None:
            blend = blend.model_copy(update={"base": place(blend.base)})
        return entry.model_copy(update={"path": place(entry.path), "blend": blend})

    return config.model_copy(update={"models": [local(entry) for entry in config.models]})


def _show_licences(config: BenchmarkConfig) -> None:
    """Prints the licence of every model whose weights do not allow commercial use."""
    from his2lip.models import BACKBONES

    known = {m.path: BACKBONES[m.path] for m in config.models if m.path in BACKBONES}
    for backbone in known.values():
        if backbone.commercial is False:
            say(f"{backbone.name}: licence {backbone.licence} ({backbone.weights})")


def _show_result(config: BenchmarkConfig, result: GridResult, *, has_curve: bool) -> None:
    """The figures of every model on every dataset, the failures, and where the files are."""
    if result.cells:
        _show_figures(result)
    _show_tasks(result)
    failed: dict[tuple[str, str, str], list[str]] = {}  # what all models lack, such as captions, is told once
    for failure in result.failed:
        failed.setdefault((failure.dataset, failure.protocol, failure.reason), []).append(failure.model)
    for (dataset, protocol, reason), models in failed.items():
        say(f"failed: {', '.join(models)} on {dataset} ({protocol}): {reason}")
    for what in result.damaged:
        say(f"damaged, made again: {what}")
    finished = len(result.cells) + len(result.tasks) - result.ran
    say(f"{result.ran} grid cells scored now, {finished} were finished; "
        f"{result.counts.images} images embedded")  # fmt: skip
    if any(model.blend is not None for model in config.models):
        none = "none; it needs a dataset that the tuned model was trained on, and one that it was not"
        say(f"curve over alpha: {f'{config.folder}/report/{_CURVE}' if has_curve else none}")
    say(f"leaderboard: {config.folder}/report/index.html")


def _show_figures(result: GridResult) -> None:
    """Macro F1 of every model on every dataset, and what to know about these figures."""
    from his2lip.report import with_pooled_draws

    cells = with_pooled_draws(result.cells)
    columns = list(dict.fromkeys((c.dataset, c.protocol) for c in cells))
    scores = {(c.model, c.dataset, c.protocol): _with_interval(c) for c in cells}
    models = list(dict.fromkeys(c.model for c in cells))
    on = " on select splits" if any(c.role == "select" for c in result.cells) else ""
    say(f"macro F1, percent{on}" + (" (generated twins)" if any(c.generated for c in result.cells) else ""))
    rows = [[m, *(scores.get((m, *column), "–") for column in columns)] for m in models]
    several = len({protocol for _, protocol in columns}) > 1
    wide_table(["model", *(f"{d} {p}" if several else d for d, p in columns)], rows)
    for c in {(c.dataset, c.protocol): c for c in result.cells}.values():
        say(f"{c.dataset} ({c.protocol}): {c.size}{_resolution(c)}")
    _show_differences(result)
    empty = {(c.dataset, c.protocol): c.empty_classes for c in result.cells}
    for (dataset, protocol), classes in empty.items():
        if classes:
            say(f"{dataset} ({protocol}): no unit of {', '.join(classes)}; counts as 0 in macro F1")
    repeated = {(c.dataset, c.protocol): c.repeated_note for c in result.cells}
    for (dataset, protocol), note in repeated.items():
        if note is not None:
            say(f"{dataset} ({protocol}): {note}")
    for cell in result.cells:
        for note in filter(None, (cell.overlap_note, cell.cut_note)):
            say(f"{cell.model} on {cell.dataset} ({cell.protocol}): {note}")
    _show_prompt_order(result)
    _show_seen(result)


def _show_tasks(result: GridResult) -> None:
    """The figures of every task, in one table per dataset."""
    for task, dataset in dict.fromkeys((cell.task, cell.dataset) for cell in result.tasks):
        own = [cell for cell in result.tasks if (cell.task, cell.dataset) == (task, dataset)]
        names = dict.fromkeys(name for cell in own for row in cell.rows for name in row.figures)
        shown = [name for name in names if not name.endswith("_chance")]
        note = " (generated twin)" if own[0].generated else ""
        ranks = any(figure.unit == "rank" for row in own[0].rows for figure in row.figures.values())
        say(f"{task} on {dataset}{note}: percent{', ranks from 1' if ranks else ''}")
        rows = [
            [cell.model, row.name, row.size, *(str(row.figures.get(name, "–")) for name in shown)]
            for cell in own
            for row in cell.rows
        ]
        wide_table(["model", ", ".join(own[0].rows[0].setting), "of", *shown], rows)
        for cell in own:
            if cell.caveat is not None:
                say(f"{cell.model} on {dataset} ({task}): {cell.caveat}")


def _with_interval(cell: CellResult) -> str:
    """Macro F1 in percent, with the limits of its interval below it."""
    interval = cell.interval("macro_f1")
    limits = "" if interval is None else "\n{:.1f} to {:.1f}".format(*(100 * limit for limit in interval))
    return f"{percent(cell.macro_f1)}{limits}"


def _resolution(cell: CellResult) -> str:
    """Why a dataset has no intervals, or which difference of macro F1 it can show."""
    if cell.no_interval:
        return f"; no intervals: {cell.no_interval}"
    found = cell.compared.get("macro_f1")
    if found is None or found.detectable is None:
        return ""
    if found.detectable >= 1:
        return f"; too few {cell.cluster_kind}s to show any difference of macro F1"
    return f"; shows differences of macro F1 from {100 * found.detectable:.1f} points on"


def _show_differences(result: GridResult) -> None:
    """The difference of every model from the reference in macro F1, where there is one."""
    rows = [
        (
            cell.model,
            f"{cell.dataset} ({cell.protocol})",
            f"{100 * found.difference:+.2f}",
            ""
            if (own := found.difference_interval) is None
            else "{:+.1f} to {:+.1f}".format(*(100 * x for x in own)),
            "" if cell.margin is None else "yes" if found.non_inferior else "not shown",
        )
        for cell in result.cells
        if (found := cell.compared.get("macro_f1")) is not None and found.difference is not None
    ]
    if rows:
        say(f"macro F1: difference from {result.cells[0].reference}, points (95 % for all pairs together)")
        table(("model", "dataset", "difference", "interval", "no loss"), rows)


def _show_prompt_order(result: GridResult) -> None:
    """How many pairs of models change places with the prompts."""
    from his2lip.evaluation import STABLE

    shares = [share for cell in result.cells for share in cell.prompt_order.values()]
    changed = sum(share < STABLE for share in shares)
    if changed:  # each pair is in the records of both models
        say(f"order depends on prompts: {changed // 2} of {len(shares) // 2} pairs of models on a dataset "
            "(report/prompt_order.csv)")  # fmt: skip


def _show_seen(result: GridResult) -> None:
    """The share of the tissue that models saw, smallest first, where it is not all; and what limits it."""
    seen: dict[tuple[str, str], list[float]] = {}
    notes: dict[tuple[str, str], list[str]] = {}
    for cell in result.cells:
        place = (cell.dataset, cell.protocol)
        if cell.coverage is not None:
            seen.setdefault(place, []).append(cell.coverage)
        if cell.seen_note:
            notes.setdefault((f"{place[0]} ({place[1]})", cell.seen_note), []).append(cell.model)
    rows = [
        (dataset, protocol, percent(min(shares)), percent(max(shares)))
        for (dataset, protocol), shares in sorted(seen.items(), key=lambda item: min(item[1]))
        if min(shares) < 1
    ]
    if rows:
        table(["tissue seen, %", "protocol", "least", "most"], rows)
    for (column, note), models in notes.items():
        say(f"{column}: {note} ({', '.join(models)})")
