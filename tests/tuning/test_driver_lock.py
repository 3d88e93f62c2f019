"""A study has one driver at a time, in SQLite and on a database server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from postgres import DATABASE, PASSWORD, USER, needs_postgres, postgres

from his2lip.errors import RunError
from his2lip.tuning.driver_lock import only_driver

_HOLD = """
import sys
from his2lip.tuning.driver_lock import only_driver
with only_driver(sys.argv[1], "mine"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def _check(url: str) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", _HOLD, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "held\n"
        with pytest.raises(RunError) as refused, only_driver(url, "mine"):
            pytest.fail("two drivers")
        assert refused.value.key == "study"
        with only_driver(url, "other"):
            pass
    finally:
        driver.kill()
        driver.wait()
    with only_driver(url, "mine"):  # a killed driver holds nothing
        pass


def test_a_second_driver_of_an_sqlite_study_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    _check(f"sqlite:///{tmp_path}/study.db")


@needs_postgres
def test_a_second_driver_of_a_study_on_postgresql_is_refused_until_the_first_ends() -> None:
    with postgres() as port:
        _check(f"postgresql+psycopg2://{USER}:{PASSWORD}@127.0.0.1:{port}/{DATABASE}")


def test_a_database_that_cannot_be_opened_is_left_to_the_study(tmp_path: Path) -> None:
    with only_driver("postgresql+psycopg2://me@127.0.0.1:1/none", "mine"):
        pass
