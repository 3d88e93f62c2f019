"""Prompt sets: expansion, order, duplicates, identity, and mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from his2lip import taxonomy
from his2lip.errors import ConfigError
from his2lip.evaluation.prompts import PromptSet, list_prompts


def test_templates_are_filled_by_synonyms_template_by_template() -> None:
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


def test_every_carried_prompt_set_loads_and_tissue_covers_the_taxonomy() -> None:
    for name in list_prompts():
        assert len(PromptSet.load(name).classes) >= 2
    assert PromptSet.load("tissue").classes == taxonomy.TISSUES


def test_a_set_narrows_to_a_protocol_s_classes_in_its_order() -> None:
    found = PromptSet.load("tissue").narrow(["Tumor", "Alveoli"])
    assert found.classes == ("Tumor", "Alveoli")
    with pytest.raises(ConfigError, match="no class 'Tumour'; did you mean 'Tumor'"):
        found.narrow(["Tumour"])


def test_a_file_of_the_user_s_loads_by_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("classes:\n  yes: [positive]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.yaml"):  # YAML reads `yes` as true
        PromptSet.load(file)
    file.write_text('classes:\n  "yes": [positive]\n  "no": [negative]\n', encoding="utf-8")
    assert PromptSet.load(file).all_sentences() == ["positive", "negative"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("classes: {a: []}", "class 'a' has an empty sentence or none"),
        ("classes: {a: [' ']}", "class 'a' has an empty sentence or none"),
        ("templates: [plain]\nclasses: {a: [x]}", "a template holds {} once"),
        ("templates: ['{} and {}']\nclasses: {a: [x]}", "a template holds {} once"),
        ("clases: {a: [x]}", "unknown key 'clases'; did you mean 'classes'|'classes' is missing"),
    ],
)
def test_a_broken_prompt_file_gives_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        PromptSet.load(file)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tissue'"):
        PromptSet.load("tisue")
