"""The direction of flow and the public names of packages, held by tests."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "his2lip"

GROUND = {
    *("errors", "config", "taxonomy", "resources", "mlflow_store", "runtime", "files", "parquet", "logs"),
    "templates",
}  # fmt: skip
# What each room may import besides itself and the ground floor; the command line wires the rooms together.
ALLOWED: dict[str, set[str]] = {
    "data": set(),
    "synthetic": {"data"},
    "models": {"data"},
    "loss": set(),
    "training": {"data", "models", "loss"},
    "tuning": {"data", "models", "loss", "training"},
    "evaluation": {"data", "models", "loss"},
    "report": {"data", "evaluation"},
    "serving": {"data", "models", "evaluation"},
    "captioning": {"data", "models", "evaluation"},
    "tracking": set(),
    "jobs": set(),
    "cloud": set(),
    "housekeeping": {"models", "training", "evaluation"},
    "cli": {
        *("data", "synthetic", "models", "loss", "training", "tuning", "evaluation", "report", "serving"),
        *("captioning", "tracking", "jobs", "cloud", "housekeeping"),
    },
    "__init__": {"models"},
    "__main__": {"cli"},
}  # fmt: skip
# Packages without public names of their own: their packages, or the command line.
WITHOUT_FACADE = {"his2lip", "his2lip.data", "his2lip.cli"}

# Public names that no other package and no benchmark imports, but people do: the arguments of WISELoss.
FOR_PEOPLE = {"his2lip.loss": {"LossWeights", "SimilarityWeights"}}

MODULES = {
    ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(PACKAGE.rglob("*.py"))
}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def _imports(module: str) -> set[str]:
    """Modules of his2lip that `module` imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "his2lip":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("his2lip.")}
    return found - {module}


def _folder(module: str) -> str:
    return module if module in PACKAGES else module.rpartition(".")[0]


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_against_the_flow(module: str) -> None:
    rooms = {_room(name) for name in _imports(module)} - {"__init__"}
    room = _room(module)
    assert rooms <= GROUND if room in GROUND else rooms <= GROUND | {room} | ALLOWED[room]


@pytest.mark.parametrize("module", MODULES)
def test_other_packages_are_imported_by_their_public_names(module: str) -> None:
    past = {
        name
        for name in _imports(module)
        if _folder(name) not in WITHOUT_FACADE | {_folder(module)} and name not in PACKAGES
    }
    assert not past


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of the graph, or an empty list."""
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(node: str) -> list[str]:
        state[node] = 1
        path.append(node)
        for other in sorted(graph[node]):
            if state.get(other) == 1:
                return path[path.index(other) :]
            if other not in state and (found := visit(other)):
                return found
        state[node] = 2
        path.pop()
        return []

    return next((found for node in sorted(graph) if node not in state and (found := visit(node))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = [name for name in MODULES if name not in PACKAGES]
    assert not _circle({name: _imports(name) - PACKAGES for name in modules})


def test_no_packages_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for module in MODULES:
        if module != "his2lip":
            folders = {_folder(name) for name in _imports(module)}
            graph[_folder(module)] |= folders - {_folder(module), "his2lip"}
            for folder in folders:
                graph.setdefault(folder, set())
    assert not _circle(graph)


@pytest.mark.parametrize("name", sorted(PACKAGES - WITHOUT_FACADE))
def test_public_names_exist_and_are_not_those_of_modules(name: str) -> None:
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert package.__all__
    for public in package.__all__:
        assert getattr(package, public) is not None
    assert not modules & set(package.__all__), "a module of the same name would hide it"


@lru_cache(maxsize=1)
def _importers() -> dict[tuple[str, str], set[str]]:
    """(package or module, name) -> the folders of his2lip that import it, and `benchmarks`."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    paths = [(path, _folder(name)) for name, path in MODULES.items()]
    paths += [(path, "benchmarks") for path in PACKAGE.parent.glob("benchmarks/**/*.py")]
    for path, folder in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    found[node.module, alias.name].add(folder)
    return found


@pytest.mark.parametrize("name", sorted(PACKAGES - WITHOUT_FACADE))
def test_public_names_are_those_that_others_import(name: str) -> None:
    public = set(importlib.import_module(name).__all__) - FOR_PEOPLE.get(name, set())
    assert not {one for one in public if not _importers()[name, one] - {name}}
