"""data check: are prepared shards whole and true, and does anything leak between their splits?"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from his2lip.config import validate
from his2lip.data import images
from his2lip.data.cards import Card
from his2lip.data.info import NO_LABEL, DatasetInfo, content_digest, row_digest
from his2lip.data.schema import SCHEMA
from his2lip.data.shards import ShardSet, open_shards
from his2lip.errors import DatasetError, ImageError

Progress = Callable[[int, int], None]  # rows done, rows in all

_HASH_SIDE = 16  # a difference hash of 16 x 16 bits tells neighbouring tiles apart
_FLAT = 6.0  # standard deviation of grey levels below which patches (glass, plain stroma) all look alike
_GROUPS = {"case": "case_id", "slide": "slide_id", "region": "region_id", "file": "file"}


@dataclass(frozen=True)
class CheckReport:
    """`problems` should stop a benchmark; `warnings` are to be known. Each is one sentence."""

    info: DatasetInfo
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check(uri: str | Path, *, progress: Progress | None = None) -> CheckReport:
    """Reads every row and image once. Raises DatasetError where there is no prepared dataset."""
    shards = open_shards(uri)
    report = CheckReport(shards.info)
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
    _find_leaks(card, seen, report)
    return report


class _Seen:
    """What one pass over the rows leaves: sums, counts, and in which splits each value stands."""

    def __init__(self) -> None:
        self.content = self.rows = 0
        self.counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.splits_of: dict[str, dict[bytes, set[str]]] = defaultdict(lambda: defaultdict(set))

    def take(self, row: dict[str, Any], report: CheckReport) -> None:
        image, split = row.pop("image"), row["split"]
        self.content = (self.content + row_digest(row)) % 2**256
        self.rows += 1
        self.counts[split][row["label"] or NO_LABEL] += 1
        if hashlib.sha256(image).hexdigest() != row["sha256"]:
            report.problems.append(f"{row['patch_id']}: the image is not the one that was written")
            return
        try:
            pixels = images.decode(image)
        except ImageError as error:
            report.problems.append(f"{row['patch_id']}: {error.what}")
            return
        if pixels.shape[:2] != (row["height"], row["width"]):
            report.problems.append(f"{row['patch_id']}: the size in the row is not the image's")
        row["file"] = row["patch_id"].partition("#")[0]
        for kind, column in _GROUPS.items():
            if row[column] is not None:
                self._stands(kind, row[column].encode(), split)
        self._stands("pixels", hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(), split)
        look = difference_hash(pixels)
        if look is not None:
            self._stands("look", look, split)

    def _stands(self, kind: str, value: bytes, split: str) -> None:
        self.splits_of[kind][value].add(split)


def difference_hash(pixels: np.ndarray) -> bytes | None:
    """32 bytes that alike-looking images share; None for a flat one. uint8 (H, W, 3) in.

    Bit = whether a cell of the grey thumbnail is brighter than its right neighbour (N. Krawetz's dHash).
    """
    grey = Image.fromarray(pixels).convert("L").resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX)
    cells = np.asarray(grey, dtype=np.int16)
    if cells.std() < _FLAT:
        return None
    return np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes()


def _rows(shards: ShardSet) -> Iterator[dict[str, Any]]:
    for split in shards.splits:
        for batch in shards.iter_rows(split, SCHEMA.names, batch_rows=64):
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
        said = f"{len(info.quarantined)} files were quarantined, such as {path}: {reason}"
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


def _find_leaks(card: Card, seen: _Seen, report: CheckReport) -> None:
    """Values that stand in two splits. What the card says to recur, or cannot be told apart, is a warning."""
    for kind, splits_of in seen.splits_of.items():
        shared: dict[tuple[str, ...], int] = defaultdict(int)
        for splits in splits_of.values():
            if len(splits) > 1:
                shared[tuple(sorted(splits))] += 1
        for both, n in sorted(shared.items()):
            if {card.roles.get(split) for split in both} == {"report"}:
                continue
            said = f"{n:,} {_NAMES[kind]} stand in {' and '.join(both)}"
            expected = kind == "look" or _may_recur(card, both, kind)
            (report.warnings if expected else report.problems).append(said)


_NAMES = {
    "case": "cases",
    "slide": "slides",
    "region": "regions",
    "file": "files",
    "pixels": "images, pixel for pixel,",
    "look": "images that look alike",
}
_LADDER = ("case", "slide", "region", "file")


def _may_recur(card: Card, splits: tuple[str, ...], kind: str) -> bool:
    """Whether the card's grouping is finer than `kind`: a split by file lets slides recur."""
    groups = [card.splits[s].groups for s in splits if s in card.splits]
    finest = max((_LADDER.index(g) for g in groups if g), default=0)
    return kind in _LADDER and _LADDER.index(kind) < finest
