"""Shards: the schema, dataset.json, the writer and the reader."""

from his2lip.data.shards.info import (
    NO_LABEL,
    DatasetInfo,
    PartInfo,
    content_digest,
    id_key,
    origin_of,
    row_digest,
    summarise,
    title_of,
    to_json,
)
from his2lip.data.shards.labels import (
    STAININGS,
    Staining,
    Statement,
    column_values,
    label_values,
    labelled_rows,
    statement,
)
from his2lip.data.shards.reader import RowGroup, ShardSet, open_shards, read_row_group
from his2lip.data.shards.scale import PatchScale, patch_scale
from his2lip.data.shards.schema import SCHEMA, WITHOUT_IMAGE, Patch
from his2lip.data.shards.splits import LEARNING_ROLES, resolve_split, splits_with_role
from his2lip.data.shards.writer import INFO, PART_BYTES, ROW_GROUP_BYTES, PartWriter, ShardWriter, claim

__all__ = [
    "INFO",
    "LEARNING_ROLES",
    "NO_LABEL",
    "PART_BYTES",
    "ROW_GROUP_BYTES",
    "SCHEMA",
    "STAININGS",
    "WITHOUT_IMAGE",
    "DatasetInfo",
    "PartInfo",
    "PartWriter",
    "Patch",
    "PatchScale",
    "RowGroup",
    "ShardSet",
    "ShardWriter",
    "Staining",
    "Statement",
    "claim",
    "column_values",
    "content_digest",
    "id_key",
    "label_values",
    "labelled_rows",
    "open_shards",
    "origin_of",
    "patch_scale",
    "read_row_group",
    "resolve_split",
    "row_digest",
    "splits_with_role",
    "statement",
    "summarise",
    "title_of",
    "to_json",
]
