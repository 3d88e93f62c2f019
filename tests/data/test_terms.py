"""Terms of use: read from a card, the strictest of several, and the same after JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_data import write_small_shards

from his2lip.data.cards.card import list_cards, load_card
from his2lip.data.cards.terms import Terms, strictest, terms_of
from his2lip.data.shards import info as info_file
from his2lip.data.shards.reader import open_shards
from his2lip.errors import DatasetError
from his2lip.models.provenance import FORMAT, META
from his2lip.training.config import TrainConfig
from his2lip.training.run_inputs import terms_of_run

THREE = st.sampled_from([True, False, None])
ANY = st.builds(
    Terms,
    datasets=st.dictionaries(st.sampled_from("abc"), st.just("CC"), min_size=1),
    commercial=THREE,
    derivatives=THREE,
    share_alike=THREE,
    attribution=st.lists(st.sampled_from("xyz"), unique=True).map(tuple),
)


def of(name: str, *, generated: bool = False) -> Terms:
    return terms_of(info_file.summarise([], load_card(name), generated=generated))


def test_forbidden_wins_over_unknown_and_unknown_over_allowed() -> None:
    free, unknown, banned, shared = of("mihic"), of("mist"), of("bci"), of("her2-ihc-40x")
    assert strictest([free, free]).commercial is True
    assert strictest([free, unknown]).commercial is None
    joined = strictest([free, unknown, banned, shared])
    assert (joined.commercial, joined.derivatives, joined.share_alike) == (False, None, True)
    names = {"mihic": "CC BY 4.0", "mist": "unknown", "bci": "non-commercial research"}
    assert joined.datasets == names | {"her2-ihc-40x": "CC BY-SA 4.0"}
    assert len(joined.attribution) == 4


@given(ANY, ANY)
def test_the_strictest_terms_allow_nothing_that_one_of_them_does_not(a: Terms, b: Terms) -> None:
    both = strictest([a, b])
    for one in (a, b):
        assert not (both.commercial and one.commercial is not True)
        assert not (both.derivatives and one.derivatives is not True)
        assert not (both.share_alike is False and one.share_alike is not False)
        assert set(one.attribution) <= set(both.attribution)
    assert strictest([a]) == strictest([a, a]) == a


@given(ANY)
def test_terms_are_the_same_after_json(one: Terms) -> None:
    assert Terms.from_json(one.to_json(), where="here") == one


@pytest.mark.parametrize("tree", [None, [], {}, {"attribution": [], "more": 1}])
def test_values_that_are_not_terms_are_refused_with_their_place(tree: object) -> None:
    with pytest.raises(DatasetError) as refused:
        Terms.from_json(tree, where="here")
    assert (refused.value.where, refused.value.key) == ("here", "terms")


@pytest.mark.parametrize("name", list_cards())
def test_a_note_tells_when_terms_are_not_known(name: str) -> None:
    found = of(name)
    assert any("not known" in note for note in found.notes()) == (
        None in (found.commercial, found.derivatives)
    )


def test_generated_images_have_no_restrictions() -> None:
    assert of("bci", generated=True).notes() == []


def test_a_run_that_starts_from_a_checkpoint_keeps_its_terms(tmp_path: Path) -> None:
    before = of("bci")
    (tmp_path / META).write_text(json.dumps({"format": FORMAT, "terms": before.to_json()}))
    shards = open_shards(write_small_shards(tmp_path / "s", train=4, select=4))
    data = {"shards": shards.uri}
    config = TrainConfig.model_validate({"name": "x", "data": data, "model": {"backbone": str(tmp_path)}})
    found = terms_of_run(config, shards)
    assert set(found.datasets) == {"mihic-generated", "bci"}
    assert (found.commercial, found.share_alike) == (False, None)
