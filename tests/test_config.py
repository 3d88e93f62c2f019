"""Configuration: overrides, round trips, and one clear sentence for every mistake."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Literal

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from his2lip import resources
from his2lip.config import (
    Config,
    Option,
    describe_options,
    digest,
    dump_yaml,
    json_schema,
    load,
    read_yaml,
    recorded,
    resolved,
    set_values,
    validate,
)
from his2lip.errors import ConfigError, first_line, redact
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.training.config import TrainConfig
from his2lip.tuning.config import SweepConfig

# Nine levels of nine aliases: 400 million values in a few lines.
LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghi")
)


class Inner(Config):
    """A section."""

    rate: float = 0.1
    """How fast,
    per step."""
    names: list[str] = []


class Outer(Config):
    steps: int = Field(default=3, ge=0)
    """How often."""
    name: str = ""
    inner: Inner = Inner()
    parts: dict[str, Inner] = {}
    choice: Inner | Literal["a", "b"] | None = None


def test_overrides_win_over_the_file_and_defaults_fill_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("steps: 5\ninner: {rate: 0.5}\n")
    config = load(Outer, file, ["inner.rate=1e-4", "inner.names=[a, b]"])
    assert config == Outer(steps=5, inner=Inner(rate=1e-4, names=["a", "b"]))


@given(st.integers(0, 2**31), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.text()))
def test_a_dumped_configuration_reads_back_equal(steps: int, rate: float, names: list[str]) -> None:
    import yaml

    config = Outer(steps=steps, inner=Inner(rate=rate, names=names))
    again = Outer.model_validate(yaml.safe_load(dump_yaml(config)))
    assert again == config
    assert digest(again) == digest(config)


@pytest.mark.parametrize(
    ("text", "overrides", "key"),
    [
        ("step: 3", [], "step"),
        ("inner: {rat: 3}", [], "inner.rat"),
        ("parts: {x: {ratee: 3}}", [], "parts.x.ratee"),
        ("steps: many", [], "steps"),
        ("", ["inner.rate=.inf"], "inner.rate"),
        ("steps: [", [], None),
        ("- a", [], None),
        ("", ["steps"], "steps"),
        ("", ["steps=["], "steps"),
        ("", ["inner.rates=2"], "inner.rates"),
        ("inner: other.yaml", ["inner.rate=2"], "inner.rate"),
        ("choice: {name: 3}", [], "choice.name"),
        ("inner: {names: [a, 3]}", [], "inner.names.1"),
    ],
)
def test_a_mistake_is_one_sentence_and_names_its_key(
    tmp_path: Path, text: str, overrides: list[str], key: str | None
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Outer, file, overrides)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("step: 3", "steps"), ("inner: {rat: 3}", "rate"), ("parts: {x: {ratee: 3}}", "rate")],
)
def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path, text: str, nearest: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Outer, tmp_path / "a.yaml")
    assert caught.value.fix is not None
    assert f"'{nearest}'" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("steps: 1\ninner: {rate: 1}\nsteps: 2\n", "steps", 3),
        ("inner:\n  rate: 1\n  rate: 2\n", "rate", 3),
        ("parts: {no: {}, off: {}}\n", "off", 1),  # YAML reads both as the truth value
    ],
)
def test_a_key_that_is_there_twice_is_an_error(tmp_path: Path, text: str, key: str, line: int) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Outer, file)
    assert (caught.value.key, caught.value.where) == (key, f"{file}:{line}")


def test_merged_mappings_may_be_overridden_by_their_own_keys(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("parts:\n  x: &x {rate: 0.5, names: [a]}\n  y: {<<: *x, rate: 0.7}\n")
    parts = load(Outer, tmp_path / "a.yaml").parts
    assert parts == {"x": Inner(rate=0.5, names=["a"]), "y": Inner(rate=0.7, names=["a"])}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("steps: 3\nname: yes", "name"),
        ("name: 0", "name"),
        ("name: 2020-01-01", "name"),
        ("parts: {yes: {}}", "parts.True"),
    ],
)
def test_text_that_yaml_reads_as_another_type_gets_the_hint_to_quote_it(
    tmp_path: Path, text: str, key: str
) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Outer, tmp_path / "a.yaml")
    assert caught.value.key == key
    assert caught.value.fix is not None
    assert "quote" in caught.value.fix


def test_a_number_that_is_meant_as_a_name_gets_the_hint_to_quote_it_too() -> None:
    with pytest.raises(ConfigError) as caught:
        load(Outer, None, ["name=1e3"])
    assert "quote" in str(caught.value.fix)
    assert load(Outer, None, ['name="1e3"']).name == "1e3"


@pytest.mark.parametrize(
    "text",
    [
        "name: 2020-99-99",
        f"steps: {'9' * 5000}",
        f"steps: 0x{'f' * 5000}",
        "inner: " + "[" * 5000 + "]" * 5000,
        "inner: " + "{a: " * 5000 + "1" + "}" * 5000,
        "steps: !!int many",
        "steps: !!float ''",
        "steps: !!bool maybe",
        "steps: !!python/object/apply:os.system [true]",
        "inner: &a {names: *a}",
        "inner: {? {a: b} : c}",
        LAUGHS,
        "\x00",
        "steps: \t- 3",
    ],
)
def test_yaml_that_no_configuration_can_be_made_of_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Outer, tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_file_loads_or_is_one_sentence(data: st.DataObject) -> None:
    text = list(resources.find("train/train_tiny.yaml").read_text(encoding="utf-8"))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 3))] = data.draw(st.text(max_size=3))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mutated.yaml"
        file.write_text("".join(text), encoding="utf-8", errors="replace")
        try:
            said = repr(load(TrainConfig, file))
        except ConfigError as error:
            said = str(error)
    assert "\n" not in said


def test_python_values_override_without_a_way_through_text() -> None:
    name = "C:\\runs\\best"
    assert load(Outer, None, {"name": name, "inner": Inner(rate=2)}) == Outer(name=name, inner=Inner(rate=2))


def test_of_two_overrides_of_a_key_the_later_one_counts() -> None:
    assert load(Outer, None, ["inner={rate: 1}", "inner.rate=2", "inner.rate=3"]).inner.rate == 3


def test_overrides_do_not_change_the_mapping_they_are_applied_to() -> None:
    tree = {"inner": {"rate": 1}}
    assert set_values(tree, {"inner.rate": 2, "parts.x": 3}) == {"inner": {"rate": 2}, "parts": {"x": 3}}
    assert tree == {"inner": {"rate": 1}}


@pytest.mark.parametrize("tree", [{"inner": 3}, {"inner": "plain"}, {"inner": [1]}])
def test_a_key_through_a_value_that_is_not_a_mapping_is_refused(tree: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        set_values(tree, {"inner.rate": 1.0})
    assert caught.value.key == "inner.rate"


def test_an_empty_section_is_filled() -> None:
    assert set_values({"inner": None}, {"inner.rate": 1.0}) == {"inner": {"rate": 1.0}}


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").touch()
    with pytest.raises(ConfigError, match=r"'.*train\.yaml'"):
        load(Outer, tmp_path / "trian.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(ConfigError) as caught:
        load(Outer, tmp_path / "a.yaml")
    assert caught.value.where == tmp_path / "a.yaml"


def test_the_table_of_options_has_key_type_default_and_meaning() -> None:
    assert describe_options(Outer) == [
        Option("steps", "whole number >= 0", "3", "How often."),
        Option("name", "text", "", ""),
        Option("inner", "", "", "A section."),
        Option("inner.rate", "number", "0.1", "How fast, per step."),
        Option("inner.names", "list of text", "[]", ""),
        Option("parts", "mapping to {rate, names}", "{}", ""),
        Option("choice", "{rate, names} | a | b | null", "null", "A section."),
        Option("choice.rate", "number", "0.1", "How fast, per step."),
        Option("choice.names", "list of text", "[]", ""),
    ]


@pytest.mark.parametrize("kind", [TrainConfig, SweepConfig, BenchmarkConfig])
def test_every_option_of_a_command_has_a_meaning(kind: type[Config]) -> None:
    assert [option.key for option in describe_options(kind) if not option.meaning] == []


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        (TrainConfig, "train/train_tiny.yaml"),
        (SweepConfig, "tune/loss_weights.yaml"),
        (BenchmarkConfig, "benchmarks/zero_shot.yaml"),
        (BenchmarkConfig, "benchmarks/retrieval.yaml"),
    ],
)
def test_files_of_the_project_fit_the_json_schema(kind: type[Config], file: str) -> None:
    jsonschema.validate(read_yaml(resources.find(file)), json_schema(kind))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://me:pa:ss@db.org:5432/x", "postgresql+psycopg://me:***@db.org:5432/x"),
        ("https://me:p@ss@mlflow.org/api", "https://me:***@mlflow.org/api"),
        ("https://hf_abcdef@huggingface.co/x", "https://***@huggingface.co/x"),
        ("s3://AKIA:abc@bucket/x", "s3://AKIA:***@bucket/x"),
        ("s3://AKIA:ab/c+d@bucket/x/y@z", "s3://AKIA:***@bucket/x/y@z"),
        ("s3:/AKIA:abc@bucket/x", "s3:/AKIA:***@bucket/x"),  # as pathlib writes it
        ('{"a":"http://h:80","b":"you@example.org"}', '{"a":"http://h:80","b":"you@example.org"}'),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dabc", "mssql+pyodbc:///?odbc_connect=***"),
        ("s3://b/x?region=eu&secret_key=abc&scheme=http", "s3://b/x?region=eu&secret_key=***&scheme=http"),
        ("https://b.org/x?X-Amz-Signature=abc", "https://b.org/x?X-Amz-Signature=***"),
        ("cannot read s3://k:abc@b/x or gs://b/y", "cannot read s3://k:***@b/x or gs://b/y"),
        ("http://127.0.0.1:8265/a@b", "http://127.0.0.1:8265/a@b"),
        ("models:/name@champion", "models:/name@champion"),
        ("sqlite:////home/me@org/mlflow.db", "sqlite:////home/me@org/mlflow.db"),
        ("you@example.org", "you@example.org"),
    ],
)
def test_secrets_of_addresses_are_redacted(text: str, shown: str) -> None:
    assert redact(text) == shown
    error = ConfigError(text, where=text, fix=text)
    assert (error.what, error.where, error.fix) == (shown, shown, shown)


def test_a_recorded_configuration_has_no_secrets_and_the_resolved_one_is_as_given() -> None:
    config = Outer(name="s3://k:abc@b/x", inner=Inner(names=["a", "https://t@h/x"]))
    assert recorded(config)["name"] == "s3://k:***@b/x"
    assert recorded(config)["inner"]["names"] == ["a", "https://***@h/x"]
    assert resolved(config)["name"] == "s3://k:abc@b/x"


def test_a_path_made_of_an_address_and_a_librarys_message_show_no_secrets() -> None:
    assert "abc" not in str(ConfigError("gone", where=Path("s3://k:abc@b/x")))
    assert first_line(OSError("cannot open s3://k:abc@b/x")) == "cannot open s3://k:***@b/x"


def test_a_misspelled_key_is_named_before_the_key_that_is_then_missing() -> None:
    from his2lip.training.config import TrainConfig

    with pytest.raises(ConfigError) as refused:
        validate(TrainConfig, {"dta": {"shards": "x"}})
    assert (refused.value.key, "'data'" in str(refused.value.fix)) == ("dta", True)
    with pytest.raises(ConfigError) as refused:
        validate(TrainConfig, {"name": "a b", "data": {"shards": "x"}})
    assert refused.value.key == "name"
    assert "^[" not in refused.value.what
