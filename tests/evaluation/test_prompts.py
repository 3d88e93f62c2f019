"""Prompt sets: expansion, order, duplicates, digests, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from his2lip import taxonomy
from his2lip.errors import ConfigError
from his2lip.evaluation.prompts import PromptSet, list_prompts


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
        assert len(PromptSet.load(name).classes) >= 2
    assert PromptSet.load("tissue").classes == taxonomy.TISSUES


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
    ],
)
def test_a_mistake_in_a_prompt_file_is_refused_by_its_key(tmp_path: Path, text: str, key: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        PromptSet.load(file)
    assert (refused.value.where, refused.value.key) == (file, key)


def test_an_unknown_name_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError) as refused:
        PromptSet.load("tisue")
    assert refused.value.key == "tisue"
    assert "'tissue'" in str(refused.value.fix)
