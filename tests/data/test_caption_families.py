"""Captions are held out by whole seed families: none to be retrieved was trained on in other words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from his2lip.data.captions.bank import CaptionBank
from his2lip.data.captions.biology import Pair
from his2lip.data.captions.corpus import FamilySplit, plain, split_by_family

A, B = ("Tumor", "CD3"), ("Stroma", "CD3")
WORDS = ["brown", "blue", "cells", "nuclei", "stroma", "dense", "pale", "faint", "septa", "glass"]
SENTENCE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
BLOCKS = st.lists(st.lists(SENTENCE, min_size=1, max_size=4), min_size=1, max_size=6)


def words(text: str) -> set[str]:
    return set(plain(text).split())


def held_out_pairs(split: FamilySplit) -> list[tuple[str, str]]:
    """(held out, trained on) captions of one pair."""
    return [
        (held, trained)
        for pair, lines in split.held_out.items()
        for held in lines
        for trained in split.train[pair]
    ]


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from([A, B, ("Other", "FAP")]), BLOCKS, min_size=1))
def test_no_family_stands_on_both_sides_and_no_caption_is_lost(blocks: dict[Pair, list[list[str]]]) -> None:
    split = split_by_family(blocks)
    for pair, own in blocks.items():
        train, held = split.train.get(pair, ()), split.held_out.get(pair, ())
        assert sorted((*train, *held)) == sorted(text for block in own for text in block)
        assert train, "every pair keeps captions to train on"
        for block in own if len(own) > 1 else []:
            assert set(block) <= set(train) or set(block) <= set(held)
    trained = {plain(text) for lines in split.train.values() for text in lines}
    assert not trained & {plain(text) for lines in split.held_out.values() for text in lines}
    for held, text in held_out_pairs(split):
        assert len(words(held) & words(text)) < 0.8 * len(words(held) | words(text))


def test_a_pair_with_two_families_holds_one_out_and_the_choice_is_kept() -> None:
    blocks = {A: [["One.", "Number one."], ["Two is another.", "A second thing."]]}
    split = split_by_family(blocks)
    assert (split.families, split.families_held_out) == (2, 1)
    assert split == split_by_family(blocks)
    assert {split_by_family(blocks, seed=seed).held_out[A] for seed in range(20)} == {
        tuple(block) for block in blocks[A]
    }


def test_a_sentence_that_two_pairs_share_is_trained_on() -> None:
    blocks = {
        A: [["An IHC image."], ["Dense T cells."], ["Brown rims."]],
        B: [["an  ihc image"], ["Sparse T cells."], ["Blue fibres."]],
    }
    for seed in range(10):
        split = split_by_family(blocks, seed=seed)
        assert "An IHC image." in split.train[A]
        assert "an  ihc image" in split.train[B]
        assert len(split.held_out[A]) == len(split.held_out[B]) == 1


def test_without_blank_lines_nearly_equal_captions_are_one_family() -> None:
    lines = [f"Scattered brown nuclei in the stroma, field number {n}" for n in ("one", "one again")]
    split = split_by_family({A: [[*lines, "Only glass.", "Debris of dead cells."]]})
    assert split.families == 3
    assert any(set(lines) <= set(part.get(A, ())) for part in (split.train, split.held_out))


def test_released_corpus_holds_out_a_fifth_of_its_families(shared: Path) -> None:
    bank, report = CaptionBank.from_folder(shared / "captions/AugmentedCaptions")
    assert report.held_out == sum(map(len, bank.held_out.values()))
    assert len(bank.captions) == 73
    assert set(bank.held_out) == set(bank.captions), "every pair has captions on both sides"
    shares = [len(bank.held_out[p]) / (len(bank.held_out[p]) + len(bank.captions[p])) for p in bank.captions]
    assert 0.1 < min(shares) < max(shares) < 0.4
    assert sum(shares) / len(shares) == pytest.approx(0.22, abs=0.01)
    trained = {plain(text) for lines in bank.captions.values() for text in lines}
    assert not trained & {plain(text) for lines in bank.held_out.values() for text in lines}
    split = FamilySplit(dict(bank.captions), dict(bank.held_out), 0, 0)
    nearest = max(
        len(words(held) & words(text)) / len(words(held) | words(text))
        for held, text in held_out_pairs(split)
        if abs(len(held) - len(text)) < 40
    )
    assert nearest < 0.8
