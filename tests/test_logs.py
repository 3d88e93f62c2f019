"""Logging: the level on the terminal, the log file of a folder, and errors that end a command."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from his2lip.errors import ConfigError
from his2lip.logs import LEVEL, LOG_FILE, log_failure, log_to, setup

log = logging.getLogger("his2lip.tests")


def _some_lines() -> None:
    log.debug("a detail")
    log.info("a step")
    log.warning("a warning")


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (None, ["a warning"]),
        ("error", []),
        ("info", ["a step", "a warning"]),
        ("debug", ["a detail", "a step", "a warning"]),
    ],
)
def test_the_level_decides_what_the_terminal_shows(
    level: str | None, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    setup(level)
    _some_lines()
    assert [line.rpartition(": ")[2] for line in capsys.readouterr().err.splitlines()] == shown


def test_processes_that_are_started_later_get_the_level() -> None:
    setup("debug")
    assert os.environ[LEVEL] == "debug"


def test_a_level_that_does_not_exist_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEVEL, "inof")
    with pytest.raises(ConfigError, match="'info'") as refused:
        setup()
    assert refused.value.key == LEVEL


def test_the_file_has_info_lines_whatever_the_terminal_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to(tmp_path / "run")
    _some_lines()
    lines = (tmp_path / "run" / LOG_FILE).read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["a step", "a warning"]
    assert all(f":{os.getpid()} his2lip.tests" in line for line in lines), "which process wrote it"
    assert capsys.readouterr().err.count("\n") == 1


def test_a_second_folder_ends_the_first_ones_file(tmp_path: Path) -> None:
    log_to(tmp_path / "a")
    log.info("one")
    log_to(tmp_path / "b")
    log.info("two")
    assert "two" not in (tmp_path / "a" / LOG_FILE).read_text()
    assert "two" in (tmp_path / "b" / LOG_FILE).read_text()


def test_a_file_that_is_removed_while_it_is_open_is_made_again(tmp_path: Path) -> None:
    log_to(tmp_path)
    log.info("before")
    (tmp_path / LOG_FILE).unlink()  # as --fresh does
    log.info("after")
    assert "after" in (tmp_path / LOG_FILE).read_text()


def test_an_object_store_gets_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log_to("s3://bucket/runs")
    log.info("a step")
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_ends_the_command_is_in_the_file_with_its_traceback_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to(tmp_path)
    try:
        raise KeyError("lost")
    except KeyError as error:
        log_failure(error)
    text = (tmp_path / LOG_FILE).read_text()
    assert "ERROR" in text
    assert "Traceback" in text
    assert "KeyError: 'lost'" in text
    assert capsys.readouterr().err == ""


def test_no_line_and_no_traceback_shows_the_secrets_of_an_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup("info")
    log_to(tmp_path)
    log.warning("trial %d starts with %s", 3, {"data.shards": "s3://k:SECRET@b/x"})
    try:
        raise OSError("postgresql://me:SECRET@db/x refused")
    except OSError as error:
        log.warning("failed", exc_info=True)
        log_failure(error)
    for text in ((tmp_path / LOG_FILE).read_text(), capsys.readouterr().err):
        assert "SECRET" not in text
        assert "s3://k:***@b/x" in text
        assert "postgresql://me:***@db/x refused" in text
