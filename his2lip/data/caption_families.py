"""Seed families of captions, and a caption corpus split by them into a part to train on and one held out."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from his2lip.data.caption_templates import Pair

HELD_OUT = 0.2  # share of a pair's families that training never sees
_NEAR = 0.8  # shared words over all words (Jaccard) from which two captions of a pair are one said twice

Blocks = Mapping[Pair, Sequence[Sequence[str]]]
Lines = dict[Pair, tuple[str, ...]]


@dataclass(frozen=True)
class FamilySplit:
    """Captions by pair, in their order: what training draws from, and what it never sees."""

    train: Lines
    held_out: Lines
    families: int
    families_held_out: int


def split_by_family(blocks: Blocks, *, share: float = HELD_OUT, seed: int = 0) -> FamilySplit:
    """Holds out whole families: of each pair about `share` of them, one at least where it has two.

    `blocks` holds each pair's captions as its file has them between blank lines. The released corpus writes a
    pathologist's sentence and the rewordings of it as one block, so a block is a family; in a file without
    blank lines each caption starts as its own. Families that share a sentence, or within a pair nearly one,
    are the same. One that stands in several pairs is trained on: it cannot tell their biomarkers apart.
    """
    captions = [(pair, text) for pair, own in blocks.items() for block in own for text in block]
    family = _families(blocks, captions)
    pairs_of: dict[int, set[Pair]] = defaultdict(set)
    of_pair: dict[Pair, dict[int, str]] = defaultdict(dict)  # family -> its first sentence
    for (pair, text), number in zip(captions, family, strict=True):
        pairs_of[number].add(pair)
        of_pair[pair].setdefault(number, text)
    held: set[int] = set()
    for found in of_pair.values():
        own = sorted((n for n in found if len(pairs_of[n]) == 1), key=lambda n: _rank(seed, found[n]))
        count = min(max(round(share * len(found)), 1), len(found) - 1)
        held.update(own[:count])
    parts: tuple[dict[Pair, list[str]], ...] = (defaultdict(list), defaultdict(list))
    for (pair, text), number in zip(captions, family, strict=True):
        parts[number in held][pair].append(text)
    train, held_out = ({pair: tuple(lines) for pair, lines in part.items()} for part in parts)
    return FamilySplit(train, held_out, len(pairs_of), len(held))


def _families(blocks: Blocks, captions: Sequence[tuple[Pair, str]]) -> list[int]:
    """The family of each caption, by number."""
    joined = _Joined(len(captions))
    first = 0
    for own in blocks.values():
        start = first
        for block in own:
            if len(own) > 1:
                joined.join(range(first, first + len(block)))
            first += len(block)
        _join_near(joined, captions, start, first)
    said: dict[str, int] = {}
    for i, (_, text) in enumerate(captions):
        joined.join((i, said.setdefault(plain(text), i)))
    return [joined.root(i) for i in range(len(captions))]


def _join_near(joined: _Joined, captions: Sequence[tuple[Pair, str]], start: int, stop: int) -> None:
    """Joins captions start .. stop - 1, all of one pair, that share nearly all of their words."""
    words = [set(plain(text).split()) for _, text in captions[start:stop]]
    for i, one in enumerate(words):
        for j in range(i):
            other = words[j]
            if min(len(one), len(other)) < _NEAR * max(len(one), len(other)):
                continue
            if len(one & other) >= _NEAR * len(one | other):
                joined.join((start + i, start + j))


def plain(text: str) -> str:
    """What two spellings of one sentence have in common: its words, in lower case."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def _rank(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}/{plain(text)}".encode(), digest_size=16).digest()


class _Joined:
    """Numbers 0 .. n - 1 joined into sets (union-find); a set's smallest number is its root."""

    def __init__(self, n: int) -> None:
        self._above = list(range(n))

    def root(self, i: int) -> int:
        while self._above[i] != i:
            self._above[i] = self._above[self._above[i]]
            i = self._above[i]
        return i

    def join(self, numbers: Sequence[int]) -> None:
        roots = [self.root(i) for i in numbers]
        for root in roots:
            self._above[root] = min(roots)
