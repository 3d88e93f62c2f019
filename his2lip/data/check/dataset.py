"""Check of prepared shards: content, counts, classes, repeated pictures, leaks between splits, and stains."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from his2lip.config import validate
from his2lip.data.cards import Card
from his2lip.data.check.image_stats import ImageStats
from his2lip.data.check.leaks import Leak, Sightings, difference_hash, may_recur
from his2lip.data.check.repeats import Pictures, Place
from his2lip.data.images import decode, look_at
from his2lip.data.shards import (
    NO_LABEL,
    SCHEMA,
    DatasetInfo,
    ShardSet,
    content_digest,
    labelled_rows,
    open_shards,
    row_digest,
)
from his2lip.errors import DatasetError, ImageError

ProgressCallback = Callable[[int, int], None]  # rows done, rows in all

_BATCH_ROWS = 64  # rows that are converted to Python objects at once
_LABELS = ("label", "tissue", "biomarker", "score")  # columns that say what a picture shows


@dataclass(frozen=True)
class CheckReport:
    """The result of `check`.

    images    statistics of the images, and thumbnails where they were asked for
    problems  faults that should stop a benchmark; one sentence each
    warnings  what a user should know; one sentence each
    leaks     what is in two splits, and whether that is a problem
    """

    info: DatasetInfo
    images: ImageStats
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    leaks: list[tuple[Leak, bool]] = field(default_factory=list)


def check(uri: str | Path, *, samples: int = 0, progress: ProgressCallback | None = None) -> CheckReport:
    """Reads every row and image of a prepared dataset once.

    uri      folder or URI of the shards
    samples  number of thumbnails per class in the report

    A shard that cannot be read is a problem in the report, and ends the check. Raises DatasetError where
    there is no prepared dataset.
    """
    shards = open_shards(uri)
    report = CheckReport(shards.info, ImageStats(samples=samples))
    card = validate(Card, shards.info.card, where=f"{uri}/dataset.json, card")
    totals = _Totals()
    try:
        for done, row in enumerate(_rows(shards), start=1):
            totals.add(row, report)
            if progress is not None:
                progress(done, shards.info.rows)
    except DatasetError as error:
        report.problems.append(str(error))
        return report
    _compare_content(totals, report)
    if not shards.info.generated:
        _compare_published(card, report)
    _find_leaks(card, shards, totals, report)
    _find_repeats(shards, totals.pictures, report)
    _find_empty_classes(shards, report)
    report.warnings.extend(report.images.warnings())
    return report


class _Totals:
    """Gathered in one pass over the rows: their digest and counts, and the splits that each value is in."""

    def __init__(self) -> None:
        self.content = self.rows = 0
        self.counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.sightings = Sightings()
        self.pictures = Pictures()

    def add(self, row: dict[str, Any], report: CheckReport) -> None:
        """Adds one row with all its columns, and reports the faults of its image."""
        image, label = row.pop("image"), row["label"] or NO_LABEL
        self.content = (self.content + row_digest(row)) % 2**256
        self.rows += 1
        self.counts[row["split"]][label] += 1
        values: dict[str, str | bytes | None] = {
            kind: row[f"{kind}_id"] for kind in ("case", "slide", "region")
        } | {"file": row["patch_id"].partition("#")[0]}
        pixels = _pixels(image, row, report)
        picture: bytes | None = None
        if pixels is not None:
            hashed = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
            # A picture of one colour, such as glass, may well recur, under any label.
            picture = hashed if pixels.min() < pixels.max() else None
            values["pixels"] = hashed
            values["look"] = difference_hash(pixels)
            names = {key: row[key] for key in ("patch_id", "split", "stain")}
            report.images.add(pixels, look_at(pixels), label=label, **names)
        self.sightings.add(row["split"], values)
        self.pictures.add(row["split"], picture, "\t".join(str(row[name]) for name in _LABELS))


def _pixels(image: bytes, row: dict[str, Any], report: CheckReport) -> np.ndarray | None:
    """The decoded image, uint8 (H, W, 3); None where it cannot be used, which is reported as a problem."""
    if hashlib.sha256(image).hexdigest() != row["sha256"]:
        report.problems.append(f"{row['patch_id']}: the sha256 of the image differs from the row's")
        return None
    try:
        pixels = decode(image)
    except ImageError as error:
        report.problems.append(f"{row['patch_id']}: {error.what}")
        return None
    height, width = pixels.shape[:2]
    if (height, width) != (row["height"], row["width"]):
        stated = f"{row['width']} x {row['height']} px"
        report.problems.append(
            f"{row['patch_id']}: the row states {stated}, the image has {width} x {height}"
        )
    return pixels


def _rows(shards: ShardSet) -> Iterator[dict[str, Any]]:
    for split in shards.splits:
        for batch in shards.iter_rows(split, SCHEMA.names, batch_rows=_BATCH_ROWS):
            yield from batch.to_pylist()


def _compare_content(totals: _Totals, report: CheckReport) -> None:
    """Compares the rows with dataset.json, and warns of quarantined files."""
    info = report.info
    counts = {split: dict(labels) for split, labels in totals.counts.items()}
    if counts != info.counts:
        report.problems.append(f"`counts` in dataset.json is {info.counts}, but the shards have {counts}")
    if content_digest(info.name, totals.rows, totals.content) != info.digest:
        report.problems.append("`digest` in dataset.json differs from the digest of the rows")
    if info.quarantined:
        path, reason = info.quarantined[0]
        n = len(info.quarantined)
        files = "file was" if n == 1 else "files were"
        report.warnings.append(f"{n:,} {files} quarantined, such as {path}: {reason}")


def _compare_published(card: Card, report: CheckReport) -> None:
    """Warns where the number of patches differs from the published number.

    Counts of a carved split are added to the split that it was carved from.
    """
    if report.info.view != "published" or card.published.unit != "patch":
        return
    here = {split: dict(labels) for split, labels in report.info.counts.items()}
    for carve in reversed(card.carve):
        for label, n in here.pop(carve.into, {}).items():
            here.setdefault(carve.source, {})[label] = here.get(carve.source, {}).get(label, 0) + n
    for split, labels in card.published.counts.items():
        found = here.get(split, {})
        for label, published in labels.items():
            n = sum(found.values()) if label == "all" else found.get(label, 0)
            if n != published:
                report.warnings.append(f"{split}, {label}: {n:,} patches here, {published:,} published")


def _find_leaks(card: Card, shards: ShardSet, totals: _Totals, report: CheckReport) -> None:
    """Reports values that are in two splits, unless all of these have the role `report`.

    A leak that the card allows (`may_recur`) is a warning, and so are images that only look alike.
    """
    for leak in totals.sightings.leaks():
        if {card.roles.get(split) for split in leak.splits} == {"report"}:
            continue
        problem = leak.kind != "look" and not may_recur(card, leak)
        report.leaks.append((leak, problem))
        line = f"{leak}, such as {' and '.join(_patches(leak, shards))}"
        (report.problems if problem else report.warnings).append(line)


def _find_repeats(shards: ShardSet, pictures: Pictures, report: CheckReport) -> None:
    """Reports repeated pictures as a warning, and one picture under several labels as a problem.

    A repeated picture counts more than others, but nothing about it is wrong, and published splits have some.
    Of two labels of one picture, at least one is wrong.
    """
    for repeat in pictures.repeats():
        names = [_row(shards, place)["patch_id"] for place in repeat.example]
        report.warnings.append(f"{repeat}, such as {' and '.join(names)}")
    conflict = pictures.conflict()
    if conflict is None:
        return
    one, other = (_row(shards, place) for place in conflict.example)
    column = next(name for name in _LABELS if one[name] != other[name])
    shown = " and ".join(f"{row['patch_id']} ({row[column] or 'none'})" for row in (one, other))
    many = "1 picture has" if conflict.pictures == 1 else f"{conflict.pictures:,} pictures have"
    report.problems.append(f"{many} several labels, such as {shown}")


def _row(shards: ShardSet, place: Place) -> dict[str, Any]:
    """The patch id and the labels of one row."""
    split, number = place
    return dict(shards.table(split, ["patch_id", *_LABELS]).slice(number, 1).to_pylist()[0])


def _find_empty_classes(shards: ShardSet, report: CheckReport) -> None:
    """Warns of classes of a protocol without an image, in the scored split and in those for training."""
    for name, protocol in shards.card().protocols.items():
        for split in shards.splits:
            role = shards.info.roles[split]
            if role == "report" and split != protocol.split:
                continue
            numbers = {value: c for c, values in enumerate(protocol.classes.values()) for value in values}
            columns = {"tissue", "biomarker"} if protocol.label == "pair" else {protocol.label}
            table = shards.table(split, sorted(columns | set(protocol.where)))
            _, found = labelled_rows(table, protocol.label, numbers, where=protocol.where)
            empty = [c for i, c in enumerate(protocol.classes) if i not in set(found.tolist())]
            if not empty or (len(empty) == len(protocol.classes) and split != protocol.split):
                continue
            share = len(empty) / len(protocol.classes)
            line = f"{split}, protocol {name}: no image of {', '.join(empty)}"
            line += f" ({len(empty)} of {len(protocol.classes)} classes"
            line += ")" if role == "train" else f"; {share:.1%} of macro F1 is 0 for every model)"
            report.warnings.append(line)


def _patches(leak: Leak, shards: ShardSet) -> Iterator[str]:
    """The patch id of the leak's example in each of its splits."""
    for split, row in zip(leak.splits, leak.rows, strict=True):
        yield shards.table(split, ["patch_id"])["patch_id"][row].as_py()
