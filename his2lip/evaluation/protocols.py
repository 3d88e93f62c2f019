"""A protocol of a card applied to shards: the scored rows, their classes, and the units that they form."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from his2lip.config import digest
from his2lip.data.cards import Card, LabelsOf, Protocol
from his2lip.data.shards import ShardSet, column_values, label_values, labelled_rows, splits_with_role
from his2lip.errors import DatasetError
from his2lip.evaluation.statistics import Clusters, clusters_of
from his2lip.evaluation.views import MIHIC_FIELD, TrainingField, View
from his2lip.evaluation.zero_shot import Top
from his2lip.models import case_keys, image_keys

APART = -1  # class number of units that are predicted and reported, but not scored
BREAKDOWN = ("biomarker", "stain", "slide_id", "case_id")  # columns by which figures are reported too
ORGAN = "organ"  # the same, by what the dataset's card declares; shards have no such column


@dataclass(frozen=True)
class Selection:
    """The N rows of one split that a protocol scores, and the U units that they form.

    classes         (C,) names of the classes
    rows            int64 (N,), row numbers in the split, ascending
    unit            int64 (N,), the unit of each row; units are numbered in the order in which they appear
    unit_ids        (U,) patch ids, or values of the column by which rows are pooled into units
    case_ids        (U,), None where unknown
    clusters        which units depend on each other
    image_keys      uint64 (N,), the image of each row by its bytes, see `models.image_keys`
    case_keys       uint64 (N,), the case of each row, see `models.case_keys`
    labels          int64 (U,) class numbers; APART for units that are not scored
    breakdown       column -> (U,) values, None where unknown: `BREAKDOWN`, the protocol's own, `ORGAN`
    without_mpp     number of rows with unknown microns per pixel, whose tiles have a fixed size in pixels
    split_sha256    digest of units and labels
    images_sha256   digest of images and their microns per pixel
    groups_sha256   digest of the clusters and of what figures are broken down by
    """

    classes: tuple[str, ...]
    rows: np.ndarray
    unit: np.ndarray
    unit_ids: list[str]
    case_ids: list[str | None]
    clusters: Clusters
    image_keys: np.ndarray
    case_keys: np.ndarray
    labels: np.ndarray
    breakdown: dict[str, list[str | None]]
    without_mpp: int
    split_sha256: str
    images_sha256: str
    groups_sha256: str

    @property
    def scored(self) -> np.ndarray:
        """bool (U,): the units that count in the figures."""
        return self.labels != APART

    @property
    def repeated(self) -> int:
        """Number of scored units with the same images, byte by byte, as an earlier one."""
        sums = np.zeros(len(self.labels), dtype=np.uint64)
        np.add.at(sums, self.unit, self.image_keys)  # modulo 2^64: a hash of the unit's images in any order
        return len(sums[self.scored]) - len(np.unique(sums[self.scored]))


def select(
    shards: ShardSet,
    protocol: Protocol,
    *,
    split: str | None = None,
    card: Card | None = None,
    most: int | None = None,
    seed: int = 0,
) -> Selection:
    """Rows, labels and units of `protocol` on a split.

    split      default: the protocol's own split
    card       what it says of the labels' origin and of organs; None: labels of patches, unknown organs
    most       largest number of units; where there are more, `seed` draws them with equal probability
    Raises DatasetError where no row fits the protocol, where all scored units have the same class, or where
    the rows of one unit have different classes.
    """
    split = split or protocol.split
    table = shards.table(split)
    where = f"{shards.uri}, split {split}"
    rows, numbers = labelled_rows(table, protocol.label, _class_numbers(protocol), where=protocol.where)
    if not len(rows):
        raise DatasetError(
            "no row of this split fits the protocol",
            where=where,
            key=protocol.label,
            fix=_labels_seen(table, protocol),
        )
    table = table.take(pa.array(rows))
    unit_ids, unit, first = _units(table, protocol)
    if most is not None and most < len(unit_ids):
        kept = np.isin(unit, drawn(unit_ids, most, seed))
        rows, numbers, table = rows[kept], numbers[kept], table.filter(pa.array(kept))
        unit_ids, unit, first = _units(table, protocol)
    labels = numbers[first]
    if (labels[unit] != numbers).any():
        mixed = unit_ids[int(unit[(labels[unit] != numbers).argmax()])]
        raise DatasetError(f"the unit '{mixed}' has rows of several classes", where=where, key=mixed)
    if len(set(labels[labels != APART].tolist())) < 2:
        raise DatasetError(
            "this split has scored units of fewer than two classes", where=where, key=protocol.label
        )
    cases = _of_units(table, "case_id", first)
    files = [table["patch_id"][i].as_py().partition("#")[0] for i in first.tolist()]
    labels_of: LabelsOf = "patch" if card is None else card.labels_of
    clusters = clusters_of(cases, _of_units(table, "slide_id", first), files, labels_of=labels_of)
    breakdown = {
        column: [None if value is None else str(value) for value in _of_units(table, column, first)]
        for column in _breakdown_columns(protocol)
    }
    if card is not None and card.organ:
        breakdown[ORGAN] = _organs(table, card, first)
    return Selection(
        classes=tuple(protocol.classes),
        rows=rows,
        unit=unit,
        unit_ids=unit_ids,
        case_ids=cases,
        clusters=clusters,
        image_keys=image_keys(table["sha256"].to_pylist()),
        case_keys=case_keys(shards.info.origin, table["case_id"].to_pylist()),
        labels=labels,
        breakdown=breakdown,
        without_mpp=table["mpp"].null_count,
        split_sha256=split_digest(unit_ids, labels),
        images_sha256=_hash_lines(map("\t".join, _columns(table, "patch_id", "sha256", "mpp"))),
        groups_sha256=groups_digest(unit_ids, clusters, breakdown),
    )


def shared_units(selection: Selection, other: Selection) -> np.ndarray:
    """bool (U,): the units of `selection` whose case (else slide, else file), or an image, is in `other`."""
    shared = np.isin(np.asarray(selection.clusters.ids), np.asarray(other.clusters.ids))
    shared[selection.unit[np.isin(selection.image_keys, other.image_keys)]] = True
    return shared


def split_digest(unit_ids: Sequence[str], labels: np.ndarray) -> str:
    """Digest of U units and their class numbers, int64 (U,)."""
    return _hash_lines(f"{u}\t{c}" for u, c in zip(unit_ids, labels, strict=True))


def groups_digest(
    unit_ids: Sequence[str], clusters: Clusters, breakdown: Mapping[str, Sequence[str | None]]
) -> str:
    """Digest of the clusters of U units, and of the columns (U,) that figures are broken down by.

    It does not depend on the order of the units.
    """
    units = sorted(zip(unit_ids, clusters.ids, *breakdown.values(), strict=True), key=lambda unit: unit[0])
    return digest({"units": units, "columns": list(breakdown), "labels_of": clusters.labels_of})


def drawn(names: Sequence[str], most: int, seed: int) -> list[int]:
    """The places of `most` of the names; which ones does not depend on their order."""
    ranks = [hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest() for name in names]
    return sorted(range(len(names)), key=ranks.__getitem__)[:most]


def view_of(protocol: Protocol, field: TrainingField | None = None) -> View:
    """The view of a protocol for a model.

    field  the model's training field, which tiles have where the protocol sets no `tile_um`; None: unknown
    """
    field = field or MIHIC_FIELD
    um = protocol.tile_um or field.um
    return View(
        kind=protocol.view,
        um=um,
        size=max(1, round(field.px * um / field.um)),
        coverage=protocol.coverage,
        max_tiles=protocol.max_tiles or View().max_tiles,
    )


def _breakdown_columns(protocol: Protocol) -> list[str]:
    """The columns of the breakdowns, without that of the labels: the figures of each class tell the same."""
    asked = [protocol.breakdown] if protocol.breakdown else []
    return [column for column in dict.fromkeys([*asked, *BREAKDOWN]) if column != protocol.label]


def _organs(table: pa.Table, card: Card, first: np.ndarray) -> list[str | None]:
    """The organ of each unit, (U,)."""
    known = {column: _of_units(table, column, first) for column in card.organ_by}
    return [card.organ_of({column: known[column][u] for column in known}) for u in range(len(first))]


def top_of(protocol: Protocol) -> Top | None:
    """Which tiles of a unit count by the protocol's `tile_pool`; None: all of them."""
    if protocol.tile_pool == "mean" or protocol.event is None:
        return None
    share = protocol.tile_share if protocol.tile_pool == "top-k" else 0.0
    return Top(list(protocol.classes).index(protocol.event), share)


def _class_numbers(protocol: Protocol) -> dict[str, int]:
    """Label -> class number, or APART for labels that are predicted but not scored."""
    numbers = {value: c for c, values in enumerate(protocol.classes.values()) for value in values}
    return numbers | {value: APART for values in protocol.apart.values() for value in values}


def _units(table: pa.Table, protocol: Protocol) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(unit ids (U,), the unit of each row int64 (N,), the first row of each unit int64 (U,)).

    Tiles of one image have the same patch id before `#`. Tiles of one slide have the same slide id.
    """
    ids = table["patch_id"].to_pylist()
    if protocol.unit != "patch":
        column = protocol.pool_by or ("slide_id" if protocol.unit == "slide" else None)
        pooled = column_values(table, column) if column else [i.partition("#")[0] for i in ids]
        ids = [own if value is None else str(value) for own, value in zip(ids, pooled, strict=True)]
    place: dict[str, int] = {}
    unit = np.array([place.setdefault(i, len(place)) for i in ids], dtype=np.int64)
    return list(place), unit, np.unique(unit, return_index=True)[1]


def _of_units(table: pa.Table, column: str, first: np.ndarray) -> list:
    values = column_values(table, column)
    return [values[i] for i in first]


def _columns(table: pa.Table, *names: str) -> Iterable[tuple[str, ...]]:
    return zip(*([str(value) for value in table[name].to_pylist()] for name in names), strict=True)


def _labels_seen(table: pa.Table, protocol: Protocol) -> str:
    seen = sorted({str(v) for v in label_values(table, protocol.label)})
    wanted = sorted(v for values in protocol.classes.values() for v in values)
    found = ", ".join(seen[:8]) or "none"
    return f"its {protocol.label} values are {found}; the protocol needs {', '.join(wanted[:8])}"


def _hash_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def of_role(protocol: Protocol, shards: ShardSet, role: str | None) -> Protocol:
    """The protocol on the dataset's split with this role; as it is where `role` is None.

    Raises DatasetError where several splits have the role, or none.
    """
    if role is None:
        return protocol
    found = splits_with_role(shards.info.roles, role)
    if len(found) != 1:
        what = f"{'several splits have' if found else 'no split has'} the role '{role}'"
        fix = "prepare the dataset with one of them" if found else "leave the dataset out"
        raise DatasetError(what, where=shards.uri, key="role", fix=fix)
    return protocol.model_copy(update={"split": found[0]})
