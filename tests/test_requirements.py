"""The lock files: complete, in agreement, and without test packages on a cluster node."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def locked(name: str) -> dict[str, set[str]]:
    """Package -> its versions (more than one where they depend on the platform or on Python)."""
    found: dict[str, set[str]] = {}
    for package, version in re.findall(
        r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE
    ):
        found.setdefault(canonicalize_name(package), set()).add(version)
    return found


RUNTIME, DEVELOPMENT = locked("requirements.lock"), locked("requirements-dev.lock")


def test_no_package_is_in_both_lock_files() -> None:
    assert not RUNTIME.keys() & DEVELOPMENT.keys()


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_a_dependency_is_locked_in_a_version_that_the_project_allows(line: str) -> None:
    wanted = Requirement(line)
    versions = RUNTIME[canonicalize_name(wanted.name)]
    assert all(version in wanted.specifier for version in versions)


@pytest.mark.parametrize("line", PROJECT["optional-dependencies"]["dev"])
def test_a_development_dependency_is_locked_and_not_installed_on_cluster_nodes(line: str) -> None:
    wanted = Requirement(line)
    name = canonicalize_name(wanted.name)
    versions = DEVELOPMENT.get(name) or RUNTIME[name]  # pandas comes with MLflow
    assert all(version in wanted.specifier for version in versions)
    if name not in ("pandas",):
        assert name not in RUNTIME


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_every_locked_version_has_a_hash(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for entry in re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]:
        assert "--hash=sha256:" in entry, entry.splitlines()[0]


def test_nodes_install_the_runtime_lock_file_and_make_installs_both() -> None:
    assert "requirements-dev.lock" not in (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--require-hashes" in makefile
    assert "-r requirements.lock -r requirements-dev.lock" in makefile
