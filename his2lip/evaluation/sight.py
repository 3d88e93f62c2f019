"""Sight: what part of the scored images a model was shown, and at which scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from his2lip.data.cards import Protocol
from his2lip.data.images import cut_share
from his2lip.data.shards import DatasetInfo, ShardSet
from his2lip.evaluation.embeddings import EmbeddingCache
from his2lip.evaluation.encoders import BLANK, SeenEncoder
from his2lip.evaluation.protocols import Selection
from his2lip.evaluation.views import MIHIC_FIELD, NEARLY_BLANK, SQUASHED_FROM, TrainingField, View


@dataclass(frozen=True, kw_only=True)
class Sight:
    """Fields of the record of a grid cell.

    coverage   mean over the images of the share of their tissue that was seen; None where all are blank
    field_um   median microns per side of a crop; None where unknown
    squashed   images of which a crop spans more than SQUASHED_FROM training fields
    seen_note  what a reader must know of these figures; empty where there is nothing
    """

    coverage: float | None = 1.0
    field_um: float | None = None
    squashed: int = 0
    seen_note: str = ""

    def record(self) -> dict[str, Any]:
        return asdict(self)


def sight(
    view: View,
    field: TrainingField | None,
    shards: ShardSet,
    protocol: Protocol,
    selection: Selection,
    cache: EmbeddingCache,
    *,
    threads: int = 2,
) -> Sight:
    """What a model of this training field (None: unknown) is shown of the selected rows by `view`.

    The cache measures each image once, on `threads` threads; an image that is shown whole is not read.
    """
    split = protocol.split
    columns = ["patch_id", "width", "height", "mpp"]
    table = shards.table(split, columns).take(pa.array(selection.rows))
    width, height = (table[name].to_numpy().astype(np.float64) for name in ("width", "height"))
    mpp = table["mpp"].to_numpy(zero_copy_only=False).astype(np.float64)
    sides = _sides(view, width, height, mpp)
    times = (field or MIHIC_FIELD).times(sides, mpp)
    cut = _cut(shards.info, table["patch_id"].to_pylist())
    coverage: float | None = float(cut.mean())
    blank = 0
    if view.kind != "squash":
        measures = EmbeddingCache(
            cache.root, encode=cache.encode
        )  # the counts of `cache` are of what a scorer embeds
        embedded = measures.embed(SeenEncoder(view), shards, split, rows=selection.rows, threads=threads)
        found = embedded.features[:, 0]
        cache.counts.damaged += measures.counts.damaged
        blank = int((found == BLANK).sum())
        coverage = float((found * cut)[found != BLANK].mean()) if blank < len(found) else None
    known = sides * mpp
    known = known[~np.isnan(known)]
    notes = [
        *_cut_notes(cut),
        *_notes(view, coverage=coverage, blank=blank, times=times, field=field),
    ]
    return Sight(
        coverage=coverage,
        field_um=round(float(np.median(known)), 2) if len(known) else None,
        squashed=int((times > SQUASHED_FROM).sum()),
        seen_note="; ".join(notes),
    )


def _sides(view: View, width: np.ndarray, height: np.ndarray, mpp: np.ndarray) -> np.ndarray:
    """float (N,): the longer side of a crop of each image, in its pixels."""
    if view.kind == "squash":
        return np.maximum(width, height)
    smaller = np.minimum(width, height)
    if view.kind == "centre":
        return smaller
    wanted = {value: view.side(value) or 0 for value in np.unique(mpp[~np.isnan(mpp)]).tolist()}
    sides = [view.size if np.isnan(value) else wanted[value] for value in mpp.tolist()]
    return np.minimum(np.array(sides, dtype=np.float64), smaller)


def _cut(info: DatasetInfo, patch_ids: list[str]) -> np.ndarray:
    """float (N,): the share of the tissue of its image that `prepare` cut into tiles, for each row."""
    shares = {f"{info.name}/{place}": cut_share(reason) for place, reason in info.left_out}
    return np.array([shares.get(name.partition("#")[0]) or 1.0 for name in patch_ids])


def _cut_notes(cut: np.ndarray) -> Iterator[str]:
    if (cut < 1).any():
        yield f"the images are tiles, and prepare cut {cut.mean():.1%} of the tissue (max_tiles)"


def _notes(
    view: View, *, coverage: float | None, blank: int, times: np.ndarray, field: TrainingField | None
) -> Iterator[str]:
    total = len(times)
    if coverage is not None and coverage < view.coverage:
        limit = f"at most {view.max_tiles} tiles per image" if view.kind == "tiles" else "one crop per image"
        yield f"{coverage:.0%} of the tissue is seen, less than {view.coverage:.0%}: {limit}"
    if blank:
        yield (
            f"{blank:,} of {total:,} images are nearly blank (under {NEARLY_BLANK:.0%} tissue), "
            "and are shown by evenly spread tiles"
        )
    large = times[times > SQUASHED_FROM]
    if len(large):
        what = "the training field" if field else f"a field of {MIHIC_FIELD.um:g} µm"
        most = f"one crop spans up to {large.max():.3g} times {what}"
        yield f"{len(large):,} of {total:,} images are squashed: {most}"
