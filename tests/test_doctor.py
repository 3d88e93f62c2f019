"""`his2lip doctor`: what it finds, what it mends itself, and that it leaves nothing behind."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from model_factory import hf_cache

from his2lip.cli.doctor import examine


def test_a_healthy_machine_gets_0_and_nothing_is_made(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "his2lip", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Nothing is missing" in done.stdout
    assert "none yet; the first run makes it" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_token_that_others_can_read_is_made_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    found = next(f for f in examine() if f.what == "Ray token")
    assert found.state == "ok"
    assert "readable only by you" in found.found
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_a_store_that_cannot_be_reached_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file")
    found = next(f for f in examine() if f.what == "MLflow store")
    assert found.state == "missing"


def test_only_repositories_with_weights_in_the_cache_in_use_are_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, file in (("org/weights", "model.safetensors"), ("org/tokenizer", "tokenizer.json")):
        source = tmp_path / name
        source.mkdir(parents=True)
        (source / file).write_text("{}")
        hf_cache(tmp_path / "cache", name, source, monkeypatch)
    found = next(f for f in examine() if f.what == "cached weights")
    assert found.found == "org/weights"
