"""Which split a name or a role means, and which rows of it have a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from his2lip.data.cards import Card, Role
from his2lip.data.shards import (
    LEARNING_ROLES,
    Patch,
    ShardSet,
    ShardWriter,
    labelled_rows,
    open_shards,
    resolve_split,
    splits_with_role,
)
from his2lip.errors import DatasetError

ALL: tuple[Role, ...] = ("train", "select", "report")


def shards(folder: Path, roles: dict[str, str]) -> ShardSet:
    card = Card.model_validate(
        {"name": "toy", "reader": "folder", "splits": {name: {"role": role} for name, role in roles.items()}}
    )
    with ShardWriter(folder, card=card) as writer:
        for split in roles:
            writer.add(
                Patch(patch_id=f"toy/{split}", image=b"", dataset="toy", split=split, width=8, height=8)
            )
    return open_shards(folder)


@pytest.mark.parametrize(
    ("name", "found"), [("fold-1", "fold-1"), ("val", "val"), ("select", "val"), ("report", "test")]
)
def test_a_split_is_found_by_its_name_or_as_the_only_one_of_its_role(
    tmp_path: Path, name: str, found: str
) -> None:
    opened = shards(tmp_path, {"fold-1": "train", "fold-2": "train", "val": "select", "test": "report"})
    assert resolve_split(opened, name, roles=ALL, key="data.split") == found


def test_a_split_s_name_comes_before_a_role_s(tmp_path: Path) -> None:
    opened = shards(tmp_path, {"select": "report", "val": "select"})
    assert resolve_split(opened, "select", roles=ALL, key="split") == "select"
    with pytest.raises(DatasetError) as refused:
        resolve_split(opened, "select", roles=("select",), key="split")
    assert (refused.value.key, refused.value.where) == ("split", opened.uri)


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("test", LEARNING_ROLES),  # another role
        ("report", LEARNING_ROLES),  # the same, by its role
        ("fold-1", ("select",)),
        ("train", ALL),  # two splits have this role
        ("absent", ALL),
    ],
)
def test_other_roles_several_splits_and_unknown_names_are_refused_with_what_may_be_read(
    tmp_path: Path, name: str, roles: Sequence[Role]
) -> None:
    opened = shards(tmp_path, {"fold-1": "train", "fold-2": "train", "val": "select", "test": "report"})
    with pytest.raises(DatasetError) as refused:
        resolve_split(opened, name, roles=roles, key="data.select", or_else="null")
    assert (refused.value.key, refused.value.where) == ("data.select", opened.uri)
    may_be_read = {"fold-1", "fold-2", "val", "test"} if roles == ALL else {"val"}
    assert all(split in (refused.value.fix or "") for split in (*may_be_read, "null"))
    assert ("test" in (refused.value.fix or "")) == (roles == ALL)


def test_splits_of_a_role_keep_their_order_without_the_one_left_out() -> None:
    roles = {"b": "train", "c": "report", "a": "train"}
    assert splits_with_role(roles, "train") == ["b", "a"]
    assert splits_with_role(roles, "train", besides="b") == ["a"]


def table() -> pa.Table:
    return pa.table(
        {
            "label": ["neg", None, "pos", "other", "pos"],
            "tissue": ["Tumor", "Tumor", "Stroma", None, "Tumor"],
            "biomarker": ["CD3", "CD8", "CD3", "CD3", None],
        }
    )


def test_rows_have_the_number_of_their_label_and_others_are_left_out() -> None:
    rows, numbers = labelled_rows(table(), "label", {"neg": 0, "pos": 1})
    assert (rows.tolist(), numbers.tolist()) == ([0, 2, 4], [0, 1, 1])
    rows, numbers = labelled_rows(table(), "label", {"neg": 0, "pos": 1}, where={"tissue": ["Tumor"]})
    assert (rows.tolist(), numbers.tolist()) == ([0, 4], [0, 1])


def test_a_pair_needs_both_of_its_labels() -> None:
    rows, numbers = labelled_rows(table(), "pair", {"Stroma CD3": 4, "Tumor CD3": 7, "Tumor CD8": 8})
    assert (rows.tolist(), numbers.tolist()) == ([0, 1, 2], [7, 8, 4])


def test_no_label_fits() -> None:
    rows, numbers = labelled_rows(table(), "label", {"x": 0})
    assert (len(rows), len(numbers)) == (0, 0)
    assert (rows.dtype, numbers.dtype) == ("int64", "int64")


def test_a_column_that_shards_do_not_have_is_named() -> None:
    with pytest.raises(DatasetError) as refused:
        labelled_rows(table(), "label", {"pos": 1}, where={"organ": ["lung"]})
    assert refused.value.key == "organ"
