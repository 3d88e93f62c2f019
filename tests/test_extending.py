"""docs/extending.md does what it says: its examples are applied to a copy of the code, and run."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_factory import native_config, published_open_clip
from training_data import write_small_shards

from his2lip.data.images.codec import encode_png

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^\*\*`(?P<path>[^`]+)`\*\*\n\n```(?P<kind>\w+)\n(?P<body>.*?)^```", re.DOTALL | re.MULTILINE
)
COPIED = ("his2lip", "benchmarks", "train", "tune", "cluster.yaml")


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    return re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:][_titles().index(title)]


def _titles() -> list[str]:
    return re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE)


def commands(title: str) -> list[str]:
    """The shell commands of a section."""
    blocks = re.findall(r"^```sh\n(.*?)^```", section(title), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


# Runs the programs of all sections in one process, because its imports take seconds.
_RUN = """
import contextlib, io, json, os, sys, traceback
from typer.testing import CliRunner
from his2lip.cli import app

def his2lip(words):
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output

def python(program):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(program, {"__name__": "__main__"})
    return said.getvalue()

ends = {}
for title, (folder, programs) in json.loads(sys.argv[1]).items():
    os.chdir(folder)
    ends[title] = {"said": [], "error": None}
    try:
        for program in programs:
            ends[title]["said"].append(his2lip(program) if isinstance(program, list) else python(program))
    except BaseException:
        ends[title]["error"] = traceback.format_exc()
print(json.dumps(ends))
"""

Programs = list[str | list[str]]  # Python, and the words of `his2lip …` commands


def words(*commands: str) -> Programs:
    """The words of `his2lip …` commands."""
    asked = [shlex.split(command) for command in commands]
    assert {first for first, *_ in asked} == {"his2lip"}
    return [rest for _, *rest in asked]


def apply(text: str, diff: str) -> str:
    """`text` with the added lines of `diff`, whose other lines must be there once, as one block."""
    before = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] != "+")
    after = "".join(line[1:] for line in diff.splitlines(keepends=True) if line[0] != "-")
    assert text.count(before) == 1, f"these lines are there {text.count(before)} times:\n{before}"
    return text.replace(before, after)


def touched(title: str) -> dict[str, list[tuple[str, str]]]:
    """Path -> the (kind, body) of its blocks in a section, hunks of one file in turn."""
    found: dict[str, list[tuple[str, str]]] = {}
    for block in BLOCK.finditer(section(title)):
        hunks = re.split(r"^@@\n", block["body"], flags=re.MULTILINE)
        found.setdefault(block["path"], []).extend((block["kind"], hunk) for hunk in hunks)
    return found


@dataclass(frozen=True)
class Copy:
    """A copy of the project with the examples of all sections, after the programs of each were run."""

    folders: dict[str, Path]  # of each section, in which its programs were run
    ends: dict[str, dict[str, Any]]

    def said(self, title: str) -> list[str]:
        """The outputs of a section's programs. Fails where one of them did."""
        assert self.ends[title]["error"] is None, self.ends[title]["error"]
        return list(self.ends[title]["said"])


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, real_ihc: np.ndarray) -> Copy:
    """Sections touch different lines, so that all of them can be applied together."""
    folder = tmp_path_factory.mktemp("extended")
    root, folders = folder / "his2lip-copy", {title: folder / slug(title) for title in _titles()}
    for name in COPIED:
        source = ROOT / name
        # Compiled files are copied too: a copy has its source's time. Those named *.pyc.* are being written.
        skip = shutil.ignore_patterns("peers", "results", "*.pyc.*")
        shutil.copytree(source, root / name, ignore=skip) if source.is_dir() else shutil.copy(source, root)
    for title, work in folders.items():
        work.mkdir()
        for path, blocks in touched(title).items():
            in_project = path.startswith(tuple(f"{name}/" for name in COPIED))
            file = (root if in_project else work) / path
            for kind, body in blocks:
                assert file.exists() == (kind == "diff"), path
                file.write_text(apply(file.read_text(), body) if kind == "diff" else body)
    assert PREPARED.keys() == folders.keys()
    asked = {title: (str(work), PREPARED[title](work, real_ihc)) for title, work in folders.items()}
    env = {"PYTHONPATH": os.pathsep.join([str(root), str(ROOT / "tests")]), "HF_HUB_OFFLINE": "1"}
    env["HF_HUB_CACHE"] = str(folders["A backbone"] / "hf")
    done = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(asked)],
        cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Copy(folders, json.loads(done.stdout.splitlines()[-1]))


def slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"\W+", "-", title.lower())


def write_images(folder: Path, names: list[str], real_ihc: np.ndarray) -> None:
    """A different part of the real IHC image under each name."""
    for i, name in enumerate(names):
        y, x = divmod(i * 40, 400)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_png(real_ihc[y * 4 : y * 4 + 96, x : x + 96]))


def test_the_table_names_every_section_and_the_files_that_it_touches() -> None:
    rows = re.findall(r"^\| \[[^]]+\]\(#([\w-]+)\) \| (\d)", PAGE, flags=re.MULTILINE)
    titles = {slug(title): title for title in _titles()}
    assert [titles[anchor] for anchor, _ in rows] == _titles()
    counted = {titles[anchor]: int(files) for anchor, files in rows}
    registry = "his2lip/data/readers/__init__.py"  # one line, which the table names beside the files
    assert counted == {title: len(touched(title).keys() - {registry}) for title in counted}
    assert (
        sum(kind == "diff" and body.count("\n+") for kind, body in touched("A published layout")[registry])
        == 1
    )


BIOPSIES = [
    f"{label}/P{first + i // 2:02d}_{i % 2}.png"
    for label, first in (("positive", 1), ("negative", 6))
    for i in range(10)
]


def own_dataset(work: Path, real_ihc: np.ndarray) -> Programs:
    write_images(work / "biopsies", BIOPSIES, real_ihc)
    return words(*commands("A dataset of your own"))


def test_a_dataset_of_your_own_is_prepared_and_checked(copy: Copy) -> None:
    card, prepared, checked = copy.said("A dataset of your own")
    assert "no problem found" in card
    assert "20 found, 20 read, 0 quarantined" in prepared
    assert "no problem found" in checked


CORES = [
    f"{split}/{stain}/{patient}-{core}.png"
    for split, patients in (("train", "AB"), ("test", "CD"))
    for stain in ("ER", "Ki67")
    for patient in patients
    for core in (1, 2)
]


def published_layout(work: Path, real_ihc: np.ndarray) -> Programs:
    write_images(work / "LungCores", [*CORES, "train/ER/unnamed.png"], real_ihc)
    return words(*commands("A published layout"))


def test_a_published_layout_is_read_by_its_registered_reader(copy: Copy) -> None:
    card, prepared, checked = copy.said("A published layout")
    assert "no problem found" in card
    assert "17 found, 16 read, 1 quarantined" in prepared
    info = json.loads((copy.folders["A published layout"] / "runs/shards/lungcores/dataset.json").read_text())
    assert info["counts"] == {"test": {"ER": 4, "Ki67": 4}, "train": {"ER": 4, "Ki67": 4}}
    assert info["quarantined"] == [["train/ER/unnamed.png", "the name is not PATIENT-CORE"]]
    assert "no problem found" in checked


def backbone(work: Path, real_ihc: np.ndarray) -> Programs:
    repository = work / "hf/models--our-lab--labclip"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    published_open_clip(snapshot, native_config())
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    example = re.findall(r"^```python\n(.*?)^```", section("A backbone"), re.DOTALL | re.MULTILINE)[0]
    encoded = "print(model.name, tuple(model.encode_text(['brown nuclei']).shape))\n"
    return [example + encoded, *words("his2lip models list")]


def test_a_backbone_is_listed_and_loaded_by_its_name(copy: Copy) -> None:
    loaded, listed = copy.said("A backbone")
    assert loaded.strip() == f"labclip (1, {native_config()['embed_dim']})"
    assert "labclip" in listed


_ONE_STEP = """
from his2lip.training import TrainConfig, run_in_process

config = TrainConfig.model_validate({
    "data": {"shards": "shards", "select": "val", "batch_size": 16, "lanes": 2, "decode_threads": 1},
    "loss": {"weights": {"fused": 0.5}},
    "optim": {"steps": 1, "lr": 1e-3},
})
run_in_process(config, report=lambda metrics: print(sorted(metrics), metrics["select/fused"]))
"""


def loss_term(work: Path, real_ihc: np.ndarray) -> Programs:
    write_small_shards(work / "shards", train=32, select=16)
    return [_ONE_STEP]


def test_a_loss_term_is_an_option_of_training_and_is_reported_after_one_step(copy: Copy) -> None:
    (command,) = commands("A loss term")
    assert "loss.weights.fused=0.5" in command
    (said,) = copy.said("A loss term")
    names, _, value = said.strip().splitlines()[-1].rpartition(" ")
    assert {"train/fused", "train/excess_fused", "select/fused"} <= set(re.findall(r"'([^']+)'", names))
    assert 0 < float(value) < 100


_SCORE = """
from pathlib import Path
from his2lip.cli.benchmark import write_report
from his2lip.config import load
from his2lip.evaluation.config import BenchmarkConfig, ModelEntry
from his2lip.evaluation.grid_task import Work, score_models
from his2lip.evaluation.grid_plans import plan_cells
from his2lip.evaluation.leaderboard import write_leaderboard

config = load(BenchmarkConfig, "benchmark.yaml")
plans, _ = plan_cells(config)
majority = ModelEntry(name="baseline:majority", path="baseline:majority")
cells = [outcome.cell for outcome in score_models([majority], Work(plans, config))]
write_leaderboard(config.folder, cells, [], config)
write_report(Path(config.folder))
"""


def figure(work: Path, real_ihc: np.ndarray) -> Programs:
    """The grid cell is scored in one process, as a task of the grid does it, on the dataset of one's own."""
    shards = work.with_name(slug("A dataset of your own")) / "runs/shards/biopsies"
    tree = {
        "name": "extended",
        "models": [],
        "datasets": {"biopsies": str(shards)},
        "baselines": ["majority"],
    }
    (work / "benchmark.yaml").write_text(json.dumps(tree | {"cache": "cache", "storage": "runs"}))
    return [_SCORE]


def test_a_metric_of_a_benchmark_is_in_its_table_and_on_its_page(copy: Copy) -> None:
    copy.said("A metric")
    folder = copy.folders["A metric"] / "runs/benchmark/extended"
    with (folder / "leaderboard.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["worst_recall"] == "0.0", "one class is always predicted"
    assert "<h3>Worst recall, %</h3>" in (folder / "report/index.html").read_text()


_BOARD = """
from pathlib import Path
from cell_results import cell_result
from his2lip.evaluation.results import to_csv

cells = [cell_result(worst_recall=0.0, **changes) for changes in {changes}]
Path("leaderboard.csv").write_text(to_csv(cells))
"""


def plot(work: Path, real_ihc: np.ndarray) -> Programs:
    return [_BOARD.format(changes=[{"model": "CLIP"}, {"model": "PLIP"}]), *words("his2lip report .")]


def test_a_plot_is_on_the_page_of_a_leaderboard(copy: Copy) -> None:
    copy.said("A plot")
    page = (copy.folders["A plot"] / "report/index.html").read_text()
    assert page.index("<h3>Models by datasets</h3>") < page.index("<h3>Zero-shot means</h3>")


def section_of_the_page(work: Path, real_ihc: np.ndarray) -> Programs:
    return [_BOARD.format(changes=[{"n": 977}]), *words("his2lip report .")]


def test_a_section_is_on_the_page_in_the_contents_and_in_markdown(copy: Copy) -> None:
    copy.said("A section of the page")
    report = copy.folders["A section of the page"] / "report"
    page = (report / "index.html").read_text()
    assert '<li><a href="#sizes">Sizes</a></li>' in page
    assert '<section id="sizes"' in page
    assert '<td data-value="977">977</td>' in page
    assert "| hnscc | 977 | 5 |" in (report / "leaderboard.md").read_text()


def new_command(work: Path, real_ihc: np.ndarray) -> Programs:
    write_small_shards(work / "runs/shards/lungcores", train=8, select=4)
    return words("his2lip data --help", *commands("A command"))


def test_a_command_is_listed_and_runs(copy: Copy) -> None:
    listed, shown = copy.said("A command")
    assert re.search(r"splits +List the splits", listed)
    assert re.search(r"train +train +8\n *val +select +4", shown)


# Writes what a section needs into its folder, and returns its programs.
PREPARED: dict[str, Callable[[Path, np.ndarray], Programs]] = {
    "A dataset of your own": own_dataset,
    "A published layout": published_layout,
    "A backbone": backbone,
    "A loss term": loss_term,
    "A metric": figure,
    "A plot": plot,
    "A section of the page": section_of_the_page,
    "A command": new_command,
}
