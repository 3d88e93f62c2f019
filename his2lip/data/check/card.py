"""data check of a dataset card: are its fields, classes, protocols and counts fit to prepare and score by?"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from his2lip import taxonomy
from his2lip.config import Config, validate
from his2lip.data.cards import Card, Protocol, terms_of_card
from his2lip.data.images import LOOKS
from his2lip.data.readers import READERS
from his2lip.data.shards import WITHOUT_IMAGE
from his2lip.errors import ConfigError, did_you_mean

_SCORES = ("0", "1+", "2+", "3+")


@dataclass(frozen=True)
class CardReport:
    """`problems` would stop or mislead a benchmark; `warnings` are to be known. Each is one sentence."""

    card: Card
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_card(card: Card) -> CardReport:
    """Checks what can be checked without the dataset's files (its prompts apart, which evaluation reads)."""
    problems = [*_reader(card), *_classes(card)]
    if card.stain is not None and card.stain not in LOOKS:
        problems.append(f"no image is stained '{card.stain}'; {did_you_mean(card.stain, LOOKS)}")
    for name, protocol in card.protocols.items():
        problems += [f"protocol {name}: {said}" for said in _protocol(card, protocol)]
    return CardReport(card, problems + list(_counts(card)), list(_to_know(card)))


def _reader(card: Card) -> Iterator[str]:
    """A reader that is not there, and options that it does not take."""
    if card.reader not in READERS:
        yield f"no reader is named '{card.reader}'; {did_you_mean(card.reader, READERS)}"
        return
    module = importlib.import_module(f"his2lip.data.readers.{card.reader}")
    options = [kind for name, kind in vars(module).items() if name.endswith("Options")]
    try:
        validate(options[0] if options else Config, card.options, where="options")
    except ConfigError as error:
        yield str(error)


def _classes(card: Card) -> Iterator[str]:
    """Spellings that two classes claim: a file's label would depend on their order."""
    owner: dict[str, str] = {}
    for name, aliases in card.classes.items():
        for spelling in {s.casefold() for s in (name, *aliases)}:
            if owner.setdefault(spelling, name) != name:
                yield f"'{spelling}' spells both the class {owner[spelling]} and the class {name}"


def _protocol(card: Card, protocol: Protocol) -> Iterator[str]:
    """Label rules and columns that no row could ever meet, and splits that must not be scored."""
    role = card.roles[protocol.split]
    if role != "report":
        yield f"it scores the split {protocol.split}, whose role is {role}, not report"
    for group in (protocol.classes, protocol.apart):
        for values in group.values():
            yield from _values(card, protocol.label, values)
    for column, values in protocol.where.items():
        yield from _values(card, column, values)
    for option, named in (("pool_by", protocol.pool_by), ("breakdown", protocol.breakdown)):
        if named is not None and named not in WITHOUT_IMAGE:
            yield f"{option} names the column '{named}', which shards do not have"


def _values(card: Card, column: str, values: Iterable[str]) -> Iterator[str]:
    """Values that a column never holds, each with the nearest that it may."""
    if column != "pair" and column not in WITHOUT_IMAGE:
        yield f"it names the column '{column}', which shards do not have"
        return
    known = _vocabulary(card, column)
    for value in values:
        if known and value not in known:
            yield f"no row's {column} can be '{value}'; {did_you_mean(value, known)}"


def _vocabulary(card: Card, column: str) -> tuple[str, ...]:
    """All that a column may hold; nothing where that is open."""
    vocabularies: dict[str, tuple[str, ...]] = {
        "tissue": taxonomy.TISSUES,
        "biomarker": taxonomy.BIOMARKERS,
        "pair": tuple(f"{t} {b}" for t in taxonomy.TISSUES for b in taxonomy.BIOMARKERS),
        "label": tuple(card.classes),
        "score": _SCORES,
        "stain": LOOKS,
    }
    return vocabularies.get(column, ())


def _counts(card: Card) -> Iterator[str]:
    """Published counts that name a split or a class which the card does not."""
    for split, labels in card.published.counts.items():
        if split not in card.splits:
            yield f"published.counts names the split '{split}', which `splits` does not declare"
        for label in labels:
            if label != "all" and card.classes and label not in card.classes:
                yield f"published.counts names the class '{label}'; {did_you_mean(label, card.classes)}"


def _to_know(card: Card) -> Iterator[str]:
    """What a user should know before trusting figures, or sharing them."""
    yield from terms_of_card(card.name, card.model_dump(mode="json")).notes()
    if not card.citation:
        yield "no citation is given"
    if card.mpp is None:
        yield "microns a pixel are unknown: tiles at a scale will be cut in pixels"
    if not card.protocols:
        yield "no protocol is given, so the dataset cannot be benchmarked"
    total = sum(sum(labels.values()) for labels in card.published.counts.values())
    if card.published.counts and card.published.images not in (None, total):
        images = card.published.images
        yield f"the published counts add up to {total:,}, and {images:,} images are published in all"
    for name, split in card.splits.items():
        if split.recurs:
            yield f"{name}: {split.recurs}"
