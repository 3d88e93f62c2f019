"""`sampling: released` gives each patch one caption by its place among the sorted names of its pair."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from his2lip.data.captions.bank import CaptionBank, RowCaptions, Subject
from his2lip.errors import DatasetError

BANK = CaptionBank({("Tumor", "CD3"): ("a", "b", "c"), ("Stroma", "CD3"): ("d", "e")})
ROWS = st.lists(
    st.tuples(st.text(min_size=1, max_size=6), st.sampled_from(["Tumor", "Stroma"])),
    unique_by=lambda row: row[0],
    max_size=30,
)


def table(rows: list[tuple[str, str | None]], biomarker: str | None = "CD3") -> pa.Table:
    ids, tissues = zip(*rows, strict=True) if rows else ((), ())
    columns = {"patch_id": ids, "tissue": tissues, "biomarker": [biomarker] * len(rows)}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


@given(ROWS, st.integers(0, 9), st.integers(0, 99))
def test_captions_go_round_by_sorted_names_whatever_epoch_seed_and_order(
    rows: list[tuple[str, str]], epoch: int, seed: int
) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    captions = RowCaptions(BANK, table(shuffled))
    for tissue in ("Tumor", "Stroma"):
        lines = BANK.captions[tissue, "CD3"]
        names = sorted((name for name, own in rows if own == tissue), key=str.encode)
        for k, name in enumerate(names):
            assert captions.draw(seed, epoch, name, Subject(tissue, "CD3")) == lines[k % len(lines)]


def test_pair_without_captions_follows_the_banks_rule() -> None:
    rows: list[tuple[str, str | None]] = [("p", "Alveoli"), ("q", None)]
    captions = RowCaptions(CaptionBank(BANK.captions, "template"), table(rows))
    assert (
        captions.draw(0, 0, "p", Subject("Alveoli", "CD3"))
        == CaptionBank.templates().lines("Alveoli", "CD3")[0]
    )
    with pytest.raises(DatasetError) as refused:
        RowCaptions(BANK, table(rows)).draw(0, 0, "q", Subject(None, "CD3"))
    assert refused.value.key == "missing"
    assert "CD3" in refused.value.what
