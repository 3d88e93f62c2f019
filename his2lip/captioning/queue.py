"""What a reviewer sees next, how far the review is, and how long the rest may take."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import get_args

from his2lip.captioning.agreement import due_repeat
from his2lip.captioning.records import Acceptance, Status
from his2lip.captioning.sampling import Batch, batches
from his2lip.captioning.state import Item, State

TO_DO, ALL = "to do", "all"
FILTERS: tuple[str, ...] = (TO_DO, *get_args(Status), ALL)
SECONDS_PER_SEED = 86.0  # 84 seeds in two hours
_SECONDS = {True: SECONDS_PER_SEED, False: 5.0}  # per seed and per rewording, until ten decisions tell better
_READ_S, _PAUSE_S = 1.0, 600.0  # in a shorter time nobody reads, as in an import; a longer one was a pause
_ENOUGH = 10


@dataclass(frozen=True)
class Progress:
    """How far a review is.

    seeds, decided     keys, and those that have a verdict
    patches, covered   patches of all keys, and those whose key has an approved caption
    to_do              seeds and sampled rewordings without a verdict
    minutes            that these may take, by the median time of this reviewer's decisions
    """

    seeds: int
    decided: int
    patches: int
    covered: int
    to_do: int
    minutes: float


def to_do(state: State, found: Sequence[Batch]) -> list[Item]:
    """Open and disputed seeds, those that cover most patches first; then the sample of each open batch."""
    seeds = [item for item in state.seeds if item.status in ("open", "disputed")]
    sampled = [state.items[id] for batch in found if batch.verdict == "open" for id in batch.sample]
    disputed = [item for item in state.variants if item.status == "disputed"]
    return seeds + disputed + [item for item in sampled if item.status == "open"]


def shown(state: State, found: Sequence[Batch], chosen: str) -> list[Item]:
    """The items under a filter, in the order of review."""
    if chosen == TO_DO:
        return to_do(state, found)
    return [i for i in state.items.values() if chosen in (ALL, i.status) and state.is_current(i)]


def progress(state: State, found: Sequence[Batch], reviewer: str) -> Progress:
    seeds, waiting = state.seeds, to_do(state, found)
    seconds = {kind: _median_seconds(state, reviewer, is_seed=kind) for kind in (True, False)}
    return Progress(
        seeds=len(seeds),
        decided=sum(item.status not in ("open", "disputed") for item in seeds),
        patches=sum(item.key.patches for item in seeds),
        covered=sum(item.key.patches for item in seeds if item.text is not None),
        to_do=len(waiting),
        minutes=sum(seconds[item.is_seed] for item in waiting) / 60,
    )


def _median_seconds(state: State, reviewer: str, *, is_seed: bool) -> float:
    """Median time between two decisions; imports, pauses and clocks that jump back are left out."""
    own = [d for d in state.decisions if d.reviewer == reviewer and d.item in state.items]
    took = [
        (datetime.fromisoformat(after.time) - datetime.fromisoformat(before.time)).total_seconds()
        for before, after in pairwise(own)
        if state.items[after.item].is_seed == is_seed
    ]
    usable = [seconds for seconds in took if _READ_S <= seconds < _PAUSE_S]
    return statistics.median(usable) if len(usable) >= _ENOUGH else _SECONDS[is_seed]


class Session:
    """Where one tab is: its filter, its item, and whether that is a blind repeat."""

    def __init__(self, reviewer: str, seed: int, acceptance: Acceptance) -> None:
        self.reviewer, self._seed, self._acceptance = reviewer, seed, acceptance
        self.chosen, self.is_blind = TO_DO, False
        self.item: str | None = None
        self._known: tuple[State, list[Batch]] | None = None
        self._here: str | None = None  # the last item that was no blind repeat

    def batches(self, state: State) -> list[Batch]:
        """The batches of a state; those of the last state are kept, because a plan takes a while."""
        if self._known is None or self._known[0] is not state:
            self._known = state, batches(state, self._seed, self._acceptance)
        return self._known[1]

    def advance(self, state: State) -> None:
        """To the blind repeat that is due, else to the next item of the filter."""
        repeat = due_repeat(state, self.reviewer, self._seed) if self.chosen == TO_DO else None
        if repeat is not None:
            self.item, self.is_blind = repeat, True
            return
        self.step(state, 1)

    def step(self, state: State, by: int) -> None:
        """To the next (1) or previous (-1) item of the filter; after the last comes the first."""
        listed = shown(state, self.batches(state), self.chosen)
        self.is_blind = False
        if not listed:
            self.item = self._here = None
            return
        ids = [item.id for item in listed]
        if self._here in ids:
            self.item = self._here = ids[(ids.index(self._here) + by) % len(ids)]
            return
        order = {id: place for place, id in enumerate(state.items)}
        places = [order[id] for id in ids]
        here = order.get(self._here or "", -1)
        if by > 0:
            at = next((i for i, place in enumerate(places) if place > here), 0)
        else:
            at = next((i for i in range(len(places) - 1, -1, -1) if places[i] < here), len(places) - 1)
        self.item = self._here = ids[at]

    def show(self, item: str, *, is_blind: bool) -> None:
        """This item, as a blind repeat or not."""
        self.item, self.is_blind = item, is_blind
        if not is_blind:
            self._here = item

    def choose(self, state: State, chosen: str) -> None:
        """Another filter, from its first item."""
        self.chosen, self._here = chosen, None
        self.step(state, 1)
