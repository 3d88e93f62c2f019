"""docs/datasets.md: its walkthrough runs as written, and its facts are those of the cards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from his2lip import resources
from his2lip.data.cards.card import list_cards, load_card
from his2lip.data.images.codec import encode_png

FENCED = re.compile(r"```(\w+)\n(.*?)```", flags=re.DOTALL)
PAGE = (resources.root() / "docs/datasets.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading, up to the next heading of the same level."""
    level = title.split()[0]
    start = PAGE.index(f"\n{title}\n") + len(title) + 2
    return re.split(rf"\n{level} ", PAGE[start:])[0]


def write_biopsies(folder: Path, pixels: np.ndarray) -> None:
    """Four squares of real tissue for each of ten patients. The brownest half is positive."""
    squares = [pixels[y : y + 72, x : x + 72] for y in range(0, 434, 72) for x in range(0, 434, 72)]
    brown = sorted(squares, key=lambda s: float(s[..., 2].mean()) - float(s[..., 0].mean()))
    for label, first, own in (("positive", 1, brown[:20]), ("negative", 6, brown[-20:])):
        (folder / label).mkdir(parents=True)
        for i, square in enumerate(own):
            (folder / label / f"P{first + i // 4:02d}_{i % 4 + 1}.png").write_bytes(encode_png(square))


# Runs each line that it reads as a command, all in one process, whose imports take seconds.
_ONE_PROCESS = """
import shlex, sys
from typer.testing import CliRunner
from his2lip.cli import app
for line in sys.stdin:
    done = CliRunner().invoke(app, shlex.split(line), catch_exceptions=False)
    print(done.output)
    print("exit", done.exit_code, flush=True)
"""
_HIS2LIP = """
coproc commands { exec "$PYTHON" -c "$ONE_PROCESS"; }
his2lip() {
    printf '%q ' "$@" >&"${commands[1]}"
    echo >&"${commands[1]}"
    while IFS= read -r line <&"${commands[0]}"; do
        case "$line" in "exit "*) return "${line#exit }" ;; *) printf '%s\\n' "$line" ;; esac
    done
    return 70
}
"""


@pytest.mark.parametrize("skipped", ["his2lip benchmark", pytest.param(None, marks=pytest.mark.slow)])
def test_the_walkthrough_of_a_users_own_data_runs_as_written(
    tmp_path: Path, real_ihc: np.ndarray, mlflow_store: str, skipped: str | None
) -> None:
    """The benchmark starts its own Ray, so it and a process for each command are only in the slow tests."""
    text = section("## Your own data")
    steps = [(kind, body) for kind, body in FENCED.findall(text) if kind in ("sh", "text")]
    if skipped:
        at = next(i for i, (_, body) in enumerate(steps) if body.startswith(skipped))
        steps[at : at + 2] = []  # the command and its output
    write_biopsies(tmp_path / "biopsies", real_ihc)
    own = _HIS2LIP if skipped else 'his2lip() { "$PYTHON" -m his2lip "$@"; }'
    ran = subprocess.run(
        ["bash", "-c", "\n".join(["set -e", own, *(body for kind, body in steps if kind == "sh")])],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHON": sys.executable, "ONE_PROCESS": _ONE_PROCESS, "PYTHONPATH": str(resources.root())},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for line in (line for kind, body in steps if kind == "text" for line in body.splitlines()):
        assert line in ran.stdout
    assert "problem:" not in ran.stdout
    assert (tmp_path / "biopsies.html").read_text().count("data:image/jpeg") == 12


@pytest.mark.parametrize("name", list_cards())
def test_the_facts_on_the_page_are_those_of_the_card(name: str) -> None:
    card, text = load_card(name), " ".join(section(f"### {name}").split())
    assert str(card.source.record) in text
    assert f"({card.source.access})" in text
    assert f"**Terms**: {card.licence.name}" in text
    assert f"his2lip data prepare {name} --root " in text
    assert all(sentence in text for sentence in (*card.unknown, *card.differences))
    for labels in card.published.counts.values():
        assert all(f"{count:,}" in text for count in labels.values())
    if card.mpp is not None:
        assert f"{card.mpp} µm" in text


def test_the_page_describes_exactly_the_datasets_that_have_a_card() -> None:
    assert sorted(re.findall(r"^### (.+)$", PAGE, flags=re.MULTILINE)) == list_cards()
