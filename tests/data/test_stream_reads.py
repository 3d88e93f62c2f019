"""Reading ahead of need: order, errors in their place, bounded memory, clean ends."""

from __future__ import annotations

import threading
from collections.abc import Generator

import numpy as np
import pyarrow as pa
import pytest

from his2lip.data.stream.order import Plan
from his2lip.data.stream.row_groups import ReadAhead, RowBuffer, Rows, unpack


def table(images: list[bytes]) -> pa.Table:
    count = len(images)
    ids = [f"set/{i}" for i in range(count)]
    columns = {
        "patch_id": ids,
        "tissue": ["Tumor"] * count,
        "biomarker": pa.array([None] * count, pa.string()),
        "label": ["pos"] * count,
        "score": pa.array([None] * count, pa.string()),
        "stain": ["DAB"] * count,
    }
    return pa.table({"image": pa.array(images, pa.binary())} | columns)


@pytest.mark.parametrize("copy", [True, False])
def test_unpacked_images_are_views_of_one_buffer_whatever_the_chunks_and_slices(copy: bool) -> None:
    images = [bytes([i]) * (i + 1) for i in range(10)]
    whole = table(images)
    pieces = pa.concat_tables([whole.slice(2, 3), whole.slice(7, 2)])
    for given, expected in (
        (whole, images),
        (whole.slice(3, 4), images[3:7]),
        (pieces, images[2:5] + images[7:9]),
    ):
        rows = unpack(given, "here", copy=copy)
        assert [bytes(rows.image(i)) for i in range(len(expected))] == expected
        assert rows.patch_ids == given.column("patch_id").to_pylist()
        assert rows.biomarkers == [None] * len(expected)


def test_a_generator_is_drawn_ahead_in_order_and_its_error_comes_in_its_place() -> None:
    reached = threading.Event()

    def numbers() -> Generator[int, None, None]:
        yield from range(3)
        reached.set()
        raise OSError("disk gone")

    ahead = ReadAhead(numbers(), depth=4)
    assert reached.wait(timeout=10), "the fourth item is drawn before the first is asked for"
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    assert not ahead.has_arrived()
    with pytest.raises(OSError, match="disk gone"):
        next(ahead)
    ahead.close()


def test_closing_ends_the_generator_and_its_thread() -> None:
    before = set(threading.enumerate())
    closed = []

    def numbers() -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    ahead = ReadAhead(numbers(), depth=3)
    next(ahead)
    ahead.close()
    assert closed == [True]
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("balance", [0.0, 0.7])
def test_the_row_buffer_keeps_no_more_than_it_has_room_for_and_nothing_at_the_end(balance: float) -> None:
    plan = Plan(
        [40] * 50, seed=2, batch_size=32, lanes=4, window=2, pairs=np.arange(2000) % 7, balance=balance
    )
    lanes, steps = plan.rank_lanes(0, 2), range(5, 3 * plan.steps_per_epoch - 3)
    reads = plan.reads(steps.start, steps.stop, lanes)
    rows = [Rows(memoryview(b""), [0], *[[]] * 6, str(group)) for group in reads.group.tolist()]
    buffer = RowBuffer(plan, lanes, reads, ReadAhead((row for row in rows), depth=2))
    most = 0
    for step in steps:
        picks = buffer.pick(step)
        expected = plan.share(step, lanes).rows.reshape(-1)
        assert [int(pick.rows.where) for pick in picks] == plan.group_of(expected).tolist()
        assert [pick.row + plan.starts[int(pick.rows.where)] for pick in picks] == expected.tolist()
        buffer.fill()
        most = max(most, len(buffer))
    assert most <= len(lanes) * (plan.window + 1) + 4
    assert len(buffer) == 0
    buffer.close()
