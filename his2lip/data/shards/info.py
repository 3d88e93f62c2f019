"""dataset.json: the description of a prepared dataset, stored beside its shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import pydantic

from his2lip import taxonomy
from his2lip.config import SEAL, sealed, unsealed
from his2lip.data.cards import Card, Role, is_project_card
from his2lip.errors import DatasetError

SCHEMA_VERSION = 1
NO_LABEL = "(none)"  # the key in `counts` of rows without a label


def title_of(dataset: str, *, generated: bool) -> str:
    """A dataset's name on pages, marked where its images are generated: `bci (generated)`."""
    return f"{dataset} (generated)" if generated else dataset


def origin_of(dataset: str, *, generated: bool) -> str:
    """A dataset's name in provenance and in names of figures, where a generated twin has its own."""
    return f"{dataset}-generated" if generated else dataset


@dataclass(frozen=True, kw_only=True)
class PartInfo:
    """One finished Parquet file of a split.

    path     relative to the dataset's folder
    bytes    total size of the encoded images
    counts   label, or NO_LABEL -> rows
    content  sum of the rows' `row_digest`s modulo 2^256, which does not depend on their order
    keys     `id_key` of each patch id, to find duplicates
    """

    split: str
    path: str
    rows: int
    bytes: int
    counts: dict[str, int]
    content: int
    keys: list[int] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The content of dataset.json.

    card          the dataset card as plain JSON values
    project_card  whether that is the project's card of this name, unchanged; None: an earlier version
                  wrote the file
    generated     whether the images are generated, not real
    counts        split -> label, or NO_LABEL -> rows
    roles         split -> role
    vocabularies  column -> its possible values, in the order of their class numbers
    digest        identity of the content: all rows' metadata and image hashes, in any order
    parts         path of each shard relative to the dataset's folder -> rows
    view          `published`, or the view by which the patches were cut
    quarantined   (path, reason) of files that could not be used
    left_out      (place, reason) of parts of files that were not used
    """

    __pydantic_config__: ClassVar = pydantic.ConfigDict(extra="forbid")

    name: str
    card: dict[str, Any]
    generated: bool
    counts: dict[str, dict[str, int]]
    roles: dict[str, Role]
    vocabularies: dict[str, list[str]]
    digest: str
    parts: dict[str, int]
    view: str = "published"
    quarantined: list[tuple[str, str]]
    left_out: list[tuple[str, str]]
    project_card: bool | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def title(self) -> str:
        """The name, marked where the images are generated."""
        return title_of(self.name, generated=self.generated)

    @property
    def origin(self) -> str:
        """The dataset's name in the provenance of models, where a generated twin has a name of its own."""
        return origin_of(self.name, generated=self.generated)

    @property
    def rows(self) -> int:
        """Number of patches in all splits."""
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
    """The description of a dataset from its finished parts. Raises DatasetError for a repeated patch id."""
    parts = sorted(parts, key=lambda part: part.path)
    _refuse_duplicates(parts)
    counts: dict[str, dict[str, int]] = {}
    for part in parts:
        of_split = counts.setdefault(part.split, {})
        for label, n in part.counts.items():
            of_split[label] = of_split.get(label, 0) + n
    seen = {label for labels in counts.values() for label in labels if label != NO_LABEL}
    return DatasetInfo(
        name=card.name,
        card=card.model_dump(mode="json"),
        generated=generated,
        counts={split: dict(sorted(counts[split].items())) for split in sorted(counts)},
        roles={split: role for split, role in card.roles.items() if split in counts},
        vocabularies={
            "tissue": list(taxonomy.TISSUES),
            "biomarker": list(taxonomy.BIOMARKERS),
            "label": [*card.classes, *sorted(seen - set(card.classes))],
        },
        digest=content_digest(card.name, sum(p.rows for p in parts), sum(p.content for p in parts)),
        parts={part.path: part.rows for part in parts},
        view=view,
        quarantined=sorted(quarantined),
        left_out=sorted(left_out),
        project_card=is_project_card(card),
    )


def to_json(info: DatasetInfo) -> bytes:
    """The bytes of dataset.json; equal infos give equal bytes."""
    return (json.dumps(sealed(asdict(info)), indent=1, ensure_ascii=False) + "\n").encode()


def from_json(data: bytes, *, where: str) -> DatasetInfo:
    """Reads the bytes of dataset.json; `where` is the dataset's place, for messages.

    Raises DatasetError for another schema version, and for a file that is damaged; its `key` is the first key
    at fault.
    """
    try:
        tree = json.loads(data)
        version = tree["schema_version"]
    except (ValueError, KeyError, TypeError):
        what = "dataset.json is damaged: it is not JSON with a `schema_version`"
        raise DatasetError(what, where=where, key="schema_version", fix="prepare the dataset again") from None
    refuse_version(version, where=where)
    try:
        info = pydantic.TypeAdapter(DatasetInfo).validate_python(
            {key: value for key, value in tree.items() if key != SEAL}
        )
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        what = f"dataset.json is damaged: `{key}`: {first['msg']}"
        raise DatasetError(what, where=where, key=key, fix="prepare the dataset again") from None
    try:
        unsealed(tree)
    except ValueError as error:
        what = f"dataset.json is damaged: {error}"
        raise DatasetError(what, where=where, key=SEAL, fix="prepare the dataset again") from None
    return info


def refuse_version(version: object, *, where: str) -> None:
    """Raises DatasetError unless `version` is SCHEMA_VERSION."""
    if str(version) != str(SCHEMA_VERSION):
        raise DatasetError(
            f"the shards have schema version {version}, and this version of his2lip reads {SCHEMA_VERSION}",
            where=where,
            key="schema_version",
            fix="prepare the dataset again with this version of his2lip",
        )


def row_digest(row: dict[str, Any]) -> int:
    """sha256 of a row without its image as an integer; its column `sha256` represents the image."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def id_key(patch_id: str) -> int:
    """A 64-bit hash of a patch id."""
    return int.from_bytes(hashlib.blake2b(patch_id.encode(), digest_size=8).digest(), "big")


def content_digest(name: str, rows: int, content: int) -> str:
    """The dataset's digest from its name, its number of rows, and the sum of their `row_digest`s."""
    text = f"{name}\n{SCHEMA_VERSION}\n{rows}\n{content % 2**256:064x}"
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse_duplicates(parts: Iterable[PartInfo]) -> None:
    seen: set[int] = set()
    for part in parts:
        before = len(seen)
        seen.update(part.keys)
        if len(seen) != before + part.rows:
            what = "a patch id is in this shard and in another one"
            raise DatasetError(what, where=part.path, key="patch_id")
