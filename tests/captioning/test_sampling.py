"""Acceptance of rewordings by sampling, and agreement of reviewers: exact figures against brute force."""

from __future__ import annotations

from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pytest
from projects import keys, project, variants
from sklearn.metrics import cohen_kappa_score

from his2lip.captioning import Acceptance, Project
from his2lip.captioning.agreement import between, due_repeat, with_oneself
from his2lip.captioning.queue import Session, progress, to_do
from his2lip.captioning.records import Act, Decision, Judgement
from his2lip.captioning.sampling import batches, plan, upper_limit
from his2lip.captioning.state import fold


def _passes(size: int, wrong: int, read: int, allowed: int) -> float:
    """The probability that at most `allowed` errors are among `read` of a batch with `wrong` errors."""
    ways = sum(comb(wrong, k) * comb(size - wrong, read - k) for k in range(min(allowed, read) + 1))
    return ways / comb(size, read)


@pytest.mark.parametrize("size", [1, 7, 20, 60, 400])
@pytest.mark.parametrize(("rate", "confidence", "allowed"), [(0.05, 0.95, 0), (0.1, 0.9, 1), (0.02, 0.99, 2)])
def test_a_plan_reads_as_little_as_its_error_rate_allows(
    size: int, rate: float, confidence: float, allowed: int
) -> None:
    read, kept = plan(size, Acceptance(error_rate=rate, confidence=confidence, allowed=allowed))
    wrong = min(int(rate * size) + 1, size)
    assert kept == min(allowed, wrong - 1)
    assert _passes(size, wrong, read, kept) <= 1 - confidence + 1e-12
    assert read == kept + 1 or _passes(size, wrong, read - 1, kept) > 1 - confidence


def test_a_known_plan(tmp_path: Path) -> None:
    assert plan(7289, Acceptance()) == (59, 0), "as in tables of 95 % confidence at 5 % errors"
    assert plan(0, Acceptance()) == (0, 0)


def test_the_upper_limit_covers_the_truth_as_often_as_it_says() -> None:
    size, read = 30, 10
    for wrong in range(size + 1):
        covered = sum(
            comb(wrong, k) * comb(size - wrong, read - k)
            for k in range(max(0, read - size + wrong), min(wrong, read) + 1)
            if upper_limit(size, read, k, confidence=0.9) >= wrong
        )
        assert covered / comb(size, read) >= 0.9
    assert upper_limit(4, 2, 0, confidence=0.5) == max(
        d for d in range(3) if sum(not set(c) & set(range(d)) for c in combinations(range(4), 2)) > 3
    )


@pytest.fixture
def reworded(tmp_path: Path) -> Project:
    """Two approved seeds with 40 and 30 rewordings, in one batch each."""
    made = project(tmp_path / "a", 3)
    for seed, count in zip(made.refresh().seeds[:2], (40, 30), strict=True):
        made.submit("ann", seed.id, Judgement("accept"), version=0)
        made.add_variants(f"batch-{count}", variants(seed.key, count))
    return made


def _read(made: Project, ids: tuple[str, ...], act: str) -> None:
    for id in ids:
        item = made.refresh().items[id]
        made.submit("ann", id, Judgement(act, text="Better."), version=item.version)


def test_a_batch_passes_when_its_sample_is_right_and_fails_at_the_first_error_too_many(
    reworded: Project,
) -> None:
    small, large = batches(reworded.refresh(), 0, Acceptance(error_rate=0.2))
    assert (small.size, large.size) == (30, 40)
    assert len(small.sample) < small.size
    assert small.verdict == "open"
    assert small.limit is None
    _read(reworded, small.sample, "accept")
    _read(reworded, large.sample[:1], "revise")
    small, large = batches(reworded.refresh(), 0, Acceptance(error_rate=0.2))
    assert small.verdict == "passed"
    assert small.limit is not None
    assert small.limit <= 0.2
    assert large.verdict == "failed"
    waiting = to_do(reworded.refresh(), [small, large])
    assert all(item.is_seed for item in waiting), "a batch that failed is not read on"


def test_the_sample_depends_on_the_seed_only_and_leaves_out_what_is_not_current(reworded: Project) -> None:
    state = reworded.refresh()
    first = batches(state, 0, Acceptance())
    assert [b.sample for b in batches(Project.open(reworded.folder).refresh(), 0, Acceptance())] == [
        b.sample for b in first
    ]
    assert [b.sample for b in batches(state, 1, Acceptance())] != [b.sample for b in first]
    seed = state.seeds[0]
    reworded.submit("ann", seed.id, Judgement("revise", text="Another seed."), version=seed.version)
    assert [b.name for b in batches(reworded.refresh(), 0, Acceptance())] == ["batch-30"]


def test_a_batch_with_too_many_errors_does_not_pass_when_their_seeds_are_changed() -> None:
    """A reader who changes the seed of each wrong line; 40 batches with 20 % wrong lines."""
    of = keys(4)
    lines = [variant for key in of for variant in variants(key, 15)]
    generator, passed = np.random.default_rng(0), 0
    for seed in range(40):
        wrong = set(generator.choice([line.id for line in lines], 12, replace=False).tolist())
        told = [_told(n, key.id, "accept", key.text) for n, key in enumerate(of, 1)]
        while True:
            state = fold(of, {"a": lines}, told)
            (batch,) = batches(state, seed, Acceptance())
            if batch.verdict != "open":
                break
            item = next(state.items[id] for id in batch.sample if state.items[id].status == "open")
            if item.id not in wrong:
                told.append(_told(len(told) + 1, item.id, "accept", item.original))
                continue
            told.append(_told(len(told) + 1, item.id, "reject", None))
            told.append(_told(len(told) + 1, item.key.id, "revise", f"Another seed {len(told)}."))
        passed += batch.verdict == "passed"
    assert passed <= 40 * 0.05


def _told(number: int, item: str, act: Act, after: str | None) -> Decision:
    time = "2026-01-01T00:00:00+00:00"
    return Decision(sequence=number, time=time, reviewer="ann", item=item, act=act, before="", after=after)


def test_batches_above_the_rate_pass_no_more_often_than_stated() -> None:
    acceptance, size = Acceptance(error_rate=0.1, confidence=0.9), 200
    read, allowed = plan(size, acceptance)
    drawn = np.random.default_rng(0).hypergeometric(21, size - 21, read, size=20_000)
    assert np.mean(drawn <= allowed) <= 0.1 + 3 * (0.1 * 0.9 / 20_000) ** 0.5


def test_a_tenth_comes_back_blind_and_its_kappa_has_a_base(tmp_path: Path) -> None:
    made = project(tmp_path / "a", 60)
    session, order = Session("ann", made.seed, Acceptance()), []
    session.advance(made.refresh())
    first: dict[str, str] = {}
    again: dict[str, str] = {}
    while session.item is not None:
        item, blind = session.item, session.is_blind
        act = ("accept", "reject", "cannot tell")[len(order) % 3]
        (again if blind else first)[item] = act
        order.append((item, blind))
        version = 0 if blind else made.refresh().items[item].version
        made.submit("ann", item, Judgement(act), version=version, blind=blind)
        session.advance(made.refresh())
    assert len(first) == 60
    assert len(again) == 6
    for item in again:
        assert order.index((item, True)) - order.index((item, False)) > 5
    state = made.refresh()
    found = with_oneself(state, "ann")
    assert found.n == 6
    assert found.agreeing == sum(first[i] == again[i] for i in again)
    kappa = cohen_kappa_score([first[i] for i in again], [again[i] for i in again])
    assert found.kappa == pytest.approx(kappa)
    assert all(state.items[i].standing["ann"].act == first[i] for i in first), "a repeat decides nothing"
    assert due_repeat(state, "ann", made.seed) is None


def test_a_verdict_that_is_changed_after_its_blind_repeat_is_compared_as_it_was(tmp_path: Path) -> None:
    made = project(tmp_path / "a", 1)
    (item,) = made.refresh().seeds
    made.submit("ann", item.id, Judgement("accept"), version=0)
    made.submit("ann", item.id, Judgement("reject"), version=0, blind=True)
    made.submit("ann", item.id, Judgement("reject"), version=1)
    found = with_oneself(made.refresh(), "ann")
    assert (found.n, found.agreeing) == (1, 0)
    assert found.disagreeing == ((item.id, "accepted", "reject"),)


def test_agreement_of_two_reviewers_against_scikit_learn_with_its_interval(tmp_path: Path) -> None:
    made = project(tmp_path / "a", 40)
    generator = np.random.default_rng(3)
    acts = ("accept", "reject", "wrong label")
    one = generator.integers(0, 3, 40)
    other = np.where(generator.random(40) < 0.7, one, generator.integers(0, 3, 40))
    for name, chosen in (("ann", one), ("bob", other)):
        for item, number in zip(made.refresh().seeds, chosen.tolist(), strict=True):
            made.submit(name, item.id, Judgement(acts[number]), version=item.version)
    found = between(made.refresh(), "ann", "bob")
    assert found.kappa == pytest.approx(cohen_kappa_score(one, other))
    assert found.n == 40
    assert len(found.disagreeing) == int((one != other).sum())
    values = [cohen_kappa_score(np.delete(one, i), np.delete(other, i)) for i in range(40)]
    error = (39 / 40 * np.sum((np.array(values) - np.mean(values)) ** 2)) ** 0.5
    assert found.hi is not None
    assert found.hi - found.kappa == pytest.approx(2.0227 * error, rel=1e-3)
    disputed = [item for item in made.refresh().seeds if item.status == "disputed"]
    assert len(disputed) == len(found.disagreeing)
    item = disputed[0]
    made.submit("bob", item.id, Judgement("accept"), version=item.version)
    assert made.refresh().items[item.id].status == "accepted", "a decision about a dispute settles it"
    again = between(made.refresh(), "ann", "bob")
    assert (again.kappa, again.disagreeing) == (found.kappa, found.disagreeing), "nor makes it agreement"
    assert between(made.refresh(), "ann", "eve").n == 0


def test_kappa_is_not_defined_where_all_verdicts_are_the_same(tmp_path: Path) -> None:
    made = project(tmp_path / "a", 6)
    for name in ("ann", "bob"):
        for item in made.refresh().seeds:
            made.submit(name, item.id, Judgement("accept"), version=item.version)
    found = between(made.refresh(), "ann", "bob")
    assert (found.n, found.agreeing, found.kappa, found.lo) == (6, 6, None, None)


def test_progress_counts_patches_and_minutes(tmp_path: Path) -> None:
    made = project(tmp_path / "a", 4)
    items = made.refresh().seeds
    before = progress(made.refresh(), [], "ann")
    assert (before.seeds, before.decided, before.patches, before.covered) == (4, 0, 100, 0)
    assert before.minutes == pytest.approx(4 * 86 / 60)
    made.submit("ann", items[0].id, Judgement("accept"), version=0)
    made.submit("ann", items[1].id, Judgement("reject"), version=0)
    after = progress(made.refresh(), [], "ann")
    assert (after.decided, after.covered, after.to_do) == (2, 40, 2)


def test_next_and_previous_pass_over_what_the_filter_hides(tmp_path: Path) -> None:
    made = project(tmp_path / "a", 4)
    ids = [item.id for item in made.refresh().seeds]
    made.submit("ann", ids[1], Judgement("reject"), version=0)
    session = Session("ann", made.seed, Acceptance())
    session.advance(made.refresh())
    seen = []
    for by in (1, 1, 1, -1, -1):
        seen.append(session.item)
        session.step(made.refresh(), by)
    assert seen == [ids[0], ids[2], ids[3], ids[0], ids[3]]
    session.choose(made.refresh(), "rejected")
    assert session.item == ids[1]
    session.choose(made.refresh(), "disputed")
    assert session.item is None


def test_next_reaches_every_sampled_rewording_and_previous_goes_back(reworded: Project) -> None:
    state = reworded.refresh()
    session = Session("ann", reworded.seed, Acceptance(error_rate=0.2))
    listed = [item.id for item in to_do(state, session.batches(state))]
    for by in (1, -1):
        seen = set()
        for _ in listed:
            session.step(state, by)
            seen.add(session.item)
        assert seen == set(listed)
