"""The plan of an epoch covers every row, is cut evenly by ranks, and resumes at any step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from his2lip.data.stream.order import Plan
from his2lip.errors import ConfigError, DatasetError


@st.composite
def plans(draw: st.DrawFn, *, balanced: bool = False) -> Plan:
    sizes = draw(st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(lambda s: sum(s) >= 8))
    rows = sum(sizes)
    lanes = draw(st.sampled_from([lanes for lanes in (1, 2, 4, 8) if lanes <= rows]))
    seed, window = draw(st.integers(0, 2**40)), draw(st.integers(0, 3))
    batch_size = lanes * draw(st.integers(1, rows // lanes))
    if not balanced:
        return Plan(sizes, seed=seed, batch_size=batch_size, lanes=lanes, window=window)
    pairs = np.array(draw(st.lists(st.integers(-1, 5), min_size=rows, max_size=rows)))
    balance = draw(st.floats(0.01, 1.0))
    options = {"pairs": pairs, "balance": balance}
    return Plan(sizes, seed=seed, batch_size=batch_size, lanes=lanes, window=window, **options)


def epoch_rows(plan: Plan, epoch: int) -> np.ndarray:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return np.concatenate([plan.batch(step) for step in steps])


@given(plans(), st.integers(0, 3))
def test_an_epoch_covers_each_row_at_most_once_and_all_but_the_remainder(plan: Plan, epoch: int) -> None:
    rows = epoch_rows(plan, epoch)
    assert len(np.unique(rows)) == len(rows)
    assert len(rows) == plan.rows_per_epoch - plan.rows_per_epoch % plan.batch_size
    assert rows.min() >= 0
    assert rows.max() < plan.rows_per_epoch


@given(plans(), st.integers(0, 50), st.data())
def test_slices_of_ranks_tile_the_global_batch(plan: Plan, step: int, data: st.DataObject) -> None:
    world = data.draw(st.sampled_from([w for w in (1, 2, 4, 8) if plan.lanes % w == 0]))
    slices = [plan.share(step, plan.rank_lanes(rank, world)).rows.reshape(-1) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(slices), plan.batch(step))
    assert {len(part) for part in slices} == {plan.batch_size // world}


@given(plans(balanced=True), st.integers(0, 30))
def test_any_start_is_the_tail_of_the_uninterrupted_plan(plan: Plan, start: int) -> None:
    walked = [plan.batch(step) for step in range(start + 4)]
    fresh = Plan(plan.sizes, seed=plan.seed, batch_size=plan.batch_size, lanes=plan.lanes, window=plan.window)
    fresh._weights = plan._weights
    for step in range(start, start + 4):
        np.testing.assert_array_equal(fresh.batch(step), walked[step])


@settings(deadline=None)
@given(plans(balanced=True), st.integers(0, 20), st.integers(0, 20), st.data())
def test_reads_name_exactly_the_row_groups_that_the_steps_take(
    plan: Plan, start: int, steps: int, data: st.DataObject
) -> None:
    world = data.draw(st.sampled_from([w for w in (1, 2, 4, 8) if plan.lanes % w == 0]))
    lanes = plan.rank_lanes(world - 1, world)
    wanted: Counter[tuple[int, int, int]] = Counter()
    for step in range(start, start + steps):
        for lane, rows in zip(lanes, plan.share(step, lanes).rows, strict=True):
            for group in plan.group_of(rows):
                wanted[plan.epoch_of(step), plan.reading_lane(lane, lanes), int(group)] += 1
    reads = plan.reads(start, start + steps, lanes)
    keys = list(zip(*(column.tolist() for column in reads[:3]), strict=True))
    assert len(set(keys)) == len(keys)
    assert dict(zip(keys, reads.uses.tolist(), strict=True)) == dict(wanted)


def test_short_lanes_of_a_rank_share_the_reads_of_a_small_split() -> None:
    plan = Plan([100, 100, 100], seed=0, batch_size=32, lanes=8, window=2)
    assert len(plan.reads(0, plan.steps_per_epoch, range(8)).group) == 3
    assert len(plan.reads(0, plan.steps_per_epoch, range(4)).group) <= 3
    long = Plan([100] * 64, seed=0, batch_size=32, lanes=8, window=2)
    assert len(long.reads(0, long.steps_per_epoch, range(8)).group) in range(64, 64 + 8)


def test_reads_come_in_the_order_of_need_and_few_row_groups_are_in_memory_at_once() -> None:
    plan = Plan([100] * 64, seed=3, batch_size=64, lanes=4, window=2)
    table = plan.epoch(0).rows
    first = {}
    last = {}
    for lane in range(4):
        for place, group in enumerate(plan.group_of(table[lane]).tolist()):
            first.setdefault((lane, group), place)
            last[lane, group] = place
    reads = plan.reads(0, plan.steps_per_epoch, range(4))
    needs = [first[key] for key in zip(reads.lane.tolist(), reads.group.tolist(), strict=True)]
    latest = np.maximum.accumulate(needs)
    assert np.all(latest - needs <= 200), "a row group came later than others needed 200 rows after it"
    held = [sum(first[k] <= place <= last[k] for k in first if k[0] == 1) for place in range(1600)]
    assert max(held) <= 2 + 2, "a lane holds its window's row groups and the ones at its ends, no more"


def test_neighbours_in_a_row_group_are_spread_over_the_window() -> None:
    plan = Plan([100] * 64, seed=0, batch_size=80, lanes=8, window=2)
    groups_a_batch = [len(np.unique(plan.group_of(plan.batch(step)))) for step in range(plan.steps_per_epoch)]
    assert np.mean(groups_a_batch) > 8 * 2


@given(plans())
def test_epochs_and_seeds_differ(plan: Plan) -> None:
    other = Plan(plan.sizes, seed=plan.seed + 1, batch_size=plan.batch_size, lanes=plan.lanes, window=2)
    if plan.rows_per_epoch >= 40:
        assert not np.array_equal(plan.epoch(0).rows, plan.epoch(1).rows)
        assert not np.array_equal(plan.epoch(0).rows, other.epoch(0).rows)


def test_the_order_is_pinned_so_that_a_run_can_resume_after_an_upgrade() -> None:
    plan = Plan([5, 3, 4], seed=7, batch_size=4, lanes=2, window=1)
    assert [plan.batch(step).tolist() for step in range(4)] == [
        [1, 2, 9, 11],
        [0, 4, 8, 5],
        [3, 10, 7, 6],
        [5, 6, 10, 2],
    ]


def test_rows_that_may_not_be_drawn_are_never_drawn() -> None:
    keep = np.arange(300) % 3 != 0
    plan = Plan([100, 100, 100], seed=1, batch_size=40, lanes=4, window=2, keep=keep)
    assert plan.steps_per_epoch == 5
    assert set(epoch_rows(plan, 2).tolist()) == set(np.flatnonzero(keep).tolist())


@pytest.mark.parametrize("balance", [0.25, 0.5, 1.0])
def test_balance_draws_pairs_in_proportion_to_a_power_of_their_size(balance: float) -> None:
    sizes, pairs = [100] * 8, np.zeros(800, dtype=np.int64)
    pairs[::80] = 1  # 10 rows against 790
    expected = 800 * 10 ** (1 - balance) / (10 ** (1 - balance) + 790 ** (1 - balance))
    plan = Plan(sizes, seed=0, batch_size=8, lanes=8, window=2, pairs=pairs, balance=balance)
    drawn = [int((pairs[epoch_rows(plan, epoch)] == 1).sum()) for epoch in range(8)]
    assert np.mean(drawn) == pytest.approx(expected, rel=0.02)
    assert len(epoch_rows(plan, 0)) == 800


def test_copies_tell_the_draws_of_one_row_apart() -> None:
    pairs = np.array([0] * 90 + [1] * 10)
    plan = Plan([50, 50], seed=0, batch_size=20, lanes=4, window=2, pairs=pairs, balance=1.0)
    rows, copies = plan.epoch(0)
    drawn = list(zip(rows.ravel().tolist(), copies.ravel().tolist(), strict=True))
    assert len(set(drawn)) == len(drawn) == 100
    assert max(copy for _, copy in drawn) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 12},
        {"batch_size": 0},
        {"batch_size": 16, "lanes": 0},
        {"batch_size": 16, "window": -1},
        {"batch_size": 16, "balance": 1.5},
        {"batch_size": 16, "seed": -1},
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError) as refused:
        Plan([100], **{"seed": 0, "lanes": 8, "window": 2, **options})
    assert refused.value.key == ("batch_size" if "lanes" in options else list(options)[-1])


def test_too_few_rows_for_one_batch_are_an_error_of_the_data() -> None:
    with pytest.raises(DatasetError) as refused:
        Plan([3], seed=0, batch_size=8, lanes=8, window=2)
    assert refused.value.key == "batch_size"
    assert {"3", "8"} <= set(refused.value.what.split())


def test_workers_that_cannot_share_the_lanes_are_refused() -> None:
    plan = Plan([64], seed=0, batch_size=8, lanes=8, window=2)
    with pytest.raises(ConfigError) as refused:
        plan.rank_lanes(0, 3)
    assert refused.value.key == "lanes"
