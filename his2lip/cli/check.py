"""`his2lip data check`: checks prepared shards or a card; the exit code tells whether there is a problem."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from his2lip.cli.console import ProgressBar, say, table
from his2lip.cli.data import show_counts
from his2lip.cli.registry import command
from his2lip.errors import ConfigError, DatasetError, first_line

if TYPE_CHECKING:
    from his2lip.data.check import ImageStats

_SHOWN = 50  # notes, and problems, that are printed
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
        for line in lines[:_SHOWN]:
            say(f"{kind}: {line}")
        if len(lines) > _SHOWN:
            say(f"… and {len(lines) - _SHOWN:,} more of these")
    say("no problem found" if not problems else f"problems found: {len(problems):,}")
    if problems:
        raise typer.Exit(1)


def _check_shards(uri: str, page: Path | None) -> tuple[Sequence[str], Sequence[str]]:
    """(problems, notes) of prepared shards, after printing their counts and image statistics."""
    from his2lip.data.cards import terms_of
    from his2lip.data.check import SAMPLES, check

    file = None if page is None else _page_file(page, uri)
    with ProgressBar("check") as bar:
        report = check(uri, samples=SAMPLES if page else 0, progress=bar.counter("images"))
    show_counts(report.info)
    _show_images(report.images)
    if file is not None:
        from his2lip.report import write_page

        write_page(report, file)
        say(f"page: {file}")
    return report.problems, [*report.warnings, *terms_of(report.info).notes()]


def _page_file(page: Path, uri: str) -> Path:
    """The file of the page. Raises DatasetError where it cannot be written, before the shards are read."""
    from his2lip.data.shards import open_shards

    file = page if page.suffix == ".html" else page / f"{open_shards(uri).info.name}.html"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        what = f"the page cannot be written: {first_line(error)}"
        fix = "give a file such as page.html, or a folder"
        raise DatasetError(what, where=file, key="--page", fix=fix) from None
    return file


def _is_card(what: str) -> bool:
    """Whether `what` is a card: a YAML file, or a card's name where no folder of that name holds shards."""
    from his2lip.data.cards import list_cards
    from his2lip.data.shards import INFO

    return what.endswith((".yaml", ".yml")) or (what in list_cards() and not (Path(what) / INFO).is_file())


def _check_card(name: str) -> tuple[Sequence[str], Sequence[str]]:
    """(problems, notes) of a card, after printing its protocols."""
    from his2lip.data.cards import load_card
    from his2lip.data.check import check_card
    from his2lip.evaluation import PromptSet

    card = load_card(name)
    report = check_card(card)
    problems = [str(problem) for problem in report.problems]
    for protocol, rule in card.protocols.items():
        try:
            PromptSet.load(rule.prompts).narrow(rule.classes)
        except ConfigError as error:
            problems.append(f"protocols.{protocol}.prompts: {error}")
    rows = [(n, p.split, p.label, len(p.classes), p.basis) for n, p in card.protocols.items()]
    if rows:
        table((f"{card.name}: protocol", "split", "label", "classes", "basis"), rows)
    known = [f"differs: {line}" for line in card.differences] + [f"unknown: {line}" for line in card.unknown]
    return problems, [*map(str, report.warnings), *known]


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
