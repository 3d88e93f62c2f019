"""Check of a dataset card: finds faults in its options, classes, protocols and counts, without its images."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from his2lip import taxonomy
from his2lip.config import Config, validate
from his2lip.data.cards import Card, Protocol, is_project_card, list_cards, terms_of_card
from his2lip.data.images import LOOKS
from his2lip.data.readers import READERS
from his2lip.data.shards import WITHOUT_IMAGE
from his2lip.errors import ConfigError, did_you_mean

_SCORES = ("0", "1+", "2+", "3+")


@dataclass(frozen=True)
class CardFinding:
    """A problem or a warning, in one sentence. `key` is the dotted key of the card that it is about."""

    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.key}: {self.what}"


@dataclass(frozen=True)
class CardReport:
    """The result of `check_card`.

    problems  faults with which the card cannot be used, or gives wrong figures
    warnings  what a user should know before trusting or publishing figures
    """

    card: Card
    problems: list[CardFinding] = field(default_factory=list)
    warnings: list[CardFinding] = field(default_factory=list)


def check_card(card: Card) -> CardReport:
    """Checks a card without reading the dataset's files or its prompts."""
    problems = [*_check_reader(card), *_check_classes(card), *_check_stain(card), *_check_organs(card)]
    for name, protocol in card.protocols.items():
        problems += _check_protocol(card, protocol, key=f"protocols.{name}")
    return CardReport(card, [*problems, *_check_counts(card)], list(_warnings(card)))


def _check_reader(card: Card) -> Iterator[CardFinding]:
    if card.reader not in READERS:
        yield CardFinding(
            "reader", f"no reader is named '{card.reader}'; {did_you_mean(card.reader, READERS)}"
        )
        return
    module = importlib.import_module(f"his2lip.data.readers.{card.reader}")
    options = [kind for name, kind in vars(module).items() if name.endswith("Options")]
    try:
        validate(options[0] if options else Config, card.options)
    except ConfigError as error:
        what = f"{error.what}; {error.fix}" if error.fix else error.what
        yield CardFinding(".".join(filter(None, ("options", error.key))), what)


def _check_classes(card: Card) -> Iterator[CardFinding]:
    """Two classes must not have one spelling, since the label of a file would depend on their order."""
    owner: dict[str, str] = {}
    for name, aliases in card.classes.items():
        for spelling in {s.casefold() for s in (name, *aliases)}:
            if owner.setdefault(spelling, name) != name:
                what = f"'{spelling}' is a spelling of the class '{owner[spelling]}' and of '{name}'"
                yield CardFinding(f"classes.{name}", what)


def _check_stain(card: Card) -> Iterator[CardFinding]:
    if card.stain is not None and card.stain not in LOOKS:
        yield CardFinding("stain", f"no stain is named '{card.stain}'; {did_you_mean(card.stain, LOOKS)}")


def _check_protocol(card: Card, protocol: Protocol, *, key: str) -> Iterator[CardFinding]:
    """The split must have the role `report`, and the columns and labels must exist in shards."""
    role = card.roles[protocol.split]
    if role != "report":
        what = (
            f"the split '{protocol.split}' has the role '{role}', and only splits for 'report' may be scored"
        )
        yield CardFinding(f"{key}.split", what)
    for option, groups in (("classes", protocol.classes), ("apart", protocol.apart)):
        for name, labels in groups.items():
            yield from _check_values(card, protocol.label, labels, key=f"{key}.{option}.{name}")
    for column, values in protocol.where.items():
        yield from _check_values(card, column, values, key=f"{key}.where.{column}")
    for option, named in (("pool_by", protocol.pool_by), ("breakdown", protocol.breakdown)):
        if named is not None and named not in WITHOUT_IMAGE:
            yield CardFinding(f"{key}.{option}", f"shards have no column '{named}'")


def _check_organs(card: Card) -> Iterator[CardFinding]:
    for column in card.organ_by:
        if column not in WITHOUT_IMAGE:
            yield CardFinding(f"organ_by.{column}", f"shards have no column '{column}'")


def _check_values(card: Card, column: str, values: Iterable[str], *, key: str) -> Iterator[CardFinding]:
    """The column must exist and be able to have each of the values."""
    if column != "pair" and column not in WITHOUT_IMAGE:
        yield CardFinding(key, f"shards have no column '{column}'")
        return
    known = _vocabulary(card, column)
    for value in values:
        if known and value not in known:
            yield CardFinding(key, f"the column '{column}' never has '{value}'; {did_you_mean(value, known)}")


def _vocabulary(card: Card, column: str) -> tuple[str, ...]:
    """All values that a column can have; empty where they are not limited."""
    vocabularies: dict[str, tuple[str, ...]] = {
        "tissue": taxonomy.TISSUES,
        "biomarker": taxonomy.BIOMARKERS,
        "pair": tuple(f"{t} {b}" for t in taxonomy.TISSUES for b in taxonomy.BIOMARKERS),
        "label": tuple(card.classes),
        "score": _SCORES,
        "stain": LOOKS,
    }
    return vocabularies.get(column, ())


def _check_counts(card: Card) -> Iterator[CardFinding]:
    """Published counts must be of splits and classes of the card."""
    for split, labels in card.published.counts.items():
        key = f"published.counts.{split}"
        if split not in card.splits:
            yield CardFinding(key, f"`splits` does not declare the split '{split}'")
        for label in labels:
            if label != "all" and card.classes and label not in card.classes:
                fix = did_you_mean(label, card.classes)
                yield CardFinding(f"{key}.{label}", f"the card has no class '{label}'; {fix}")


def _warnings(card: Card) -> Iterator[CardFinding]:
    for note in terms_of_card(card.name, card.model_dump(mode="json")).notes():
        yield CardFinding("licence", note)
    if card.name in list_cards() and not is_project_card(card):
        what = f"the project has another card named '{card.name}'; yours scores what is prepared with it"
        yield CardFinding("name", f"{what}, and the paper's figures are not shown beside it")
    if not card.citation:
        yield CardFinding("citation", "none is given")
    if card.mpp is None:
        what = "microns per pixel are unknown, so tiles are cut by pixels even where a view gives a scale"
        yield CardFinding("mpp", what)
    for answer in ("yes", "possible", "unknown"):
        if backbones := [name for name, known in card.pretraining.items() if known == answer]:
            what = f"whether these images were in the pretraining data: {answer} ({', '.join(backbones)})"
            yield CardFinding("pretraining", what)
    if not card.protocols:
        yield CardFinding("protocols", "there is none, so the dataset cannot be benchmarked")
    total = sum(sum(labels.values()) for labels in card.published.counts.values())
    if card.published.counts and card.published.images not in (None, total):
        images = card.published.images
        what = f"the counts add up to {total:,}, but {images:,} images are published in all"
        yield CardFinding("published.counts", what)
    for name, split in card.splits.items():
        if split.recurs:
            yield CardFinding(f"splits.{name}.recurs", split.recurs)
