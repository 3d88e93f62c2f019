"""data check: are prepared shards whole and true, and does anything leak between their splits?"""

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
from his2lip.data.images import decode, look_at
from his2lip.data.shards import (
    NO_LABEL,
    SCHEMA,
    DatasetInfo,
    ShardSet,
    content_digest,
    open_shards,
    row_digest,
)
from his2lip.errors import DatasetError, ImageError

Progress = Callable[[int, int], None]  # rows done, rows in all

_BATCH = 64  # rows that are Python objects at once; one row group is in memory


@dataclass(frozen=True)
class CheckReport:
    """`problems` should stop a benchmark; `warnings` are to be known. Each is one sentence.

    `leaks` pairs what recurs between splits with whether that is a problem.
    """

    info: DatasetInfo
    images: ImageStats
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    leaks: list[tuple[Leak, bool]] = field(default_factory=list)


def check(uri: str | Path, *, samples: int = 0, progress: Progress | None = None) -> CheckReport:
    """Reads every row and image once. Raises DatasetError where there is no prepared dataset.

    `samples` is how many thumbnails of each class the report keeps.
    """
    shards = open_shards(uri)
    report = CheckReport(shards.info, ImageStats(samples=samples))
    card = validate(Card, shards.info.card, where=f"{uri}/dataset.json, card")
    seen = _Seen()
    try:
        for done, row in enumerate(_rows(shards), start=1):
            seen.take(row, report)
            if progress is not None:
                progress(done, shards.info.rows)
    except DatasetError as error:
        report.problems.append(str(error))
        return report
    _compare_content(seen, report)
    if not shards.info.generated:
        _compare_published(card, report)
    _find_leaks(card, shards, seen, report)
    report.warnings.extend(report.images.warnings())
    return report


class _Seen:
    """What one pass over the rows leaves: sums, counts, and in which splits each value stands."""

    def __init__(self) -> None:
        self.content = self.rows = 0
        self.counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.sightings = Sightings()

    def take(self, row: dict[str, Any], report: CheckReport) -> None:
        image, label = row.pop("image"), row["label"] or NO_LABEL
        self.content = (self.content + row_digest(row)) % 2**256
        self.rows += 1
        self.counts[row["split"]][label] += 1
        values: dict[str, str | bytes | None] = {
            kind: row[f"{kind}_id"] for kind in ("case", "slide", "region")
        } | {"file": row["patch_id"].partition("#")[0]}
        pixels = _pixels(image, row, report)
        if pixels is not None:
            values["pixels"] = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
            values["look"] = difference_hash(pixels)
            names = {key: row[key] for key in ("patch_id", "split", "stain")}
            report.images.add(pixels, look_at(pixels), label=label, **names)
        self.sightings.take(row["split"], values)


def _pixels(image: bytes, row: dict[str, Any], report: CheckReport) -> np.ndarray | None:
    """The image decoded, or None with a problem said."""
    if hashlib.sha256(image).hexdigest() != row["sha256"]:
        report.problems.append(f"{row['patch_id']}: the image is not the one that was written")
        return None
    try:
        pixels = decode(image)
    except ImageError as error:
        report.problems.append(f"{row['patch_id']}: {error.what}")
        return None
    if pixels.shape[:2] != (row["height"], row["width"]):
        report.problems.append(f"{row['patch_id']}: the size in the row is not the image's")
    return pixels


def _rows(shards: ShardSet) -> Iterator[dict[str, Any]]:
    for split in shards.splits:
        for batch in shards.iter_rows(split, SCHEMA.names, batch_rows=_BATCH):
            yield from batch.to_pylist()


def _compare_content(seen: _Seen, report: CheckReport) -> None:
    info = report.info
    counts = {split: dict(labels) for split, labels in seen.counts.items()}
    if counts != info.counts:
        report.problems.append(f"the rows count {counts}, dataset.json says {info.counts}")
    if content_digest(info.name, seen.rows, seen.content) != info.digest:
        report.problems.append("the digest of the rows is not the one in dataset.json")
    if info.quarantined:
        path, reason = info.quarantined[0]
        n = len(info.quarantined)
        said = f"{n:,} {'file was' if n == 1 else 'files were'} quarantined, such as {path}: {reason}"
        report.warnings.append(said)


def _compare_published(card: Card, report: CheckReport) -> None:
    """A difference from the published counts is a warning that names both."""
    if report.info.view != "published" or card.published.unit != "patch":
        return
    ours = {split: dict(labels) for split, labels in report.info.counts.items()}
    for carve in reversed(card.carve):
        for label, n in ours.pop(carve.into, {}).items():
            ours.setdefault(carve.source, {})[label] = ours.get(carve.source, {}).get(label, 0) + n
    for split, labels in card.published.counts.items():
        have = ours.get(split, {})
        for label, want in labels.items():
            n = sum(have.values()) if label == "all" else have.get(label, 0)
            if n != want:
                report.warnings.append(f"{split}, {label}: {n:,} patches here, {want:,} published")


def _find_leaks(card: Card, shards: ShardSet, seen: _Seen, report: CheckReport) -> None:
    """Values that stand in two splits. What the card says to recur, or cannot be told apart, is a warning."""
    for leak in seen.sightings.leaks():
        if {card.roles.get(split) for split in leak.splits} == {"report"}:
            continue
        problem = leak.kind != "look" and not may_recur(card, leak)
        report.leaks.append((leak, problem))
        said = f"{leak}, such as {' and '.join(_patches(leak, shards))}"
        (report.problems if problem else report.warnings).append(said)


def _patches(leak: Leak, shards: ShardSet) -> Iterator[str]:
    """The patch id of the leak's example in each split."""
    for split, row in zip(leak.splits, leak.rows, strict=True):
        yield shards.table(split, ["patch_id"])["patch_id"][row].as_py()
