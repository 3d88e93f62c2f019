"""`his2lip data list, prepare, check, synthesize`: dataset cards, and shards of images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from his2lip.cli.console import ProgressBar, say, table
from his2lip.cli.options import check_outputs, split_names
from his2lip.cli.registry import command
from his2lip.errors import ConfigError, DatasetError, first_line

if TYPE_CHECKING:
    from his2lip.data.cards import Card
    from his2lip.data.check import ImageStats
    from his2lip.data.prepare import PrepareReport
    from his2lip.data.shards import DatasetInfo

_SHOWN_FILES = 10  # quarantined files that are printed; all of them are in dataset.json


@command("data list")
def list_datasets() -> None:
    """List the dataset cards: content, licence and protocols of each."""
    from his2lip.data.cards import list_cards, load_card

    rows = []
    for name in list_cards():
        card = load_card(name)
        units = "patches" if card.published.unit == "patch" else f"{card.published.unit}s"
        size = f"{card.published.images:,} {units}" if card.published.images else "unknown"
        rows.append((name, ", ".join(card.organ), size, card.licence.name, ", ".join(card.protocols)))
    table(("card", "organ", "published size", "licence", "protocols"), rows)


@command("data prepare")
def prepare_dataset(
    card: Annotated[str, typer.Argument(help="A dataset card's name or file, or `captions`.")],
    root: Annotated[
        Path,
        typer.Option(help="The published dataset: its folder, a folder of its archives, or one archive."),
    ],
    out: Annotated[str, typer.Option(help="Where the shards go: a folder or an object-store URI.")],
    view: Annotated[
        str | None,
        typer.Option(
            help="Store derived patches: squash (the whole image, resized), centre (the largest square in "
            "the middle) or tiles (squares on tissue), such as 'squash(size=224, codec=jpeg)', 'centre' or "
            "'tiles(size=224, mpp=0.5)'. Options: size, codec (png or jpeg); of tiles only: mpp, max_tiles, "
            "tissue (least share of it)."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Read only this number of its files, spread over the dataset.")
    ] = None,
    unpack_to: Annotated[
        Path | None, typer.Option(help="Where archives are unpacked. Default: ROOT.unpacked.")
    ] = None,
    pseudonymise: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Hash all names with the key in this file; needs --names."),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(help="The file that maps pseudonyms to names; it must be outside of --out."),
    ] = None,
) -> None:
    """Turn a published dataset (or caption corpus) into shards; unreadable files are quarantined."""
    if card == "captions":
        given = {"--view": view, "--limit": limit, "--unpack-to": unpack_to}
        given |= {"--pseudonymise": pseudonymise, "--names": names}
        _prepare_captions(root, out, unused=[option for option, value in given.items() if value is not None])
        return
    from his2lip.data.prepare import NameMap, prepare

    if (pseudonymise is None) != (names is None):
        what = "a key and a map of names must be given together"
        key = "--names" if names is None else "--pseudonymise"
        raise DatasetError(what, key=key, fix="give --pseudonymise and --names")
    chosen = _card(card)
    map_of_names = NameMap.open(pseudonymise, names, out=out) if pseudonymise and names else None
    with ProgressBar(card) as bar:
        report = prepare(
            chosen,
            root,
            out,
            view=view,
            limit=limit,
            unpack_to=unpack_to,
            names=map_of_names,
            ray=True,
            progress=bar.counter("files"),
            tell=bar.update,
        )
    if report.root != Path(os.path.abspath(root)):
        say(f"unpacked in {report.root}; it may be removed")
    for note in report.notes:
        say(f"note: {note}")
    show_counts(report.info)
    for rule in chosen.carve:
        if not {rule.source, rule.into} <= report.info.counts.keys():
            say(f"note: one of '{rule.source}' and '{rule.into}', which is carved from it, is empty")
            say("  if you need both, set another seed or fraction of `carve` on the card")
    _show_left_out(report, out)
    if names is not None:
        say(f"names and reasons: {names}; keep it and the key, and give neither away")
    say(f"shards: {out}")


@command("data synthesize")
def synthesize(
    out: Annotated[str, typer.Option(help="Where the datasets go, one folder per dataset.")],
    layout: Annotated[
        bool,
        typer.Option("--layout", help="Write the published folders and files, as input of `prepare`."),
    ] = False,
    datasets: Annotated[
        str | None,
        typer.Option(help="Comma-separated names. Default: all ten. `nuclei` is no twin; train on it."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The generator's seed.")] = 0,
    scale: Annotated[float, typer.Option(min=0.01, help="Size relative to the demo's.")] = 1.0,
) -> None:
    """Write generated IHC twins of the datasets as shards, or in their published layouts.

    Both are marked as generated, and so are shards that `prepare` makes from a rehearsal layout.
    """
    write = write_layouts if layout else write_twins
    write(out, datasets=split_names(datasets), seed=seed, scale=scale)


def write_twins(
    out: str, *, datasets: Sequence[str] | None = None, seed: int = 0, scale: float = 1.0
) -> None:
    """Writes generated twins as shards, one folder per dataset; equal ones that exist are kept."""
    from his2lip.runtime import usable_cpus
    from his2lip.synthetic import process_mapper, twin_names, twin_view, write_twin

    names = list(datasets or twin_names())
    with process_mapper(usable_cpus()) as mapper, ProgressBar("generated patches") as bar:
        progress = bar.adder()
        for name in names:
            base, mark, query = out.partition("?") if "://" in out else (out, "", "")
            place = f"{base.rstrip('/')}/{name}{mark}{query}"
            if not _exists(place, twin_view(seed, scale)):
                write_twin(name, place, seed=seed, scale=scale, mapper=mapper, progress=progress)
    say(f"shards: {out} ({', '.join(names)}; generated, not real)")


def write_layouts(
    out: str, *, datasets: Sequence[str] | None = None, seed: int = 0, scale: float = 1.0
) -> None:
    """Writes generated images in the published layouts, one folder per dataset."""
    from his2lip.synthetic import layout_names, write_rehearsal

    if "://" in out or not out:
        what = "a layout can only be written to a folder of this machine"
        raise DatasetError(what, where=f"--out '{out}'", key="--out", fix="give a folder")
    names = list(datasets or layout_names())
    with ProgressBar("generated images") as bar:
        progress, each = bar.adder(), max(3, round(3 * scale))
        for name in names:
            write_rehearsal(name, Path(out, name), seed=seed, each=each, progress=progress)
    say(f"layouts: {out} ({', '.join(names)}; generated, not real)")
    say(f"rehearse: his2lip data prepare {names[0]} --root {Path(out, names[0])} --out DIR")


def show_counts(info: DatasetInfo) -> None:
    """Prints the number of patches by split and label."""
    labels = sorted({label for counts in info.counts.values() for label in counts})
    rows = [
        (split, info.roles.get(split, ""), *(counts.get(label, 0) for label in labels), sum(counts.values()))
        for split, counts in info.counts.items()
    ]
    if len(labels) <= 8:
        table((info.title, "role", *labels, "all"), rows)
    else:
        table((info.title, "role", "all"), [(row[0], row[1], row[-1]) for row in rows])


def _show_left_out(report: PrepareReport, out: str) -> None:
    """Prints how many files were found, read, quarantined and passed over, with reasons."""
    say(f"{report.found:,} found, {report.read:,} read, {len(report.quarantined):,} quarantined")
    for reason, count in report.passed_over.items():
        say(f"  passed over {count:,}: {reason}")
    if report.left_out:
        say(f"  parts of files left out: {len(report.left_out):,}, such as {': '.join(report.left_out[0])}")
    for path, reason in report.quarantined[:_SHOWN_FILES]:
        say(f"  quarantined {path}: {reason}")
    if len(report.quarantined) > _SHOWN_FILES:
        say(f"  … and {len(report.quarantined) - _SHOWN_FILES:,} more, listed in {out}/dataset.json")


def _exists(place: str, view: str) -> bool:
    """Whether this same twin is at `place`. Raises DatasetError where another dataset is."""
    from his2lip.data.shards import open_shards

    try:
        info = open_shards(place).info
    except DatasetError:
        return False
    if info.generated and info.view == view:
        return True
    raise DatasetError("another dataset is here", where=place, key="--out", fix="choose another --out")


def _prepare_captions(root: Path, out: str, *, unused: Sequence[str]) -> None:
    from his2lip.data.captions import CaptionBank

    if unused:
        what = "this option is for images, and captions do not have it"
        raise DatasetError(what, where=unused[0], key=unused[0], fix="leave it out")
    if Path(out).is_dir():
        fix = "give a path such as captions.json"
        raise DatasetError("a caption bank is one file, not a folder", where=out, key="--out", fix=fix)
    if "://" not in out:
        check_outputs({"--out": Path(out)}, inputs=root.rglob("*.txt"))
    bank, report = CaptionBank.from_folder(root)
    try:
        bank.save(out)
    except OSError as error:
        what = f"nothing can be written here: {first_line(error)}"
        raise DatasetError(what, where=out, key="--out") from None
    say(str(report))
    from his2lip.models import clip_tokenizer

    if (note := clip_tokenizer().cut_note(bank.distinct())) is not None:
        say(f"for CLIP, {note}")
    say(f"caption bank: {out}")


_SHOWN_FINDINGS = 50  # notes, and problems, that are printed
_GROUPS = 40  # (split, class) groups whose image statistics are printed


@command("data check")
def check_dataset(
    what: Annotated[str, typer.Argument(help="A folder or URI of shards, or a card's name or file.")],
    page: Annotated[
        Path | None, typer.Option(help="Write a page with pictures: FILE.html, or a folder for it.")
    ] = None,
) -> None:
    """Check shards (content, counts, leaks, colours, stains) or a card.

    The exit code is 1 where there is a problem.
    """
    if _is_card(what):
        if page is not None:
            fix = "give the URI of its shards"
            raise ConfigError("a card has no pictures", where="--page", key="--page", fix=fix)
        problems, notes = _check_card(what)
    else:
        problems, notes = _check_shards(what, page)
    for kind, lines in (("note", notes), ("problem", problems)):
        for line in lines[:_SHOWN_FINDINGS]:
            say(f"{kind}: {line}")
        if len(lines) > _SHOWN_FINDINGS:
            say(f"… and {len(lines) - _SHOWN_FINDINGS:,} more of these")
    say("no problem found" if not problems else f"problems found: {len(problems):,}")
    if problems:
        raise typer.Exit(1)


def _check_shards(uri: str, page: Path | None) -> tuple[Sequence[str], Sequence[str]]:
    """(problems, notes) of prepared shards, after printing their counts and image statistics."""
    from his2lip.data.cards import terms_of
    from his2lip.data.check import SAMPLES, check
    from his2lip.data.shards import open_shards

    file = page
    if page is not None and page.suffix != ".html":
        file = page / f"{open_shards(uri).info.name}.html"
    check_outputs({"--page": file})
    with ProgressBar("check") as bar:
        report = check(uri, samples=SAMPLES if page else 0, progress=bar.counter("images"))
    show_counts(report.info)
    _show_images(report.images)
    if file is not None:
        from his2lip.report import write_page

        write_page(report, file)
        say(f"page: {file}")
    return report.problems, [*report.warnings, *terms_of(report.info).notes()]


def _is_card(what: str) -> bool:
    """Whether `what` is a card: a YAML file, or a card's name where no folder of that name holds shards."""
    from his2lip.data.cards import list_cards
    from his2lip.data.shards import INFO

    return what.endswith((".yaml", ".yml")) or (what in list_cards() and not (Path(what) / INFO).is_file())


def _card(name: str) -> Card:
    """The card of a name, or of a file. Raises ConfigError where a name means one of each."""
    from his2lip.data.cards import list_cards, load_card

    card = load_card(name)
    for own in (Path(f"{name}.yaml"), Path(f"{name}.yml")):
        if name in list_cards() and own.is_file() and load_card(own) != card:
            what = f"'{name}' is the name of a card of the project, and of another one here"
            raise ConfigError(what, where=own, key=name, fix=f"write {own} for yours, or rename that file")
    return card


def _check_card(name: str) -> tuple[Sequence[str], Sequence[str]]:
    """(problems, notes) of a card, after printing where its images are from, and its protocols."""
    from his2lip.data.check import check_card
    from his2lip.evaluation import PromptSet

    card = _card(name)
    report = check_card(card)
    problems = [str(problem) for problem in report.problems]
    for protocol, rule in card.protocols.items():
        try:
            PromptSet.load(rule.prompts).narrow(rule.classes)
        except ConfigError as error:
            problems.append(f"protocols.{protocol}.prompts: {error}")
    for fact, text in _origin(card):
        say(f"{fact}: {text}")
    rows = [(n, p.split, p.label, len(p.classes), p.basis) for n, p in card.protocols.items()]
    if rows:
        table((f"{card.name}: protocol", "split", "label", "classes", "basis"), rows)
    known = [
        f"protocols.{name}: tiles are pooled by {rule.tile_pool}: {rule.pool_reason}"
        for name, rule in card.protocols.items()
        if rule.pool_reason
    ]
    known += [f"differs: {line}" for line in card.differences] + [f"unknown: {line}" for line in card.unknown]
    return problems, [*map(str, report.warnings), *known]


def _origin(card: Card) -> Iterator[tuple[str, str]]:
    """Where the images of a card are from, by which licence, and how they were taken."""
    licence, source = card.licence, card.source
    yield "source", ", ".join(filter(None, (source.record, source.url, f"access: {source.access}")))
    yield "licence", f"{licence.name} (SPDX {licence.spdx})" if licence.spdx else licence.name
    taken = [card.scanner] if card.scanner else []
    taken += [f"{card.magnification:g}x"] if card.magnification else []
    taken += [f"{card.mpp:g} microns per pixel ({card.mpp_basis})"] if card.mpp else []
    if taken:
        yield "images", ", ".join(taken)


def _show_images(images: ImageStats) -> None:
    """Prints size, colour, brightness and blank share by split and class, and how the stains look."""
    from his2lip.data.images import LOOKS

    groups = sorted(images.groups.items())
    rows = [
        (
            split,
            label,
            group.size,
            *group.rgb,
            "{:.0f} ± {:.0f}".format(*group.brightness),
            group.blank_percent,
        )
        for (split, label), group in groups
    ]
    if len(rows) <= _GROUPS:
        table(("split", "class", "size", "red", "green", "blue", "brightness", "blank"), rows)
    else:
        say(f"image statistics of {len(rows)} splits and classes: see them with --page FILE.html")
    looks = [(stain, *(of[look] for look in (*LOOKS, None))) for stain, of in sorted(images.stains.items())]
    if looks:
        table(("declared stain", *(f"looks {look}" for look in LOOKS), "blank"), looks)
