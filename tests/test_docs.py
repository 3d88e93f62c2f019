"""Pages, remarks and the code agree: every path, link, command, option and key that a page names exists."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
import typer.main
from test_architecture import ALLOWED

from his2lip.cli import app
from his2lip.config import load
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.serving.basis import BASIS_FIELDS
from his2lip.training.config import TrainConfig
from his2lip.tuning.config import SweepConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / "README.md", ROOT / "train/README.md", ROOT / "tune/README.md"),
    *sorted((ROOT / "docs").glob("*.md")),
]
REMARKS = [ROOT / "cluster.yaml", *sorted(ROOT.glob("train/*.yaml")), *sorted(ROOT.glob("tune/*.yaml"))]
REMARKS += sorted(ROOT.glob("benchmarks/**/*.yaml"))
CONFIGS = {"train": TrainConfig, "tune": SweepConfig, "benchmark": BenchmarkConfig}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
NEW_FILE = re.compile(r"^\*\*`([^`]+)`\*\*\n\n```(?!diff)", flags=re.MULTILINE)
EXTENDING = ROOT / "docs/extending.md"  # its commands use what it adds; test_extending.py runs them
TOP = ("his2lip/", "benchmarks/", "docs/", "train/", "tune/", "tests/", ".ci/")
# Words of a dialect that readers do not search for; each has a plain one (resume, from where, fix, again).
HOUSE_WORDS = re.compile(
    r"\b(mend(s|ed|ing)?|whence|thence|anew|(go|goes|going|went|gone) on (with|from)|of (ours|theirs))\b",
    flags=re.IGNORECASE,
)


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def code_of(path: Path) -> list[str]:
    """Lines of shell blocks, indented blocks and comments, and the inline code of a page or YAML file."""
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    if path.suffix == ".yaml":
        return [line.lstrip("# ") for line in text.splitlines() if line.lstrip().startswith("#")]
    lines = [line for kind, body in FENCED.findall(text) if kind == "sh" for line in body.splitlines()]
    prose = FENCED.sub("", text)
    lines += [line for line in prose.splitlines() if line.startswith("    ")]
    return [line.strip() for line in lines] + inline_of(path)


def inline_of(path: Path) -> list[str]:
    prose = FENCED.sub("", path.read_text(encoding="utf-8"))
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def commands_of(path: Path) -> Iterator[list[str]]:
    """The arguments of every `his2lip …` that a page or remark names."""
    if path == EXTENDING:
        return
    for line in code_of(path):
        match = re.match(r"his2lip ([a-z-].*)", line.partition("  #")[0])
        if match:
            text = re.split(r" {3,}", match[1])[0]  # YAML remarks explain a command beside it
            yield shlex.split(text.replace("…", ""), comments=True)


def commands_of_the_cli() -> dict[tuple[str, ...], Any]:
    def below(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield path, group
        for name, command in getattr(group, "commands", {}).items():
            yield from below(command, (*path, name))

    return dict(below(typer.main.get_command(app), ()))


CLI = commands_of_the_cli()
OPTIONS = {
    path: {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for path, command in CLI.items()
}


def command_of(words: list[str]) -> tuple[str, ...]:
    words = words[next((i for i, word in enumerate(words) if not word.startswith("--")), 0) :]
    return max((path for path in CLI if tuple(words[: len(path)]) == path), key=len)


def has_key(kind: Any, key: str) -> bool:
    """Whether the dotted `key` leads to a field of the config, through optional and nested ones."""
    first, _, rest = key.partition(".")
    if kind is SweepConfig and first == "train" and rest:
        return has_key(TrainConfig, rest)
    if not (isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)):
        return any(has_key(inner, key) for inner in getattr(kind, "__args__", ()))
    field = kind.model_fields.get(first)
    return field is not None and (not rest or has_key(field.annotation, rest))


@pytest.mark.parametrize("page", [*PAGES, *REMARKS], ids=page_name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in commands_of(page):
        path = command_of(words)
        assert not hasattr(CLI[path], "commands") or set(words) <= {*path, *OPTIONS[path]}, words
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in OPTIONS[path] | OPTIONS[()], words


@pytest.mark.parametrize("page", [*PAGES, *REMARKS], ids=page_name)
def test_keys_of_overrides_are_keys_of_the_config(page: Path) -> None:
    for words in commands_of(page):
        config = CONFIGS.get(words[0])
        for key in (word.partition("=")[0] for word in words if re.match(r"[a-z_][\w.]*=", word)):
            assert config is not None, words
            assert has_key(config, key), words


def test_own_captions_are_trained_on_the_shards_they_were_drafted_for() -> None:
    commands = [words for page in PAGES for words in commands_of(page)]
    drafts = [words for words in commands if words[:2] == ["captions", "draft"] and "--shards" in words]
    drafted = {words[2]: words[words.index("--shards") + 1] for words in drafts}
    trained = set()
    for words in (words for words in commands if words[0] == "train"):
        given = dict(word.split("=", 1) for word in words[2:] if "=" in word)
        name = Path(given.get("data.captions", "")).stem
        if name in drafted:
            config = load(TrainConfig, ROOT / words[1], [f"{key}={value}" for key, value in given.items()])
            assert config.data.shards == drafted[name], words
            assert config.data.missing == "template", words
            trained.add(name)
    assert trained == drafted.keys()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_options_and_keys_in_prose_exist(page: Path) -> None:
    known = set().union(*OPTIONS.values())
    scripts = {
        option
        for script in ROOT.glob("benchmarks/speed/*.py")
        for option in re.findall(r'"(--[a-z-]+)"', script.read_text(encoding="utf-8"))
    }
    for code in inline_of(page):
        if re.match(r"--[a-z]", code):
            for option in re.findall(r"--[a-z][a-z-]*", code):
                assert option in known | scripts, code
        elif key := re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)+)(=\S+)?", code):
            is_file = (ROOT / code).exists() or Path(code).suffix in (".py", ".yaml", ".json", ".csv", ".db")
            is_module = (ROOT / "his2lip" / code.replace(".", "/")).with_suffix(".py").exists()
            if not is_file and not is_module and code.partition(".")[0] in top_keys():
                assert any(has_key(config, key[1]) for config in CONFIGS.values()), code


def top_keys() -> set[str]:
    return {name for config in CONFIGS.values() for name in config.model_fields}


@pytest.mark.parametrize("page", [*PAGES, *REMARKS], ids=page_name)
def test_paths_exist(page: Path) -> None:
    new = set(NEW_FILE.findall(page.read_text(encoding="utf-8")))
    for word in (word.strip("'\",;:.)") for line in code_of(page) for word in line.split()):
        is_placeholder = re.search(r"[A-Z]{3,}|…|=", word) is not None
        is_code = "/" in word and word.endswith((".py", ".md"))
        if is_placeholder or word in new or not (word.startswith(TOP) or is_code):
            continue
        # A dataset's own folders may have the name of one of ours: only `train/*.yaml` is a recipe.
        if word.startswith(("train/", "tune/")) and Path(word).suffix not in (".yaml", ".md"):
            continue
        name, _, test = word.partition("::")  # pytest's names of tests
        files = [file for folder in (ROOT, ROOT / "his2lip") for file in folder.glob(name)]
        assert files, word
        assert not test or f"def {test.partition('[')[0]}(" in files[0].read_text(encoding="utf-8"), word


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_resolve(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\s-]", "", head.lower()).replace(" ", "-") for head in heads}, (
                target
            )


def test_the_packages_of_the_architecture_page_import_what_it_says() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_/]+)` \| [^|]+ \| ([^|]+) \|$", page, flags=re.MULTILINE)
    stated = {name.rstrip("/"): {w for w in imports.split(", ") if w != "–"} for name, imports in rows}
    rooms = {
        name: allowed for name, allowed in ALLOWED.items() if name not in ("data", "__init__", "__main__")
    }
    found: dict[str, set[str]] = {f"data/{folder}": set() for folder in _data_packages()}
    for folder in _data_packages():
        for path in (ROOT / "his2lip/data" / folder).glob("*.py"):
            imported = re.findall(r"from his2lip\.data\.(\w+)", path.read_text(encoding="utf-8"))
            found[f"data/{folder}"] |= set(imported) - {folder}
    assert stated == rooms | found


def _data_packages() -> list[str]:
    return [path.parent.name for path in (ROOT / "his2lip/data").glob("*/__init__.py")]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_make_targets_and_tests_exist(page: Path) -> None:
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    sources = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
    for line in code_of(page):
        if target := re.match(r"make ([a-z-]+)", line):
            assert target[1] in targets, line
        if test := re.match(r"test_\w+(?=$|\[)", line):
            assert f"def {test[0]}(" in sources, line


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_names_that_python_examples_import_exist(page: Path) -> None:
    new = {Path(name).stem for name in NEW_FILE.findall(page.read_text(encoding="utf-8"))}
    for kind, body in FENCED.findall(page.read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(body)) if kind == "python" else ():
            module = getattr(node, "module", None) if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith("his2lip") and module.rpartition(".")[2] not in new:
                for alias in node.names:  # type: ignore[attr-defined]
                    assert hasattr(importlib.import_module(module), alias.name), (module, alias.name)


def _texts() -> Iterator[tuple[str, str]]:
    """Everything that a user or a developer reads: pages, remarks, help, docstrings, comments, messages."""
    for path in [*PAGES, *REMARKS, ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci/run"]:
        yield page_name(path), path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("his2lip/**/*.py"), *ROOT.glob("benchmarks/**/*.py")):
        yield page_name(path), path.read_text(encoding="utf-8")


def test_house_words_are_absent() -> None:
    found = [
        f"{name}: {' '.join(text[max(0, match.start() - 30) : match.end() + 10].split())}"
        for name, text in _texts()
        for match in HOUSE_WORDS.finditer(text)
    ]
    assert not found, "\n".join(found)


def test_the_readme_lists_the_fields_of_what_an_answer_rests_on() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| field \| what it states \|\n.*?\n\n", text, flags=re.DOTALL)
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(BASIS_FIELDS)
