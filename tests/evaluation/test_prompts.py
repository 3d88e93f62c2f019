"""Prompt sets: expansion, order, duplicates, digests, and mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from his2lip import taxonomy
from his2lip.errors import ConfigError
from his2lip.evaluation.prompts import PromptSet, american, dataset_and_protocol, list_prompts

# Words by which a sentence says what is not there; a text tower hardly reads them.
NEGATION = re.compile(r"\b(no|not|non|none|nor|neither|never|without|absent|absence|lack\w*|free of)\b", re.I)


def _loaded(name: str) -> PromptSet:
    return PromptSet.load(name, placeholders=["{biomarker}"])


def test_each_template_is_filled_with_each_synonym_in_order() -> None:
    found = PromptSet.build("t", {"a": ["x", "y"], "b": ["z"]}, templates=["an image of {}", "{} tissue"])
    assert found.of("a") == ("an image of x", "an image of y", "x tissue", "y tissue")
    assert found.of("b") == ("an image of z", "z tissue")


def test_order_and_duplicates_are_kept_and_count_in_the_digest() -> None:
    lines = {"a": ["one", "one", "two"], "b": ["one"]}
    found = PromptSet.build("t", lines)
    assert found.all_sentences() == ["one", "one", "two", "one"]
    assert found.digest == PromptSet.build("another name", lines).digest
    assert found.digest != PromptSet.build("t", {"a": ["one", "two", "one"], "b": ["one"]}).digest
    assert found.digest != PromptSet.build("t", {"b": ["one"], "a": ["one", "one", "two"]}).digest


def test_every_prompt_set_of_the_project_loads_and_tissue_covers_the_taxonomy() -> None:
    for name in list_prompts():
        assert len(_loaded(name).classes) >= 2
    assert PromptSet.load("tissue").classes == taxonomy.TISSUES


@pytest.mark.parametrize("name", list_prompts())
def test_every_pool_of_the_project_has_twelve_sentences_in_both_spellings_without_negation(name: str) -> None:
    for label, lines in _loaded(name).sentences:
        assert len(set(lines)) == len(lines) >= 12, label
        assert [line for line in lines if NEGATION.search(line)] == [], label
        british = [line for line in lines if american(line) != line]
        assert british, label
        assert {american(line) for line in british} <= set(lines), label


def test_no_sentence_on_staining_counts_nuclei_since_one_in_a_hundred_is_positive() -> None:
    counted = re.compile(r"\b(many|most|numerous|all|few|several|crowded)\b", re.I)
    for name in ("staining", "marker_staining", "ki67_cell"):
        assert [line for line in _loaded(name).all_sentences() if counted.search(line)] == []


def test_american_spelling_is_that_of_each_word() -> None:
    british = "Tumour centred on oestrogen receptor in grey fibres, haematoxylin; an artefact at its centre"
    assert american(british) == (
        "Tumor centered on estrogen receptor in gray fibers, hematoxylin; an artifact at its center"
    )


def test_slots_combine_to_classes_with_every_template_and_synonym(tmp_path: Path) -> None:
    file = tmp_path / "pairs.yaml"
    file.write_text(
        "templates: ['{a} with {b}', '{b} in {a}']\n"
        "slots: {a: {T: [tumour, cancer], S: [stroma]}, b: {CD3: [CD3]}}\nboth_spellings: true\n",
        encoding="utf-8",
    )
    found = PromptSet.load(file)
    assert found.classes == ("T CD3", "S CD3")
    assert found.of("T CD3") == (
        "tumour with CD3", "tumor with CD3", "cancer with CD3",
        "CD3 in tumour", "CD3 in tumor", "CD3 in cancer",
    )  # fmt: skip
    assert found.of("S CD3") == ("stroma with CD3", "CD3 in stroma")


def test_a_prompt_set_can_be_restricted_to_classes_in_a_given_order() -> None:
    found = PromptSet.load("tissue").narrow(["Tumor", "Alveoli"])
    assert found.classes == ("Tumor", "Alveoli")
    with pytest.raises(ConfigError) as refused:
        found.narrow(["Tumour"])
    assert refused.value.key == "Tumour"
    assert "'Tumor'" in str(refused.value.fix)


def test_a_file_of_the_user_is_loaded_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("classes:\n  yes: [positive]\n", encoding="utf-8")
    with pytest.raises(ConfigError) as refused:  # YAML reads `yes` as true
        PromptSet.load(file)
    assert refused.value.key == "classes.True"
    assert str(refused.value.where).startswith(str(file))
    file.write_text('classes:\n  "yes": [positive]\n  "no": [negative]\n', encoding="utf-8")
    assert PromptSet.load(file).all_sentences() == ["positive", "negative"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("classes: {a: []}", "a"),
        ("classes: {a: [' ']}", "a"),
        ("templates: [plain]\nclasses: {a: [x]}", "plain"),
        ("templates: ['{} and {}']\nclasses: {a: [x]}", "{} and {}"),
        ("note: nothing", "classes"),
        ("templates: ['{a}']\nslots: {a: {x: [x]}, b: {y: [y]}}", "{a}"),
        ("slots: {a: {x: []}}", "x"),
        ("slots: {a: {x: [x]}}\nclasses: {a: [x]}", "slots"),
        ("templates: ['{a}']\nslots: {a: {}}", "a"),
        ("templates: ['{} in {tissue}']\nclasses: {a: [x]}", "{tissue}"),
        ("classes: {a: ['an image of {}']}", "{}"),
        ("templates: ['{a} in {tisue}']\nslots: {a: {x: [x]}}", "{tisue}"),
        ("templates: ['{a} {b}']\nslots: {a: {x: ['{b}']}, b: {y: [y]}}", "{b}"),
        (
            "templates: ['{a} {b}']\nslots: {a: {x: [x], x y: [x]}, b: {y z: [z], z: [z]}}",
            "x y z",
        ),
    ],
)
def test_a_mistake_in_a_prompt_file_is_refused_by_its_key(tmp_path: Path, text: str, key: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        PromptSet.load(file)
    assert (refused.value.where, refused.value.key) == (file, key)
    assert refused.value.fix


def test_a_set_with_a_placeholder_is_loaded_only_where_the_caller_fills_it() -> None:
    with pytest.raises(ConfigError) as refused:
        PromptSet.load("marker_staining")
    assert refused.value.key == "{biomarker}"
    assert PromptSet.load("marker_staining", placeholders=["{biomarker}"]).classes == ("positive", "negative")


def test_an_unknown_name_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as refused:
        PromptSet.load("tisue")
    assert refused.value.key == "tisue"
    assert "'tissue'" in str(refused.value.fix)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("bcdata", ("bcdata", None)),
        ("bcdata/ki67", ("bcdata", "ki67")),
        ("bcdata/", ("bcdata", "")),
        ("own/ward", ("own/ward", None)),
        ("own/ward/default", ("own/ward", "default")),
        ("absent/default", ("absent", "default")),
        ("absent", ("absent", None)),
    ],
)
def test_a_key_of_prompts_names_a_dataset_and_perhaps_its_protocol(
    key: str, expected: tuple[str, str | None]
) -> None:
    assert dataset_and_protocol(key, ["bcdata", "own/ward"]) == expected


@pytest.mark.parametrize("name", ["mine.json", "mine.txt", "mine.YAML", "mine", "absent.json"])
def test_a_prompt_file_of_another_suffix_is_told_from_the_name_of_a_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = '{"classes": {"a": ["x"], "b": ["y"]}}'
    if not name.startswith("absent"):
        Path(name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        PromptSet.load(name)
    assert (refused.value.where, refused.value.key) == (name, name)
    assert ".yaml" in str(refused.value.what)
    assert refused.value.fix is not None
    Path("mine.yaml").write_text(text, encoding="utf-8")
    assert PromptSet.load("mine.yaml").classes == ("a", "b")


def test_prompt_files_that_cannot_be_read_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "empty.yaml").touch()
    for place in sorted(tmp_path.iterdir()):
        with pytest.raises(ConfigError) as refused:
            PromptSet.load(place)
        assert (refused.value.where, refused.value.fix is not None) == (place, True)
        assert "Errno" not in str(refused.value)
