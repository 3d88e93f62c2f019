"""Configuration: overrides, round trips, and one clear sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from his2lip.config import Config, digest, dump_yaml, load
from his2lip.errors import ConfigError


class Inner(Config):
    rate: float = 0.1
    names: list[str] = []


class Outer(Config):
    steps: int = 3
    inner: Inner = Inner()
    parts: dict[str, Inner] = {}


def test_overrides_win_over_the_file_and_defaults_fill_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("steps: 5\ninner: {rate: 0.5}\n")
    config = load(Outer, file, ["inner.rate=1e-4", "inner.names=[a, b]"])
    assert config == Outer(steps=5, inner=Inner(rate=1e-4, names=["a", "b"]))


@given(st.integers(-(2**31), 2**31), st.floats(allow_nan=False, allow_infinity=False), st.lists(st.text()))
def test_a_dumped_configuration_reads_back_equal(steps: int, rate: float, names: list[str]) -> None:
    import yaml

    config = Outer(steps=steps, inner=Inner(rate=rate, names=names))
    again = Outer.model_validate(yaml.safe_load(dump_yaml(config)))
    assert again == config
    assert digest(again) == digest(config)


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("step: 3", [], "did you mean 'steps'"),
        ("inner: {rat: 3}", [], "did you mean 'rate'"),
        ("parts: {x: {ratee: 3}}", [], "did you mean 'rate'"),
        ("steps: many", [], "key steps"),
        ("", ["inner.rate=.inf"], "finite"),
        ("steps: [", [], "not valid YAML"),
        ("- a", [], "a mapping is wanted"),
        ("", ["steps"], "key=value"),
        ("", ["inner.rates=2"], "did you mean 'rate'"),
        ("inner: other.yaml", ["inner.rate=2"], "no keys to override"),
    ],
)
def test_a_mistake_gets_one_sentence_that_says_where(
    tmp_path: Path, text: str, overrides: list[str], said: str
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r".") as caught:
        load(Outer, file, overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").touch()
    with pytest.raises(ConfigError, match=r"did you mean '.*train\.yaml'"):
        load(Outer, tmp_path / "trian.yaml")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Outer, tmp_path / "a.yaml")
