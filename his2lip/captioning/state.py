"""The state of a caption project: the verdict on each item, a pure function of its files."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from his2lip.captioning.records import Acceptance, Act, Decision, Fields, Key, Status, Variant, seed_id

_STATUS: Mapping[Act, Status] = {
    "accept": "accepted",
    "revise": "revised",
    "reject": "rejected",
    "cannot tell": "cannot tell",
    "wrong label": "wrong label",
}


@dataclass(frozen=True)
class Item:
    """A seed or a rewording, and the verdict on it.

    original  the text as it was drafted or reworded
    text      the approved text; None unless the item is accepted or revised
    standing  the present decision of each reviewer, without those that another one settled
    version   number of decisions about it, by which a stale one is recognised
    """

    id: str
    key: Key
    original: str
    variant: Variant | None = None
    batch: str | None = None
    status: Status = "open"
    text: str | None = None
    fields: Fields | None = None
    standing: Mapping[str, Decision] = field(default_factory=dict)
    version: int = 0

    @property
    def shown(self) -> str:
        """The text that a reviewer sees."""
        return self.text or self.original

    @property
    def is_seed(self) -> bool:
        return self.variant is None


@dataclass(frozen=True)
class State:
    """All items by id, seeds in the order of the queue first; all decisions in their order."""

    items: Mapping[str, Item]
    decisions: Sequence[Decision]
    last: int  # the highest sequence number

    @property
    def seeds(self) -> list[Item]:
        return [item for item in self.items.values() if item.is_seed]

    @property
    def variants(self) -> list[Item]:
        """The rewordings that passed validation."""
        return [item for item in self.items.values() if not item.is_seed]

    def approved(self) -> list[Item]:
        """The seeds whose text was accepted or revised: those that `captions reword` rewords."""
        return [item for item in self.seeds if item.text is not None]

    def is_current(self, item: Item) -> bool:
        """Whether a rewording is one of the seed's approved text; True for a seed."""
        return item.variant is None or item.variant.seed == self._standing_seeds.get(item.key.id)

    @cached_property
    def _standing_seeds(self) -> dict[str, str]:
        return {seed.id: seed_id(seed.id, seed.text) for seed in self.seeds if seed.text is not None}

    @cached_property
    def plans(self) -> dict[str, Acceptance]:
        """The plan of each batch that has one: that of the first decision about one of its lines."""
        found: dict[str, Acceptance] = {}
        for decision in self.decisions:
            item = self.items.get(decision.item)
            if decision.acceptance is not None and item is not None and item.batch is not None:
                found.setdefault(item.batch, decision.acceptance)
        return found

    def verdicts(self, reviewer: str, *, blind: bool = False) -> dict[str, Decision]:
        """The present decision of a reviewer, by item; or his or her blind repeats."""
        stacks = _stacks(self.decisions, blind=blind)
        return {item: stack[-1] for (name, item), stack in stacks.items() if name == reviewer and stack}

    def own_verdicts(self, reviewer: str) -> dict[str, Decision]:
        """As `verdicts`, without decisions that settle a dispute: these were made beside other verdicts."""
        stacks = _stacks(self.decisions)
        own = {
            item: [d for d in s if not d.settles] for (name, item), s in stacks.items() if name == reviewer
        }
        return {item: stack[-1] for item, stack in own.items() if stack}

    def repeated_verdicts(self, reviewer: str) -> dict[str, tuple[Decision, Decision]]:
        """The decision that stood when an item came back blind, and the repeat, by item."""
        found = {}
        for item, repeat in self.verdicts(reviewer, blind=True).items():
            earlier = [d for d in self.decisions if d.item == item and d.sequence < repeat.sequence]
            if stack := _stacks(earlier).get((reviewer, item)):
                found[item] = (stack[-1], repeat)
        return found

    def last_undoable(self, reviewer: str) -> Decision | None:
        """The reviewer's last decision or blind repeat that was not undone."""
        own = [*self.verdicts(reviewer).values(), *self.verdicts(reviewer, blind=True).values()]
        return max(own, key=lambda decision: decision.sequence, default=None)


def rank(seed: int, *parts: object) -> bytes:
    """A place in a random order that depends on its arguments only."""
    told = "/".join(map(str, (seed, *parts)))
    return hashlib.blake2b(told.encode(), digest_size=16).digest()


def fold(
    keys: Sequence[Key], batches: Mapping[str, Sequence[Variant]], decisions: Iterable[Decision]
) -> State:
    """The state. Decisions count by sequence number, then reviewer; never by the clock."""
    ordered = sorted(decisions, key=lambda decision: (decision.sequence, decision.reviewer))
    items = {key.id: Item(key.id, key, key.text) for key in _queue(keys)}
    for batch, variants in batches.items():
        for variant in variants:
            if variant.refused is None and variant.key in items and variant.id not in items:
                key = items[variant.key].key
                items[variant.id] = Item(variant.id, key, variant.text, variant, batch)
    versions: dict[str, int] = defaultdict(int)
    standing: dict[str, dict[str, Decision]] = defaultdict(dict)
    for decision in ordered:
        if not decision.blind:
            versions[decision.item] += 1
    for (reviewer, item), stack in _stacks(ordered).items():
        if stack:
            standing[item][reviewer] = stack[-1]
    decided = {
        name: _decided(item, standing.get(name, {}), versions[name])
        for name, item in items.items()
        if versions[name]
    }
    last = ordered[-1].sequence if ordered else 0
    return State(items | decided, ordered, last)


def _queue(keys: Sequence[Key]) -> list[Key]:
    """The keys that cover most patches first."""
    return sorted(keys, key=lambda key: (-key.patches, key.id))


def _stacks(decisions: Sequence[Decision], *, blind: bool = False) -> dict[tuple[str, str], list[Decision]]:
    """The decisions of each reviewer about each item that were not undone, the present one last."""
    stacks: dict[tuple[str, str], list[Decision]] = defaultdict(list)
    for decision in decisions:
        if decision.blind != blind:
            continue
        stack = stacks[decision.reviewer, decision.item]
        if decision.act != "undo":
            stack.append(decision)
        elif stack:
            stack.pop()
    return stacks


def _settled(decision: Decision, by: Decision) -> bool:
    """Whether a decision that settled a dispute replaces this one, whose reviewer was heard then.

    Numbers of two copies of a project cannot be compared, so that a lower one is not enough.
    """
    is_earlier = decision.reviewer != by.reviewer and decision.sequence < by.sequence
    return is_earlier and (not by.over or decision.reviewer in by.over)


def _decided(item: Item, standing: Mapping[str, Decision], version: int) -> Item:
    """The item with its status. Reviewers agree where their acts leave the same text, or the same verdict."""
    settling = [decision for decision in standing.values() if decision.settles]
    standing = {n: d for n, d in standing.items() if not any(_settled(d, by) for by in settling)}
    values = {(d.after, None if d.after is not None else d.act) for d in standing.values()}
    status: Status = "open"
    text = fields = None
    if len(values) > 1:
        status = "disputed"
    elif standing:
        decision = max(standing.values(), key=lambda d: (d.sequence, d.reviewer))
        text, fields = decision.after, decision.fields
        status = _STATUS[decision.act]
        if text is not None:
            status = "accepted" if text == item.original else "revised"
            fields = fields or (item.key.fields if item.is_seed and text == item.original else None)
    return Item(
        item.id,
        item.key,
        item.original,
        item.variant,
        item.batch,
        status,
        text,
        fields,
        dict(standing),
        version,
    )
