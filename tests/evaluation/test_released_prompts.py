"""Released prompt sentences: parsed and never run, with their order, duplicates and accidents."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from his2lip.cli import app
from his2lip.errors import ConfigError
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.released_prompts import import_released, released_dictionaries

RELEASED = """
mean = [0.7, 0.7, 0.7]
print("a file that is run prints this")
tissue_prompts = {
    "Immune Cells": ["one", "two" "three", "one"],
    "Tumor": ["one", "four."],
}
binary = {0: ["healthy"], 1: ["tumor"]}
"""


@pytest.fixture
def released(tmp_path: Path) -> Path:
    file = tmp_path / "constants.py"
    file.write_text(RELEASED, encoding="utf-8")
    return file


def test_order_duplicates_and_fused_sentences_are_kept_and_the_file_is_not_run(
    released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(released_dictionaries(released)) == ["tissue_prompts", "binary"]
    found = import_released(released, "tissue_prompts", rename={"Immune Cells": "Immune cells"})
    assert found.sentences == (("Immune cells", ("one", "twothree", "one")), ("Tumor", ("one", "four.")))
    assert import_released(released, "binary", rename={}).classes == ("0", "1")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "rename", "key"), [("tissue_prompt", {}, "tissue_prompt"), ("binary", {"2": "two"}, "2")]
)
def test_an_unknown_dictionary_or_class_is_refused(
    released: Path, name: str, rename: dict[str, str], key: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        import_released(released, name, rename=rename)
    assert (refused.value.where, refused.value.key) == (released, key)


def test_a_missing_file_is_called_missing_and_not_by_the_name_of_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        released_dictionaries(tmp_path / "constants.py")
    assert os.strerror(errno.ENOENT) in refused.value.what
    assert "Error" not in refused.value.what


@pytest.mark.parametrize("text", ["not python :", "mean = [1]", "prompts = {'a': 'text'}", ""])
def test_a_file_without_sentences_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "constants.py"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        released_dictionaries(file)
    assert (refused.value.where, refused.value.key) == (file, "constants.py")


def test_the_command_writes_a_prompt_file_that_scores_the_same_sentences(
    released: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pools/tissue.yaml"
    given = ["prompts", "import", str(released), "--name", "tissue_prompts", "--out", str(out)]
    done = CliRunner().invoke(app, [*given, "--rename", "Immune Cells=Immune cells"])
    assert done.exit_code == 0, done.output
    wanted = import_released(released, "tissue_prompts", rename={"Immune Cells": "Immune cells"})
    assert PromptSet.load(out).sentences == wanted.sentences
    listed = CliRunner().invoke(app, ["prompts", "import", str(released)])
    assert "binary" in listed.output


@pytest.mark.parametrize(
    "rename", [{"Immune Cells": "Tumor"}, {"Immune Cells": "One", "Tumor": "One"}], ids=["in use", "both"]
)
def test_two_classes_of_one_name_are_refused_so_that_no_sentence_is_dropped(
    released: Path, rename: dict[str, str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        import_released(released, "tissue_prompts", rename=rename)
    assert (refused.value.where, refused.value.key) == (released, rename["Immune Cells"])
    swapped = {"Immune Cells": "Tumor", "Tumor": "Immune Cells"}
    found = import_released(released, "tissue_prompts", rename=swapped)
    assert found.of("Immune Cells") == ("one", "four.")


def test_a_file_with_a_byte_order_mark_or_an_encoding_line_is_read_as_python_reads_it(tmp_path: Path) -> None:
    text = "prompts = {'a': ['naïve tissue']}\n"
    contents = [text.encode("utf-8-sig"), b"# coding: latin-1\n" + text.encode("latin-1")]
    for content in contents:
        (tmp_path / "constants.py").write_bytes(content)
        assert released_dictionaries(tmp_path / "constants.py") == {"prompts": {"a": ["naïve tissue"]}}
