"""A checkpoint remembers what it was trained on, through blends, exports and conversions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_factory import native_config

from his2lip.cli.models import blend_models, convert_model, export_model, show_model
from his2lip.errors import CheckpointError
from his2lip.models.architecture import build_clip
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.encoder import DualEncoder
from his2lip.models.preprocess import Preprocess
from his2lip.models.provenance import read_meta
from his2lip.models.registered import training_record
from his2lip.models.tokenizer import build_tokenizer
from his2lip.models.trained_on import RECORD, TrainingRecord, case_keys, image_keys

SHA256 = [f"{i:064x}"[::-1] for i in range(1, 30)]
names = st.lists(st.text(min_size=1), max_size=3, unique=True)
keys = st.lists(st.integers(1, 2**64 - 1), max_size=9).map(lambda k: np.unique(np.array(k, dtype=np.uint64)))
records = st.builds(
    lambda datasets, images, cases, complete: TrainingRecord(
        tuple(datasets), images=images, cases=cases, complete=complete
    ),
    names, keys, keys, st.booleans(),
)  # fmt: skip
FIRST = TrainingRecord(("a",), ("d" * 64,), image_keys(SHA256[:9]), np.sort(case_keys("a", ["P1", "P2"])))
SECOND = TrainingRecord(("b",), ("e" * 64,), image_keys(SHA256[5:20]), case_keys("b", ["P1"]))


def model(seed: int = 1) -> DualEncoder:
    config = native_config()
    preprocess = Preprocess(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), resize_mode="squash")
    return DualEncoder(
        build_clip(config, seed=seed), name=f"small-{seed}", config=config, preprocess=preprocess,
        tokenizer=build_tokenizer(config),
    ).eval()  # fmt: skip


def same(one: TrainingRecord | None, other: TrainingRecord | None) -> bool:
    return one is not None and other is not None and one.data == other.data


@settings(max_examples=25)
@given(records)
def test_a_record_is_equal_after_a_round_trip(record: TrainingRecord) -> None:
    read = TrainingRecord.from_bytes(record.data, where="here")
    assert (read.datasets, read.complete) == (record.datasets, record.complete)
    assert read.images.tolist() == record.images.tolist()
    assert read.cases.tolist() == record.cases.tolist()
    assert read.data == record.data


@settings(max_examples=25)
@given(records, records)
def test_a_union_has_what_either_has_and_is_complete_where_both_are(
    one: TrainingRecord, other: TrainingRecord
) -> None:
    both = TrainingRecord.union([one, None, other])
    assert both is not None
    assert set(both.datasets) == {*one.datasets, *other.datasets}
    assert set(both.images.tolist()) == {*one.images.tolist(), *other.images.tolist()}
    assert set(both.cases.tolist()) == {*one.cases.tolist(), *other.cases.tolist()}
    assert both.complete == (one.complete and other.complete)


def test_a_record_of_the_largest_dataset_is_small_and_names_no_case() -> None:
    cases = [f"patient-{i}" for i in range(200)]
    images = np.unique(image_keys(f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}" for i in range(195_001)))
    record = TrainingRecord(("mihic",), images=images, cases=np.unique(case_keys("mihic", cases)))
    assert len(record.images) == 195_001
    assert len(record.data) < 1_600_000
    assert b"patient" not in record.data


def test_cases_of_two_datasets_are_two_and_an_unknown_case_is_none() -> None:
    assert case_keys("a", ["P1", None]).tolist()[1] == 0
    assert case_keys("a", ["P1"]) != case_keys("b", ["P1"])


@pytest.mark.parametrize("fault", ["missing", "damaged", "another"])
def test_a_record_that_is_not_the_checkpoints_is_refused(tmp_path: Path, fault: str) -> None:
    folder = save_checkpoint(tmp_path / "best", model(), meta={}, trained_on=FIRST)
    assert same(training_record(str(folder)), FIRST)
    if fault == "missing":
        (folder / RECORD).unlink()
    else:
        (folder / RECORD).write_bytes(SECOND.data if fault == "another" else FIRST.data[:-1])
    with pytest.raises(CheckpointError) as refused:
        training_record(str(folder))
    assert refused.value.key == RECORD


def test_bytes_that_are_no_record_are_refused() -> None:
    for data in (b"", FIRST.data[:40], b"\x93NUMPY"):
        with pytest.raises(CheckpointError) as refused:
            TrainingRecord.from_bytes(data, where="here")
        assert refused.value.key == RECORD


def test_a_checkpoint_of_an_earlier_version_is_known_to_be_incomplete(tmp_path: Path) -> None:
    meta = {"data_digest": "f" * 64, "trained_on": {"sha256": "of a file that was not copied"}}
    record = training_record(str(save_checkpoint(tmp_path / "old", model(), meta=meta)))
    assert record is not None
    assert (record.digests, record.complete) == (("f" * 64,), False)
    assert training_record(str(save_checkpoint(tmp_path / "none", model(), meta={}))) is None
    assert training_record("tiny") is None


def test_blends_exports_and_conversions_keep_the_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(save_checkpoint(tmp_path / "base", model(1), meta={}, trained_on=FIRST))
    tuned = str(save_checkpoint(tmp_path / "tuned", model(2), meta={}, trained_on=SECOND))
    blend_models(base, tuned, alpha=0.5, out=tmp_path / "blend")
    both = training_record(str(tmp_path / "blend"))
    assert same(both, TrainingRecord.union([FIRST, SECOND]))
    for format in ("open_clip", "transformers"):
        out, again = tmp_path / format, tmp_path / f"{format}-again"
        export_model(str(tmp_path / "blend"), out, format=format)  # type: ignore[arg-type]
        convert_model(out, again, source=format)  # type: ignore[arg-type]
        assert same(training_record(str(out)), both)
        assert same(training_record(str(again)), both)
        assert read_meta(again)["trained_on"]["images"] == 20
    show_model(str(again))
    assert "20 images, 3 cases of a, b" in capsys.readouterr().out
    assert json.loads((again / "his2lip.json").read_text())["trained_on"]["datasets"] == ["a", "b"]
