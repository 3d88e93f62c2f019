"""`his2lip data check`: prepared shards, or a card, with what was found and an exit code for CI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from his2lip.commands.console import Progress, say, table
from his2lip.commands.data import say_counts
from his2lip.errors import ConfigError, DatasetError, first_line

if TYPE_CHECKING:
    from his2lip.data.check import ImageStats

_SHOWN = 50  # notes, and problems, that a check prints
_GROUPS = 40  # splits x classes of which a check prints statistics


def check_dataset(what: str, *, page: Path | None = None) -> bool:
    """Checks prepared shards, or a card by its name or file; True where there is no problem."""
    if _is_card(what):
        if page is not None:
            raise ConfigError("a card has no pictures", where="--page", fix="give the URI of its shards")
        return _check_card(what)
    from his2lip.data.cards import terms_of
    from his2lip.data.check import SAMPLES, check

    file = None if page is None else _page_file(page, what)
    with Progress("check") as bar:

        def progress(done: int, total: int) -> None:
            bar.update(f"{done:,} of {total:,} images")

        report = check(what, samples=SAMPLES if page else 0, progress=progress)
    say_counts(report.info)
    _say_images(report.images)
    if file is not None:
        from his2lip.report import write_page

        write_page(report, file)
        say(f"page: {file}")
    return _say_findings(report.problems, [*report.warnings, *terms_of(report.info).notes()])


def _page_file(page: Path, uri: str) -> Path:
    """The file that a page goes to. Raises DatasetError, before hours of reading, where it cannot."""
    from his2lip.data.shards import open_shards

    file = page if page.suffix == ".html" else page / f"{open_shards(uri).info.name}.html"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("a").close()
    except OSError as error:
        said = f"the page cannot be written: {first_line(error)}"
        raise DatasetError(said, where="--page", fix="give a file such as page.html, or a folder") from None
    return file


def _is_card(what: str) -> bool:
    """Whether a card is meant: a YAML file, or a card's name where no shards lie in a folder of that name."""
    from his2lip.data.cards import list_cards
    from his2lip.data.shards import INFO

    return what.endswith((".yaml", ".yml")) or (what in list_cards() and not (Path(what) / INFO).is_file())


def _check_card(name: str) -> bool:
    from his2lip.data.cards import load_card
    from his2lip.data.check import check_card
    from his2lip.evaluation import PromptSet

    card = load_card(name)
    report = check_card(card)
    for protocol, rule in card.protocols.items():
        try:
            PromptSet.load(rule.prompts).narrow(rule.classes)
        except ConfigError as error:
            report.problems.append(f"protocol {protocol}: {error}")
    rows = [(n, p.split, p.label, len(p.classes), p.basis) for n, p in card.protocols.items()]
    if rows:
        table((f"{card.name}: protocol", "split", "label", "classes", "basis"), rows)
    known = [f"differs: {line}" for line in card.differences] + [f"unknown: {line}" for line in card.unknown]
    return _say_findings(report.problems, [*report.warnings, *known])


def _say_findings(problems: Sequence[str], warnings: Sequence[str]) -> bool:
    """Notes and problems, most of them where they are many; True where there is no problem."""
    for kind, lines in (("note", warnings), ("problem", problems)):
        for line in lines[:_SHOWN]:
            say(f"{kind}: {line}")
        if len(lines) > _SHOWN:
            say(f"… and {len(lines) - _SHOWN:,} more of these")
    say("no problem found" if not problems else f"problems found: {len(problems):,}")
    return not problems


def _say_images(images: ImageStats) -> None:
    """Size, colour, brightness and blank share by split and class, and what the stains look like."""
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
    looks = [(said, *(of[look] for look in (*LOOKS, None))) for said, of in sorted(images.stains.items())]
    if looks:
        table(("stain said", *(f"looks {look}" for look in LOOKS), "blank"), looks)
