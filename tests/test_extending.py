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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cell_results import cell_result
from model_factory import native_config, published_open_clip
from training_data import write_small_shards

from his2lip.data.cards.card import load_card
from his2lip.data.images.codec import encode_png
from his2lip.data.prepare.dataset import prepare
from his2lip.evaluation.results import to_csv

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


_COMMANDS = """
import json, sys
from typer.testing import CliRunner
from his2lip.cli import app

said = []
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    said.append(done.output)
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Checkout:
    """A copy of the project with a section's examples applied, and a folder to work in."""

    root: Path
    work: Path

    def run(self, *arguments: str, **env: str) -> str:
        """Runs Python with the copy; its output. Fails where the program does."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.work,
            env=os.environ | {"PYTHONPATH": str(self.root)} | env,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
        return done.stdout

    def his2lip(self, *commands: str) -> list[str]:
        """The outputs of `his2lip …` commands, which run in one process, because its imports take seconds."""
        asked = [shlex.split(command) for command in commands]
        assert {words[0] for words in asked} == {"his2lip"}
        said = self.run("-c", _COMMANDS, json.dumps([words[1:] for words in asked]))
        return list(json.loads(said.splitlines()[-1]))


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


@pytest.fixture
def checkout(request: pytest.FixtureRequest, tmp_path: Path) -> Checkout:
    """The project with the examples of the section that the test names with `indirect`."""
    root, work = tmp_path / "his2lip-copy", tmp_path / "work"
    work.mkdir()
    for name in COPIED:
        source = ROOT / name
        # Compiled files are copied too: a copy has its source's time. Those named *.pyc.* are being written.
        skip = shutil.ignore_patterns("peers", "results", "*.pyc.*")
        shutil.copytree(source, root / name, ignore=skip) if source.is_dir() else shutil.copy(source, root)
    for path, blocks in touched(request.param).items():
        in_project = path.startswith(tuple(f"{name}/" for name in COPIED))
        file = (root if in_project else work) / path
        for kind, body in blocks:
            assert file.exists() == (kind == "diff"), path
            file.write_text(apply(file.read_text(), body) if kind == "diff" else body)
    return Checkout(root, work)


def of(title: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("checkout", [title], indirect=True, ids=[""])


def write_images(folder: Path, names: list[str], real_ihc: np.ndarray) -> None:
    """A different part of the real IHC image under each name."""
    for i, name in enumerate(names):
        y, x = divmod(i * 40, 400)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_png(real_ihc[y * 4 : y * 4 + 96, x : x + 96]))


def test_the_table_names_every_section_and_the_files_that_it_touches() -> None:
    rows = re.findall(r"^\| \[[^]]+\]\(#([\w-]+)\) \| (\d)", PAGE, flags=re.MULTILINE)
    titles = {re.sub(r"\W+", "-", title.lower()): title for title in _titles()}
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


@of("A dataset of your own")
def test_a_dataset_of_your_own_is_prepared_and_checked(checkout: Checkout, real_ihc: np.ndarray) -> None:
    write_images(checkout.work / "biopsies", BIOPSIES, real_ihc)
    card, prepared, checked = checkout.his2lip(*commands("A dataset of your own"))
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


@of("A published layout")
def test_a_published_layout_is_read_by_its_registered_reader(
    checkout: Checkout, real_ihc: np.ndarray
) -> None:
    write_images(checkout.work / "LungCores", [*CORES, "train/ER/unnamed.png"], real_ihc)
    card, prepared, checked = checkout.his2lip(*commands("A published layout"))
    assert "no problem found" in card
    assert "17 found, 16 read, 1 quarantined" in prepared
    info = json.loads((checkout.work / "shards/lungcores/dataset.json").read_text())
    assert info["counts"] == {"test": {"ER": 4, "Ki67": 4}, "train": {"ER": 4, "Ki67": 4}}
    assert info["quarantined"] == [["train/ER/unnamed.png", "the name is not PATIENT-CORE"]]
    assert "no problem found" in checked


_LIST = """
from his2lip.cli import app
app(["models", "list"])
"""


@of("A backbone")
def test_a_backbone_is_listed_and_loaded_by_its_name(checkout: Checkout) -> None:
    repository = checkout.work / "hf/models--our-lab--labclip"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    published_open_clip(snapshot, native_config())
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    example = re.findall(r"^```python\n(.*?)^```", section("A backbone"), re.DOTALL | re.MULTILINE)[0]
    program = example + "print(model.name, tuple(model.encode_text(['brown nuclei']).shape))\n" + _LIST
    cache = {"HF_HUB_CACHE": str(checkout.work / "hf"), "HF_HUB_OFFLINE": "1"}
    width = native_config()["embed_dim"]
    loaded, *listed = checkout.run("-c", program, **cache).splitlines()
    assert loaded == f"labclip (1, {width})"
    assert any("labclip" in line for line in listed)


_ONE_STEP = """
import sys
from his2lip.training import TrainConfig, run_in_process

_, shards, *overrides = sys.argv
config = TrainConfig.model_validate({
    "data": {"shards": shards, "select": "val", "batch_size": 16, "lanes": 2, "decode_threads": 1},
    "loss": {"weights": {"fused": 0.5}},
    "optim": {"steps": 1, "lr": 1e-3},
})
run_in_process(config, report=lambda metrics: print(sorted(metrics), metrics["select/fused"]))
"""


@of("A loss term")
def test_a_loss_term_is_an_option_of_training_and_is_reported_after_one_step(checkout: Checkout) -> None:
    (command,) = commands("A loss term")
    assert "loss.weights.fused=0.5" in command
    shards = write_small_shards(checkout.work / "shards", train=32, select=16)
    names, _, value = checkout.run("-c", _ONE_STEP, shards).strip().splitlines()[-1].rpartition(" ")
    assert {"train/fused", "train/excess_fused", "select/fused"} <= set(re.findall(r"'([^']+)'", names))
    assert 0 < float(value) < 100


_SCORE = """
from pathlib import Path
from his2lip.cli.benchmark import write_report
from his2lip.config import load
from his2lip.evaluation.config import BenchmarkConfig, ModelEntry
from his2lip.evaluation.grid import Work, score_models
from his2lip.evaluation.grid_plans import plan_cells
from his2lip.evaluation.leaderboard import write_leaderboard

config = load(BenchmarkConfig, "benchmark.yaml")
plans, _ = plan_cells(config)
majority = ModelEntry(name="baseline:majority", path="baseline:majority")
cells = [outcome.cell for outcome in score_models([majority], Work(plans, config))]
write_leaderboard(config.folder, cells, [], config)
write_report(Path(config.folder))
"""


@of("A metric")
def test_a_metric_of_a_benchmark_is_in_its_table_and_on_its_page(
    checkout: Checkout, real_ihc: np.ndarray
) -> None:
    """The grid cell is scored in one process, as a task of the grid does it."""
    ((_, card),) = touched("A dataset of your own")["biopsies.yaml"]
    (checkout.work / "biopsies.yaml").write_text(card)
    write_images(checkout.work / "biopsies", BIOPSIES, real_ihc)
    shards = checkout.work / "shards/biopsies"
    prepare(load_card(str(checkout.work / "biopsies.yaml")), checkout.work / "biopsies", shards)
    tree = {
        "name": "extended",
        "models": [],
        "datasets": {"biopsies": str(shards)},
        "baselines": ["majority"],
    }
    (checkout.work / "benchmark.yaml").write_text(json.dumps(tree | {"cache": "cache", "storage": "runs"}))
    checkout.run("-c", _SCORE)
    folder = checkout.work / "runs/benchmark/extended"
    with (folder / "leaderboard.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["worst_recall"] == "0.0", "one class is always predicted"
    assert "<h3>Worst recall, %</h3>" in (folder / "report/index.html").read_text()


@of("A plot")
def test_a_plot_is_on_the_page_of_a_leaderboard(checkout: Checkout) -> None:
    (checkout.work / "leaderboard.csv").write_text(
        to_csv([cell_result(model="CLIP"), cell_result(model="PLIP")])
    )
    checkout.his2lip("his2lip report .")
    page = (checkout.work / "report/index.html").read_text()
    assert page.index("<h3>Models by datasets</h3>") < page.index("<h3>Zero-shot means</h3>")


@of("A section of the page")
def test_a_section_is_on_the_page_in_the_contents_and_in_markdown(checkout: Checkout) -> None:
    (checkout.work / "leaderboard.csv").write_text(to_csv([cell_result(n=977)]))
    checkout.his2lip("his2lip report .")
    page = (checkout.work / "report/index.html").read_text()
    assert '<li><a href="#sizes">Sizes</a></li>' in page
    assert '<section id="sizes"' in page
    assert '<td data-value="977">977</td>' in page
    assert "| hnscc | 977 | 5 |" in (checkout.work / "report/leaderboard.md").read_text()


@of("A command")
def test_a_command_is_listed_and_runs(checkout: Checkout) -> None:
    write_small_shards(checkout.work / "shards/lungcores", train=8, select=4)
    listed, shown = checkout.his2lip("his2lip data --help", *commands("A command"))
    assert re.search(r"splits +List the splits", listed)
    assert re.search(r"train +train +8\n *val +select +4", shown)
