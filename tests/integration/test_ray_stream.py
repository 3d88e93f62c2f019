"""The training stream through real Ray Data gives the same batches as reading in this process."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))  # stream_data, shared with its tests
from stream_data import OPTIONS, stream, write_patches

from his2lip.data.captions.bank import CaptionBank
from his2lip.data.shards.reader import open_shards
from his2lip.data.stream.batch import Batch
from his2lip.data.stream.ray_reader import _PACE_S, _Pace, read_by_ray
from his2lip.data.stream.train_stream import StreamOptions, TrainStream
from his2lip.errors import DatasetError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_patches(tmp_path_factory.mktemp("shards") / "set", patches=300, row_group_bytes=16 << 10)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert [batch.step for batch in ours] == [batch.step for batch in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.patch_ids == other.patch_ids
        assert one.captions == other.captions
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.tissue, other.tissue)
        assert torch.equal(one.biomarker, other.biomarker)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(("start", "head_bytes"), [(0, 0), (7, 100 << 10), (18, 0)])
def test_ray_and_local_reading_give_equal_batches_over_several_epochs(
    shards: str, start: int, head_bytes: int
) -> None:
    options = {"start_step": start, "stop_step": 40, "balance": 0.5}
    by_ray = stream(shards, loader="ray", head_bytes=head_bytes, **options)
    with by_ray, stream(shards, **options) as here:
        assert_same(list(by_ray), list(here))


@pytest.mark.usefixtures("ray_local")
@pytest.mark.slow
def test_two_workers_of_ray_train_on_two_cpus_read_their_shares_of_one_order(
    shards: str, tmp_path: Path
) -> None:
    """The workers use both CPUs, so reading must not wait for a free CPU."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def work(options: dict[str, Any]) -> None:
        import ray.train

        context = ray.train.get_context()
        rank, world = context.get_world_rank(), context.get_world_size()
        bank = CaptionBank.templates()
        stream_options = StreamOptions(**options)
        with TrainStream(shards, "train", bank, stream_options, rank=rank, world=world) as source:
            batches = list(source.batches(0, 25))
        kept = {"images": [b.images for b in batches], "ids": [b.patch_ids for b in batches]}
        torch.save(kept, tmp_path / f"{rank}.pt")

    TorchTrainer(
        work,
        train_loop_config=OPTIONS | {"loader": "ray", "head_bytes": 0},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="stream", storage_path=str(tmp_path / "runs")),
    ).fit()
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    with stream(shards, stop_step=25) as alone:
        for step, batch in enumerate(alone):
            assert [i for part in parts for i in part["ids"][step]] == batch.patch_ids
            assert torch.equal(torch.cat([part["images"][step] for part in parts]), batch.images)


@pytest.mark.usefixtures("ray_local")
def test_closing_in_the_middle_of_an_epoch_stops_rays_execution_and_all_threads(shards: str) -> None:
    from ray._private.test_utils import wait_for_condition

    before = {thread.name for thread in threading.enumerate()}
    source = stream(shards, loader="ray", stop_step=900, head_bytes=0)
    batches = iter(source)
    next(batches)
    assert any(name.startswith("StreamingExecutor") for name in _threads() - before)
    wait_for_condition(lambda: bool(_reading_processes()), timeout=10)
    source.close()
    wait_for_condition(lambda: not {n for n in _threads() - before if _is_ours(n)}, timeout=10)
    wait_for_condition(lambda: not _reading_processes(), timeout=20)


@pytest.mark.usefixtures("ray_local")
def test_closing_while_ray_is_starting_stops_it_too(shards: str) -> None:
    from ray._private.test_utils import wait_for_condition

    before = {thread.name for thread in threading.enumerate()}
    source = stream(shards, loader="ray", stop_step=900, head_bytes=200 << 10)
    batches = iter(source)
    next(batches)
    source.close()
    wait_for_condition(lambda: not {n for n in _threads() - before if _is_ours(n)}, timeout=10)


@pytest.mark.usefixtures("ray_local")
def test_rays_scheduling_loop_is_paced(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop runs in a thread of the rank. Without a pause it would use a whole core."""
    turns = []
    pace = _Pace.on_execution_step

    def recorded(self: _Pace, executor: object) -> None:
        pace(self, executor)
        turns.append(time.monotonic())

    monkeypatch.setattr(_Pace, "on_execution_step", recorded)
    with stream(shards, loader="ray", head_bytes=0, stop_step=60) as source:
        assert len(list(source)) == 60
    assert len(turns) > 3
    assert turns[-1] - turns[0] > 0.9 * _PACE_S * (len(turns) - 1)


@pytest.mark.usefixtures("ray_local")
def test_an_epoch_larger_than_the_object_store_is_read(tmp_path: Path) -> None:
    """80 MB of incompressible images in row groups of 8 MB, with a sixteenth of 160 MB of object store."""
    uri = write_patches(
        tmp_path / "large", patches=160, sizes=(416,), formats=("noise",), row_group_bytes=8 << 20
    )
    by_ray = stream(uri, loader="ray", head_bytes=0, world=16, lanes=16)
    with by_ray, stream(uri, world=16, lanes=16) as here:
        assert_same(list(by_ray), list(here))


@pytest.mark.usefixtures("ray_local")
def test_a_shard_that_vanishes_is_reported_by_its_path(tmp_path: Path) -> None:
    shards = open_shards(write_patches(tmp_path / "set", patches=60))
    groups = shards.row_groups("train")
    (tmp_path / "set" / "train" / "part-00000.parquet").unlink()
    with pytest.raises(DatasetError) as caught:
        list(read_by_ray(shards.filesystem, groups, head_bytes=0, ranks=1))
    assert "part-00000.parquet" in str(caught.value.where)
    assert "Traceback" not in str(caught.value)


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def _is_ours(name: str) -> bool:
    return name.startswith(("StreamingExecutor", "his2lip", "iter_threaded"))


def _reading_processes() -> list[str]:
    """The processes of Ray that read. A worker process has the name of its task."""
    titles = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            titles.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return [title for title in titles if title.startswith("ray::Read_RowGroups")]
