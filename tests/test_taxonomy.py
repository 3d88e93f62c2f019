"""Each spelling is recognised as its own name, also in file names, and never as another one."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from his2lip import resources, taxonomy
from his2lip.errors import TaxonomyError
from his2lip.taxonomy import BIOMARKERS, TISSUES

SEPARATORS = st.sampled_from(["-", "_", " ", "."])
WORDS = st.from_regex(r"[0-9]{1,4}|w[0-9]{2}|Izd[0-9]|les[0-9]|T[0-9]", fullmatch=True)


def spelt(name: str, how: int) -> str:
    bare = name.replace("-", "")
    return (name, name.lower(), name.upper(), bare, bare.lower())[how]


@given(st.sampled_from(BIOMARKERS), st.integers(0, 4), st.lists(WORDS), st.lists(WORDS), SEPARATORS)
def test_biomarker_in_a_file_name_is_found_and_no_other(
    name: str, how: int, before: list[str], after: list[str], separator: str
) -> None:
    text = separator.join([*before, spelt(name, how), *after])
    assert taxonomy.find_biomarker(text) == name


@given(st.sampled_from(BIOMARKERS), st.integers(0, 4), st.lists(WORDS), st.lists(WORDS), SEPARATORS)
def test_partition_gives_the_texts_before_and_after_the_biomarker(
    name: str, how: int, before: list[str], after: list[str], separator: str
) -> None:
    head, found, tail = taxonomy.partition_biomarker(separator.join([*before, spelt(name, how), *after]))
    assert found == name
    assert (head.strip(separator), tail.strip(separator)) == (separator.join(before), separator.join(after))


@given(st.lists(WORDS), SEPARATORS)
def test_name_without_a_biomarker_has_none(words: list[str], separator: str) -> None:
    assert taxonomy.find_biomarker(separator.join(words)) is None


@given(st.sampled_from(BIOMARKERS), st.from_regex(r"[A-Za-z0-9]", fullmatch=True))
def test_biomarker_within_a_longer_word_is_not_that_biomarker(name: str, letter: str) -> None:
    assert taxonomy.find_biomarker(f"{name}{letter}") in (None, *(b for b in BIOMARKERS if b != name))


@given(st.sampled_from(BIOMARKERS), st.integers(0, 4), st.sampled_from(["", "+"]))
def test_every_spelling_of_a_biomarker_is_that_one(name: str, how: int, plus: str) -> None:
    assert taxonomy.biomarker(spelt(name, how) + plus) == name


ALIASES = sorted(taxonomy._BIOMARKER_ALIASES)
VARIANTS = (str, str.lower, str.upper, lambda s: s.replace("-", " "), lambda s: s.replace("-", "_"))


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_is_recognised_by_itself_and_in_a_file_name(alias: str) -> None:
    name = taxonomy.biomarker(alias)
    assert name in BIOMARKERS
    for vary in VARIANTS:
        assert taxonomy.biomarker(vary(alias)) == name
        assert taxonomy.find_biomarker(f"0011_{vary(alias)}_3_12") == name


@given(st.sampled_from([*BIOMARKERS, *ALIASES]), st.text("aBcdeHiKpRTx0139", min_size=1, max_size=2))
def test_letters_before_a_name_make_another_word(spelling: str, letters: str) -> None:
    """`TP53` is a spelling itself. In `xpan-cytokeratin`, the second word is still a word."""
    allowed = {None, known(letters + spelling)} | ({known(spelling)} if "-" in spelling else set())
    assert taxonomy.find_biomarker(letters + spelling) in allowed


def known(spelling: str) -> str | None:
    try:
        return taxonomy.biomarker(spelling)
    except TaxonomyError:
        return None


@given(st.sampled_from(BIOMARKERS), st.sampled_from(BIOMARKERS), SEPARATORS)
def test_of_two_names_in_a_file_name_one_is_found_and_never_a_third(a: str, b: str, separator: str) -> None:
    assert taxonomy.find_biomarker(f"0011{separator}{a}{separator}{b}{separator}2") in (a, b)


def test_spellings_on_the_ten_cards_and_in_the_papers_table_are_known() -> None:
    from his2lip.data.cards.card import list_cards, load_card

    for card in map(load_card, list_cards()):
        scored = [p for p in card.protocols.values() if p.label == "biomarker"]
        named = {value for p in scored for values in p.classes.values() for value in values}
        assert {taxonomy.biomarker(name) for name in named} == named, card.name
        for name, spellings in card.classes.items() if scored and named <= set(card.classes) else ():
            assert {taxonomy.find_biomarker(s) for s in (name, *spellings)} == {name}, card.name
    table = resources.root() / "benchmarks/published/table1_datasets.csv"
    with table.open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    listed = {name for row in rows for name in row["biomarkers"].split(";")} - {"H&E"}
    assert len(listed) >= 20
    assert {taxonomy.biomarker(name) for name in listed} <= set(BIOMARKERS)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("cyclin-D1", "Cyclin-D1"),
        ("PGR", "PR"),
        ("KI67", "Ki67"),
        ("Ki-67", "Ki67"),
        ("podoplanin", "D2-40"),
        ("CD3+", "CD3"),
        ("PCK", "PanCK"),
        ("Her2", "HER2"),
        ("FoxP3", "FOXP3"),
    ],
)
def test_spellings_of_published_files(spelling: str, name: str) -> None:
    assert taxonomy.biomarker(spelling) == name


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("29-041-Izd2-w35-proSPC-4-les1", "proSPC"),
        ("0011-CD34-1-1", "CD34"),
        ("0011-CD38-1-1", "CD38"),
        ("0011-D2-40-1-1", "D2-40"),
        ("0011-cyclin-D1-3-12", "Cyclin-D1"),
        ("Case1_M1_0_0_PCK", "PanCK"),
        ("0_KI67_train", "Ki67"),
        ("0_PGR_train", "PR"),
    ],
)
def test_published_file_names(file: str, name: str) -> None:
    assert taxonomy.find_biomarker(file) == name


@given(
    st.sampled_from(TISSUES),
    st.sampled_from([str.lower, str.upper, str.title]),
    st.sampled_from([" ", "_", "-", ""]),
)
def test_every_spelling_of_a_tissue_type_is_that_one(name: str, case: object, separator: str) -> None:
    assert taxonomy.tissue(case(name).replace(" ", separator)) == name  # type: ignore[operator]


@given(st.text(max_size=12))
def test_unknown_name_is_refused_with_a_known_one(text: str) -> None:
    with pytest.raises(TaxonomyError) as refused:
        taxonomy.tissue(f"{text}?")
    assert refused.value.key == f"{text}?"
    assert any(name in (refused.value.fix or "") for name in TISSUES)


def test_ids_are_indices_and_missing_is_minus_one() -> None:
    assert [taxonomy.tissue_id(t) for t in TISSUES] == list(range(7))
    assert [taxonomy.biomarker_id(b) for b in taxonomy.MIHIC_BIOMARKERS] == list(range(12))
    assert taxonomy.tissue_id(None) == taxonomy.biomarker_id(None) == -1
