"""What a refactor must repeat: losses, digests, orders and identities, and files that must still be read.

`records/` is compared with what is computed now; `files/` was written by an earlier version. Where a change
is deliberate, `python -m tests.golden.make` writes both anew.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import records
from records import FILES, RECORDS

ROUNDING = 1e-5  # relative; what another machine's float32 arithmetic may change of a loss in 30 steps
OTHER_PIXELS = 1e-3  # relative; where the machine generates pixels that differ by a grey level here and there


def recorded(name: str) -> Any:
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


def as_json(tree: Any) -> Any:
    """`tree` as it is after a way through a file."""
    return json.loads(json.dumps(tree))


@pytest.fixture(scope="module")
def same_machine() -> bool:
    """Whether arithmetic here has the very last bits that were recorded."""
    return records.machine() == recorded("machine")


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twins")
    records.write_twins(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return records.write_checkpoint(tmp_path_factory.mktemp("golden") / "checkpoint")


# --- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "released"), [("training", False), ("training_released", True)])
def test_losses_of_thirty_steps_are_repeated(
    twins: Path, same_machine: bool, name: str, released: bool
) -> None:
    known, found = recorded(name), records.training(twins / "mihic", released=released)
    assert_close(found, known, tolerance(twins))
    if same_machine:
        assert found == known


def test_losses_of_two_ranks_are_repeated_and_are_those_of_one(
    twins: Path, same_machine: bool, tmp_path: Path
) -> None:
    known, one = recorded("training_two_ranks"), recorded("training")
    found = records.training_on_two_ranks(twins / "mihic", tmp_path)
    assert found["last_weights"] == found["other_rank"]
    assert_close(found, known, tolerance(twins))
    assert_close(found, one, tolerance(twins))
    if same_machine:
        assert found["first_weights"] == known["first_weights"]


def tolerance(twins: Path) -> float:
    same_pixels = records.twins(twins)["mihic"]["digest"] == recorded("twins")["mihic"]["digest"]
    return ROUNDING if same_pixels else OTHER_PIXELS


def assert_close(found: Mapping[str, Any], known: Mapping[str, Any], relative: float) -> None:
    assert len(known["loss"]) == records.STEPS
    for key in ("loss", "select_loss"):
        np.testing.assert_allclose(found[key], known[key], rtol=relative, err_msg=key)
    assert found["metrics_at_the_end"].keys() == known["metrics_at_the_end"].keys()


# --- datasets, order, draws --------------------------------------------------------------------------------


def test_generated_twins_have_the_recorded_content(twins: Path, same_machine: bool) -> None:
    known, found = recorded("twins"), as_json(records.twins(twins))
    if not same_machine:
        for tree in (*known.values(), *found.values()):
            del tree["digest"]
    assert found == known


def test_every_reader_prepares_the_recorded_content(tmp_path: Path) -> None:
    assert as_json(records.readers(tmp_path)) == recorded("readers")


def test_batches_hold_the_recorded_rows() -> None:
    assert records.order() == recorded("order")


def test_captions_and_augmentation_are_drawn_as_recorded() -> None:
    known, found = recorded("draws"), as_json(records.draws())
    for changes in zip(found["changes"].values(), known["changes"].values(), strict=True):
        jitters = [change.pop("jitter") for change in changes]
        np.testing.assert_allclose(*jitters, rtol=1e-4, atol=1e-7)
    assert found == known


# --- identities --------------------------------------------------------------------------------------------


def test_runs_encoders_and_sweeps_have_the_recorded_identities(checkpoint: Path) -> None:
    assert records.identities(checkpoint) == recorded("identities")


def test_sweep_identity_is_the_recorded_one_key_by_key() -> None:
    assert as_json(records.sweep_identity()) == recorded("sweep_identity")


# --- files of an earlier version ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compatible() -> dict[str, Any]:
    return recorded("compatible")


@pytest.mark.parametrize("name", records.GRID_DATASETS)
def test_earlier_shards_are_read(name: str, compatible: dict[str, Any]) -> None:
    found = as_json(records.shards_file(name))
    assert found["images_are_whole"]
    assert found == compatible["shards"][name]


def test_an_earlier_caption_bank_is_read_and_draws_the_same(compatible: dict[str, Any]) -> None:
    assert records.captions_file(FILES / "captions.json") == compatible["captions"]


def test_an_earlier_checkpoint_is_loaded_and_its_run_resumed(
    checkpoint: Path, compatible: dict[str, Any]
) -> None:
    known, found = dict(compatible["resume"]), records.resume_curve(checkpoint)
    assert found["loaded"] == found["weights"], "the weights that his2lip.json was written for"
    np.testing.assert_allclose(found.pop("loss"), known.pop("loss"), rtol=ROUNDING)
    assert found == known


def test_an_earlier_cache_is_used_without_an_image_forward(
    checkpoint: Path, compatible: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(FILES / "cache", tmp_path / "cache")
    found, cache = records.embed_committed(tmp_path / "cache", checkpoint)
    assert (cache.counts.images, cache.counts.crops) == (0, 0)
    assert found == compatible["embedded"]


def test_an_earlier_calibration_is_used(checkpoint: Path, compatible: dict[str, Any]) -> None:
    found = records.temperature(checkpoint, FILES / "calibration.json")
    assert found == compatible["temperature"] is not None


def test_an_earlier_calibration_is_fitted_again(checkpoint: Path, tmp_path: Path) -> None:
    known = json.loads((FILES / "calibration.json").read_text())
    del known["sha256"]  # of the file
    found = as_json(vars(records.fit_calibration(checkpoint, tmp_path)))
    figures = {key for key, value in known.items() if isinstance(value, float)}
    # Later versions record more than the keys of an earlier one.
    assert {k: v for k, v in found.items() if k in known.keys() - figures} == {
        k: v for k, v in known.items() if k not in figures
    }
    assert found["temperature"] == pytest.approx(known["temperature"], rel=1e-3)


def test_an_earlier_unfinished_prepare_is_resumed(compatible: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(FILES / "unfinished", tmp_path / "out")
    (part,) = (tmp_path / "out").glob("*/*.parquet")
    before = part.stat()
    told: list[tuple[int, int]] = []
    found = records.prepare_flat(
        tmp_path / "in", tmp_path / "out", progress=lambda done, total: told.append((done, total))
    )
    assert told[0] == (7, 21), "the files of the finished part count as done"
    after = part.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino), "it was not written anew"
    assert found == compatible["prepared"]
    assert not (tmp_path / "out/_progress").exists()


def test_an_earlier_sweep_study_is_taken_up(tmp_path: Path) -> None:
    url = records.study_url(tmp_path, recorded("sweep_identity"))
    assert records.reopen_study(url) == "golden"


# --- the grid ----------------------------------------------------------------------------------------------


def test_grid_repeats_its_cells_cache_and_leaderboard(
    ray_local: None, checkpoint: Path, tmp_path: Path
) -> None:
    config = records.grid_config(tmp_path, checkpoint)
    result = records.run_golden_grid(config)
    assert records.grid(result, config) == recorded("grid")
    known, found = records.read_csv(RECORDS / "leaderboard.csv"), records.leaderboard(result)
    assert [list(row) for row in found] == [list(row) for row in known], "the same columns and rows"
    for row, wanted in zip(found, known, strict=True):
        for key, value in wanted.items():
            assert same(row[key], value), (row["model"], row["dataset"], row["protocol"], key)


@pytest.mark.parametrize("finished", [True, False])
def test_grid_finds_an_earlier_cell_finished_or_scores_it_from_an_earlier_cache(
    ray_local: None, checkpoint: Path, tmp_path: Path, finished: bool
) -> None:
    config = records.grid_config(
        tmp_path, checkpoint, datasets=("mist",), baselines=(), protocols=("default",)
    )
    shutil.copytree(FILES / "cache", config.cache)
    if finished:
        shutil.copytree(FILES / "cells", Path(config.folder, "cells"))
    result = records.run_golden_grid(config)
    assert [(c.protocol, c.cell in result.reused) for c in result.cells] == [("default", finished)]
    assert (result.counts.images, result.counts.sentences) == (0, 0)
    known = {c["protocol"]: c for c in records.read_csv(RECORDS / "leaderboard.csv") if c["dataset"] == "mist"
             and c["model"] == "golden"}  # fmt: skip
    for row in records.leaderboard(result):
        assert all(same(row[key], value) for key, value in known[row["protocol"]].items())


def same(found: str, wanted: str) -> bool:
    """Equal, or figures that differ by 1e-6 of themselves at most."""
    if found == wanted:
        return True
    try:
        return "." in wanted and float(found) == pytest.approx(float(wanted), rel=1e-6)
    except ValueError:
        return False
