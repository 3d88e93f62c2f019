"""The direction of flow, held by a test: no package imports one that comes after it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "his2lip"

BASE = {"errors", "config", "taxonomy", "resources", "runtime"}
# What each room may import besides itself and BASE; drivers (commands) wire the rooms together.
ALLOWED: dict[str, set[str]] = {
    "data": set(),
    "models": {"data"},
    "loss": set(),
    "training": {"data", "models", "loss"},
    "tuning": {"data", "models", "loss", "training"},
    "evaluation": {"data", "models", "loss"},
    "report": {"data", "evaluation"},
    "serving": {"data", "models", "evaluation"},
    "tracking": set(),
    "registry": {"tracking"},
    "jobs": set(),
    "commands": {
        *("data", "models", "loss", "training", "tuning", "evaluation", "report", "serving"),
        *("tracking", "registry", "jobs"),
    },
    "cli": {"commands"},
    "__init__": {"models"},
    "__main__": {"cli"},
}  # fmt: skip


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Rooms of his2lip that a module imports anywhere, inside functions too."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "his2lip":
            parts = node.module.split(".")[1:]
            rooms |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("his2lip.")}
    return rooms - {"__version__"}


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_imports_against_the_flow(path: Path) -> None:
    room = _room(path)
    if room in BASE:
        assert _imports(path) <= BASE
    else:
        assert _imports(path) <= BASE | {room} | ALLOWED[room]


def test_no_module_has_outgrown_one_concept() -> None:
    long = {str(p.relative_to(PACKAGE)): n for p in MODULES if (n := len(p.read_text().splitlines())) > 320}
    assert not long
