"""dataset.json: what a prepared dataset says of itself, beside its shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import pydantic

from his2lip import taxonomy
from his2lip.data.cards import Card, Role
from his2lip.errors import DatasetError

SCHEMA_VERSION = 1
NO_LABEL = "(none)"  # how rows without a label are counted


@dataclass(frozen=True, kw_only=True)
class PartInfo:
    """One finished Parquet file of a split.

    `content` is the sum, modulo 2^256, of the sha256 of each row: the order of rows does not show in it.
    `keys` are 64-bit hashes of the patch ids, for the search for duplicates.
    """

    split: str
    path: str  # relative to the dataset
    rows: int
    bytes: int
    counts: dict[str, int]
    content: int
    keys: list[int] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What stands in dataset.json. `counts` is split -> label -> rows; `parts` is path -> rows.

    `digest` names the content (every row's metadata and image hash), whatever the order or the row groups.
    """

    name: str
    card: dict[str, Any]
    generated: bool
    counts: dict[str, dict[str, int]]
    roles: dict[str, Role]
    vocabularies: dict[str, list[str]]
    digest: str
    parts: dict[str, int]
    view: str = "published"
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    @property
    def rows(self) -> int:
        return sum(self.parts.values())


def summarise(
    parts: Iterable[PartInfo],
    card: Card,
    *,
    generated: bool,
    view: str = "published",
    quarantined: Iterable[tuple[str, str]] = (),
    left_out: Iterable[tuple[str, str]] = (),
) -> DatasetInfo:
    """Joins the finished parts of a dataset. Raises DatasetError for a patch id that stands twice."""
    parts = sorted(parts, key=lambda part: part.path)
    _refuse_duplicates(parts)
    counts: dict[str, dict[str, int]] = {}
    for part in parts:
        ours = counts.setdefault(part.split, {})
        for label, n in part.counts.items():
            ours[label] = ours.get(label, 0) + n
    seen = {label for of_split in counts.values() for label in of_split if label != NO_LABEL}
    known = [label for label in card.classes if label in seen] + sorted(seen - set(card.classes))
    return DatasetInfo(
        name=card.name,
        card=card.model_dump(mode="json"),
        generated=generated,
        counts={split: dict(sorted(counts[split].items())) for split in sorted(counts)},
        roles={split: role for split, role in card.roles.items() if split in counts},
        vocabularies={
            "tissue": list(taxonomy.TISSUES),
            "biomarker": list(taxonomy.BIOMARKERS),
            "label": list(dict.fromkeys([*card.classes, *known])),
        },
        digest=content_digest(card.name, sum(p.rows for p in parts), sum(p.content for p in parts)),
        parts={part.path: part.rows for part in parts},
        view=view,
        quarantined=sorted(quarantined),
        left_out=sorted(left_out),
    )


def to_json(info: DatasetInfo) -> bytes:
    """dataset.json's bytes, the same for the same dataset."""
    return (json.dumps(asdict(info), indent=1, ensure_ascii=False) + "\n").encode()


def from_json(data: bytes, *, where: str) -> DatasetInfo:
    """dataset.json read back. Raises DatasetError for another schema version or a broken file."""
    try:
        tree = json.loads(data)
        version = tree["schema_version"]
    except (ValueError, KeyError, TypeError):
        raise DatasetError("dataset.json is broken", where=where, fix="prepare the dataset again") from None
    refuse_version(version, where=where)
    try:
        pairs = {key: [(path, why) for path, why in tree[key]] for key in ("quarantined", "left_out")}
        info = DatasetInfo(**(tree | pairs))  # which refuses keys that it does not know
        return pydantic.TypeAdapter(DatasetInfo).validate_python(vars(info))
    except pydantic.ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        said = f"dataset.json is broken: {key} is not what it should be"
        raise DatasetError(said, where=where, fix="prepare the dataset again") from None
    except (TypeError, KeyError, ValueError) as error:
        raise DatasetError(f"dataset.json is broken: {error}", where=where) from None


def refuse_version(version: object, *, where: str) -> None:
    """Raises DatasetError unless `version` is the one that this code writes."""
    if str(version) != str(SCHEMA_VERSION):
        raise DatasetError(
            f"these shards have schema version {version}, this his2lip reads {SCHEMA_VERSION}",
            where=where,
            fix="prepare the dataset again with this version",
        )


def row_digest(row: dict[str, Any]) -> int:
    """sha256 of a row's metadata (its image by its own sha256) as an integer, to be added up."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def id_key(patch_id: str) -> int:
    """A patch id as 64 bits."""
    return int.from_bytes(hashlib.blake2b(patch_id.encode(), digest_size=8).digest(), "big")


def content_digest(name: str, rows: int, content: int) -> str:
    """The dataset's digest from its number of rows and the sum of their `row_digest`s."""
    text = f"{name}\n{SCHEMA_VERSION}\n{rows}\n{content % 2**256:064x}"
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse_duplicates(parts: Iterable[PartInfo]) -> None:
    seen: set[int] = set()
    for part in parts:
        before = len(seen)
        seen.update(part.keys)
        if len(seen) != before + part.rows:
            raise DatasetError("a patch id stands here and in another shard", where=part.path)
