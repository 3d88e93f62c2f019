"""The benchmark grid on a real local Ray: real pixels, tiny models, failures, and no work done twice."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from broken_store import AWAY, broken_store

from his2lip.config import validate
from his2lip.data.cards.card import Card
from his2lip.data.images.codec import encode_png
from his2lip.data.shards.schema import Patch
from his2lip.data.shards.writer import ShardWriter
from his2lip.errors import ConfigError, RunError
from his2lip.evaluation.config import BenchmarkConfig, ModelEntry
from his2lip.evaluation.feature_store import FeatureStore
from his2lip.evaluation.grid import GridResult, _estimate, run_grid
from his2lip.evaluation.grid_estimate import GridEstimate, Rate, Rates, estimate_grid, jobs_of, kind_of
from his2lip.evaluation.grid_plans import plan_cells
from his2lip.evaluation.grid_scorers import baseline_rows
from his2lip.evaluation.grid_task import ImageProgress, Outcome, Work, score_models, stream_outcomes
from his2lip.evaluation.leaderboard import Frame, write_leaderboard
from his2lip.evaluation.prompts import PromptSet
from his2lip.evaluation.results import CellFailure, CellResult, fields
from his2lip.evaluation.stored_cell import read_predictions
from his2lip.evaluation.verify import verify_board
from his2lip.evaluation.verify_from_images import verify_images
from his2lip.logs import log_to
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.identity import weights_identity
from his2lip.models.load import load_model
from his2lip.synthetic.twins import write_twin

TISSUE = {
    "split": "test",
    "label": "tissue",
    "classes": {"Stroma": ["Stroma"], "Tumor": ["Tumor"]},
    "prompts": "tissue",
    "basis": "ours",
}
STAIN = {
    "split": "test",
    "label": "score",
    "classes": {"negative": ["0"], "positive": ["3+"]},
    "apart": {"equivocal": ["2+"]},
    "prompts": "staining",
    "basis": "ours",
}
PROTOCOLS = {
    "alpha": {"default": TISSUE, "paper": TISSUE | {"pooling": "max", "scoring": "dot"}},
    "beta": {"default": TISSUE | {"unit": "slide", "view": "tiles"}},
    "gamma": {"default": STAIN | {"breakdown": "case_id", "ordinal": True}},
}


def write_dataset(
    folder: Path, name: str, pixels: np.ndarray, *, count: int = 24, other_role: str = "train"
) -> None:
    """A dataset of `count` real tiles of 64 px: the darker half Tumor and 3+ or 2+, the rest Stroma and 0.

    other_role  role of the split `train`; that of `test` is report
    """
    first = {"alpha": 0, "beta": 16, "gamma": 32}[name]
    places = [((first + i) // 8 % 8, (first + i) % 8) for i in range(count)]
    tiles = [pixels[64 * y : 64 * y + 64, 64 * x : 64 * x + 64] for y, x in places]
    darkness = -np.array([t.mean() for t in tiles])
    brown = darkness > np.median(darkness)
    card = Card.model_validate(
        {
            "name": f"toy-{name}",
            "reader": "none",
            "splits": {"train": {"role": other_role}, "test": {"role": "report"}},
            "protocols": PROTOCOLS[name],
            "in_domain": name == "alpha",
        }
    )
    with ShardWriter(folder / name, card=card) as writer:
        for i, tile in enumerate(tiles):
            writer.add(
                Patch(
                    patch_id=f"{name}/{i}.png",
                    image=encode_png(tile),
                    dataset=card.name,
                    split="train" if i % 2 else "test",
                    tissue="Tumor" if brown[i] else "Stroma",
                    score=("2+" if i % 8 == 0 else "3+") if brown[i] else "0",
                    case_id=f"{'train' if i % 2 else 'case'}-{i % 3}",
                    slide_id=f"slide-{i % 4 if brown[i] else i % 4 + 4}",
                    width=64,
                    height=64,
                    mpp=0.5,
                )
            )


@pytest.fixture
def make(tmp_path: Path, real_ihc: np.ndarray) -> Callable[..., BenchmarkConfig]:
    """make(a=b, …) -> configuration of `tiny` and a checkpoint of another seed, on three datasets."""
    for name in PROTOCOLS:
        write_dataset(tmp_path / "shards", name, real_ihc)
    save_checkpoint(tmp_path / "best", load_model("tiny", seed=1), meta={"data_digest": "of another dataset"})

    def config(**changes: object) -> BenchmarkConfig:
        tree = {
            "name": "t",
            "models": ["tiny", {"name": "tuned", "path": str(tmp_path / "best")}],
            "datasets": list(PROTOCOLS),
            "shards": str(tmp_path / "shards"),
            "baselines": [],
            "cache": str(tmp_path / "cache"),
            "storage": str(tmp_path / "runs"),
        }
        return validate(BenchmarkConfig, tree | changes)

    return config


def read_leaderboard(result: GridResult) -> list[dict[str, str]]:
    with open(result.leaderboard, encoding="utf-8", newline="") as source:
        return list(csv.DictReader(source))


def test_every_model_is_scored_on_every_dataset_and_results_have_their_evidence(
    ray_local: None, make: Callable[..., BenchmarkConfig]
) -> None:
    told = []
    config = make(protocols=["default", "paper"])
    result = run_grid(config, on_cell=lambda *outcome: told.append(outcome))
    assert (len(result.cells), result.failed, result.ran) == (8, [], 8)
    assert {(c.model, c.dataset, c.protocol) for c, _, _ in told} == {
        (c.model, c.dataset, c.protocol) for c in result.cells
    }
    assert [(done, total) for _, done, total in told] == [(n, 8) for n in range(1, 9)]
    board = read_leaderboard(result)
    assert list(board[0]) == list(fields())
    resolved = json.loads(Path(config.folder, "board.json").read_text(encoding="utf-8"))["resolved"]
    assert resolved == {"batch_size": 64, "cpus": 1, "gpus": 0, "threads": 1}, "two models on two CPUs"
    assert [(row["model"], row["dataset"]) for row in board] == [(c.model, c.dataset) for c in result.cells]

    alpha = next(c for c in result.cells if (c.model, c.dataset, c.protocol) == ("tuned", "alpha", "default"))
    assert alpha.in_domain, "a fine-tuned checkpoint on a dataset whose card has in_domain: true"
    assert not any(c.in_domain for c in result.cells if c.model == "tiny")
    rows = read_predictions(config.folder, alpha).to_pylist()
    right = [row["label"] == row["predicted"] for row in rows]
    assert alpha.n == len(rows) == 12
    assert alpha.accuracy == pytest.approx(sum(right) / len(right))
    for row in rows:
        best = max(("Stroma", "Tumor"), key=lambda name: row[f"score_{name}"])
        assert row["predicted"] == best

    beta = next(c for c in result.cells if c.dataset == "beta")
    slides = read_predictions(config.folder, beta)["patch_id"].to_pylist()
    assert len(slides) == beta.n == len(set(slides))
    assert all(s.startswith("slide-") for s in slides), "a slide is one unit"

    gamma = next(c for c in result.cells if c.dataset == "gamma")
    rows = read_predictions(config.folder, gamma).to_pylist()
    assert gamma.apart == sum(row["label"] == "(apart)" for row in rows) > 0
    assert gamma.n == len(rows) - gamma.apart
    assert sum(part["n"] for part in gamma.breakdown["case_id"].values()) == gamma.n
    assert gamma.quadratic_kappa is not None

    together = pq.read_table(str(Path(result.leaderboard).with_name("predictions.parquet")))
    assert len(together) == sum(c.n + c.apart for c in result.cells)
    verified = verify_board(config.folder)
    assert (list(verified.mismatches), list(verified.cells)) == ([], result.cells)


def test_a_second_call_runs_nothing_and_finished_rows_are_kept_where_a_dataset_is_damaged_later(
    ray_local: None, make: Callable[..., BenchmarkConfig], tmp_path: Path
) -> None:
    told: list[GridEstimate] = []
    first = run_grid(make(), on_estimate=told.append)
    assert first.counts.images == 2 * 3 * 12, "each model embedded each test image once"
    before = read_leaderboard(first)
    again = run_grid(make(), on_estimate=told.append)
    estimates = [(e.cells, e.finished, e.images, e.missing, e.unknown) for e in told]
    assert estimates == [(6, 0, 72, 72, ("tiny", "tuned")), (6, 6, 0, 0, ())]
    assert [(e.seconds, e.bytes) for e in told] == [(None, None), (0.0, 0)]
    assert (again.ran, len(again.cells)) == (0, 6)
    assert (again.counts.images, again.counts.crops, again.counts.sentences) == (0, 0, 0)
    assert read_leaderboard(again) == before

    rows = Path(again.leaderboard).read_text(encoding="utf-8").splitlines()
    (tmp_path / "shards/beta/dataset.json").write_text("{}", encoding="utf-8")
    damaged = run_grid(make())
    assert {failure.dataset for failure in damaged.failed} == {"beta"}
    kept = Path(damaged.leaderboard).read_text(encoding="utf-8").splitlines()
    assert kept == [row for row in rows if ",beta," not in row]


def test_a_board_is_verified_from_its_images_and_what_is_changed_is_named(
    make: Callable[..., BenchmarkConfig], tmp_path: Path
) -> None:
    """The board is scored in this process, as a task of the grid does it."""
    path = str(tmp_path / "best")
    config = make(models=["tiny", {"name": "tuned", "path": path}], controls=["shuffled-labels"])
    config = config.model_copy(update={"datasets": ["alpha"], "baselines": ["chance"]})
    plans, _ = plan_cells(config)
    chance = ModelEntry(name="baseline:chance", path="baseline:chance")
    rows = [*(row for model in config.models for row in config.rows_of(model)), chance]
    cells = [o.cell for o in score_models(rows, Work(plans, config)) if isinstance(o.cell, CellResult)]
    write_leaderboard(config.folder, cells, [], config)
    found = verify_images(config.folder, sample=5)
    assert (list(found.mismatches), {c.cell for c in found.cells}) == ([], {c.cell for c in cells})
    assert len(cells) == 5

    changes = {"in_domain": True, "role": "select", "generated": True, "overlap_units": 1}
    write_leaderboard(config.folder, [cells[0].model_copy(update=changes), *cells[1:]], [], config)
    edited = verify_images(config.folder, sample=5).mismatches
    assert {(m.row, m.column) for m in edited} == {("tiny on alpha (default)", name) for name in changes}
    write_leaderboard(config.folder, cells, [], config)

    tiny = next(c for c in cells if c.model == "tiny")
    parts = list(Path(config.cache, "images", tiny.encoder).glob("*.parquet"))
    for part in parts:  # features of other images, in a part whose digest is right
        width = pq.read_table(part).schema.field("feature").type.list_size
        store = FeatureStore(config.cache, f"images/{tiny.encoder}", width=width)
        keys = pq.read_table(part)["key"].to_pylist()
        features = store.read(keys)
        part.unlink()
        store.append({key: 1.01 * value + 0.01 for key, value in features.items()})
    found = verify_images(config.folder, sample=5)
    named = [m for m in found.mismatches if m.file == "cached features"]
    assert len(named) == 5, "as many as the sample"
    assert {m.row for m in named} == {"tiny on alpha (default)"}

    save_checkpoint(tmp_path / "best", load_model("tiny", seed=7), meta={})
    found = verify_images(config.folder, sample=5)
    assert {m.column for m in found.mismatches if m.row.startswith("tuned")} == {"weights_sha256"}


def test_a_changed_prompt_is_scored_from_the_cache_without_an_image_forward(
    ray_local: None, make: Callable[..., BenchmarkConfig], tmp_path: Path
) -> None:
    run_grid(make())
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("classes: {Stroma: [fibrous tissue], Tumor: [malignant glands]}", encoding="utf-8")
    changed = run_grid(make(prompts={"alpha": str(prompts)}))
    assert changed.ran == 2, "only the grid cells of alpha, one per model"
    assert changed.counts.images == changed.counts.crops == 0
    assert changed.counts.sentences == 2 * 2


def test_new_prompts_of_cached_sentences_need_neither_an_image_nor_the_model(
    ray_local: None, make: Callable[..., BenchmarkConfig], tmp_path: Path
) -> None:
    tuned: dict[str, object] = {
        "models": [{"name": "tuned", "path": str(tmp_path / "best")}],
        "datasets": ["alpha"],
    }
    assert run_grid(make(**tuned)).counts.images == 12
    weights = tmp_path / "best" / "model.safetensors"
    hidden = weights.rename(tmp_path / "hidden")  # from here on the model cannot be loaded
    known = dict(PromptSet.load("tissue").narrow(("Stroma", "Tumor")).sentences)
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text(json.dumps({"classes": {name: lines[:3] for name, lines in known.items()}}))
    changed = run_grid(make(**tuned, prompts={"alpha": str(prompts)}))
    assert (changed.failed, changed.ran) == ([], 1)
    assert (changed.counts.images, changed.counts.sentences) == (0, 0)
    prompts.write_text(json.dumps({"classes": {name: [*lines[:3], "new"] for name, lines in known.items()}}))
    (failed,) = run_grid(make(**tuned, prompts={"alpha": str(prompts)})).failed
    assert "safetensors" in failed.reason, "a new sentence needs the text tower"
    hidden.rename(weights)
    loaded = run_grid(make(**tuned, prompts={"alpha": str(prompts)}))
    assert (loaded.ran, loaded.counts.images, loaded.counts.sentences) == (1, 0, 1)


def test_another_protocol_is_scored_from_the_cache_too(
    ray_local: None, make: Callable[..., BenchmarkConfig]
) -> None:
    run_grid(make())
    told: list[GridEstimate] = []
    more = run_grid(make(protocols=["default", "paper"]), on_estimate=told.append)
    assert (more.ran, more.counts.images, more.counts.sentences) == (2, 0, 0)
    (estimate,) = told
    assert (estimate.cells, estimate.finished, estimate.images, estimate.missing) == (8, 6, 24, 0)
    assert estimate.seconds, "what earlier grid cells took is known"


def test_the_estimate_is_of_the_images_that_are_embedded_then(
    make: Callable[..., BenchmarkConfig], tmp_path: Path
) -> None:
    """The grid is scored in this process, as its tasks do it."""
    config = make(
        datasets=["alpha", "beta"],
        protocols=["default", "paper"],
        baselines=["chance", "mean-colour"],
        controls=["shuffled-labels"],
        probes={"kinds": ["knn"], "shots": ["full"]},
        robustness={"most_units": 6, "perturbations": {"JPEG": [10, 50]}, "datasets": ["alpha"]},
        gpus=0.0,
        cpus=1.0,
    )
    plans, failed = plan_cells(config)
    assert failed == []
    work = Work(plans, config, {model.path: weights_identity(model.path) for model in config.models})
    groups = [*(config.rows_of(model) for model in config.models), baseline_rows(config)]

    def estimate() -> GridEstimate:
        return estimate_grid(jobs_of(groups, work), config, rates, together=1.0)

    rates = Rates(config.cache)
    before = estimate()
    outcomes = [outcome for group in groups for outcome in score_models(group, work)]
    assert [o.cell for o in outcomes if isinstance(o.cell, CellFailure)] == []
    embedded = sum(outcome.counts.images for outcome in outcomes)
    assert (before.cells, before.finished, before.missing) == (len(outcomes), 0, embedded)
    after = estimate()
    assert (after.cells, after.finished, after.missing) == (len(outcomes), len(outcomes), 0)

    first = Rates(config.cache)
    first.measured(kind_of(config.models[0], config), "alpha", Rate(200, 50.0, 200 * 256, 4, 2.0))
    first.write()
    save_checkpoint(
        tmp_path / "best", load_model("tiny", seed=3), meta={"config": {"model": {"backbone": "tiny"}}}
    )
    tuned = make(
        models=[{"name": "tuned", "path": str(tmp_path / "best")}], datasets=["alpha"], gpus=0.0, cpus=1.0
    )
    plans, _ = plan_cells(tuned)
    work = Work(plans, tuned, {str(tmp_path / "best"): weights_identity(str(tmp_path / "best"))})
    new = estimate_grid(jobs_of([tuned.models], work), tuned, Rates(tuned.cache), together=2.0)
    assert (new.missing, new.bytes) == (12, 12 * 256)
    assert new.seconds == pytest.approx((12 * 50.0 / 200 + 2.0 / 4) / 2), "at the speed of its backbone"


def test_what_an_estimate_cannot_read_fails_one_grid_cell_and_stops_no_other(
    ray_local: None, make: Callable[..., BenchmarkConfig], tmp_path: Path
) -> None:
    write_twin("mihic", tmp_path / "shards/mihic", scale=0.05)
    part, *_ = sorted((tmp_path / "shards/mihic/train").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:300])
    told: list[GridEstimate] = []
    config = make(models=["tiny"], datasets=["mihic"], baselines=["chance", "mean-colour"])
    result = run_grid(config, on_estimate=told.append)
    assert [cell.model for cell in result.cells] == ["tiny", "baseline:chance"]
    (failed,) = result.failed
    assert failed.model == "baseline:mean-colour"
    assert part.name in failed.reason
    (estimate,) = told
    assert (estimate.cells, estimate.unread) == (3, 1)
    assert estimate.missing == result.counts.images > 0

    def broken(estimate: GridEstimate) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # a fault of the caller's function is seen
        run_grid(config, on_estimate=broken)


def test_an_estimate_that_cannot_be_made_is_a_line_in_the_log_and_a_bug_is_seen(
    make: Callable[..., BenchmarkConfig], tmp_path: Path
) -> None:
    log_to(str(tmp_path / "log"))
    with broken_store() as store:
        config = make(storage="broken://bucket/runs", datasets=["alpha"], gpus=0.0, cpus=1.0)
        groups, work, rates = [config.models], Work(plan_cells(config)[0], config), Rates(config.cache)
        found = _estimate(groups, work, rates, together=1.0)
        assert found is not None
        assert found.finished == 0
        store.fault = AWAY
        assert _estimate(groups, work, rates, together=1.0) is None
    (line,) = (tmp_path / "log/his2lip.log").read_text(encoding="utf-8").splitlines()
    assert "no estimate" in line
    assert AWAY in line
    with pytest.raises(TypeError):
        _estimate(groups, work, rates, together="many")  # type: ignore[arg-type]


def test_one_added_image_needs_one_forward_per_model(
    ray_local: None, make: Callable[..., BenchmarkConfig], tmp_path: Path, real_ihc: np.ndarray
) -> None:
    config = make(datasets=["alpha"])
    run_grid(config)
    shutil.rmtree(tmp_path / "shards" / "alpha")
    write_dataset(tmp_path / "shards", "alpha", real_ihc, count=25)
    grown = run_grid(config)
    assert grown.ran == 2
    assert grown.counts.images == 2, "one image, two models"


def test_replaced_weights_in_the_same_path_are_scored_as_another_model(
    ray_local: None, make: Callable[..., BenchmarkConfig], tmp_path: Path
) -> None:
    config = make(models=[{"name": "tuned", "path": str(tmp_path / "best")}], datasets=["alpha"])
    first = run_grid(config)
    save_checkpoint(tmp_path / "best", load_model("tiny", seed=2), meta={})
    second = run_grid(config)
    assert (second.ran, second.counts.images) == (1, 12)
    assert second.cells[0].weights_sha256 != first.cells[0].weights_sha256


def test_a_failure_is_reported_with_its_reason_and_other_grid_cells_are_scored(
    ray_local: None, make: Callable[..., BenchmarkConfig], tmp_path: Path
) -> None:
    (part,) = (tmp_path / "shards/beta/test").glob("*.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 4 : len(data) // 4 + 64] = bytes(64)
    part.write_bytes(bytes(data))
    save_checkpoint(tmp_path / "broken", load_model("tiny", seed=3), meta={})
    (tmp_path / "broken/model.safetensors").write_bytes(b"not weights")
    config = make(
        models=["tiny", {"name": "broken", "path": str(tmp_path / "broken")}],
        datasets={n: str(tmp_path / "shards" / n) for n in ("alpha", "beta", "gamma", "absent")},
    )
    result = run_grid(config)
    assert [(c.model, c.dataset) for c in result.cells] == [("tiny", "alpha"), ("tiny", "gamma")]
    reasons = {(f.model, f.dataset): f.reason for f in result.failed}
    assert set(reasons) == {
        ("tiny", "beta"),
        ("tiny", "absent"),
        ("broken", "alpha"),
        ("broken", "beta"),
        ("broken", "gamma"),
        ("broken", "absent"),
    }
    assert "beta/" in reasons["tiny", "beta"]
    assert "no prepared dataset" in reasons["tiny", "absent"]
    assert "weights cannot be read" in reasons["broken", "alpha"]


def kill_readers(pipe: Path, times: int) -> None:
    """Kills the first `times` Ray workers that open `pipe`, which would wait forever in reading it."""
    killed: set[int] = set()
    while len(killed) < times:
        for pid in {int(p) for p in os.listdir("/proc") if p.isdigit()} - killed:
            if reads(pid, pipe):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        threading.Event().wait(0.1)


def reads(pid: int, pipe: Path) -> bool:
    """Whether this process is a Ray worker that has `pipe` open."""
    try:
        if not Path(f"/proc/{pid}/comm").read_text().startswith("ray::"):
            return False
        return str(pipe) in [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the worker through /proc")
def test_a_worker_that_keeps_dying_only_loses_its_own_grid_cells(
    ray_local: None, make: Callable[..., BenchmarkConfig], tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "fatal", load_model("tiny", seed=3), meta={})
    pipe = tmp_path / "fatal/open_clip_config.json"
    pipe.unlink()
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)  # with a writer, opening the pipe succeeds, and reading it waits
    killer = threading.Thread(target=kill_readers, args=(pipe, 2), daemon=True)
    killer.start()
    result = run_grid(make(models=["tiny", {"name": "fatal", "path": str(tmp_path / "fatal")}]))
    killer.join(timeout=30)
    os.close(held)
    assert [(c.model, c.dataset) for c in result.cells] == [("tiny", name) for name in PROTOCOLS]
    assert [(f.model, f.dataset) for f in result.failed] == [("fatal", name) for name in PROTOCOLS]
    assert all("died" in f.reason for f in result.failed)


def dies_after_it_has_told_more_than_its_repetition_tells(
    entries: list[ModelEntry], resources: dict[str, float], work: Work
) -> Iterator[Outcome | ImageProgress]:
    died = Path(work.config.storage, "died")
    if died.exists():
        yield from stream_outcomes(entries, resources, work)
        return
    yield next(e for e in stream_outcomes(entries, resources, work) if isinstance(e, Outcome))
    for done in range(1, 9):
        yield ImageProgress("tiny", "alpha", done, 9)
    died.touch()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("by_value")
def test_a_task_that_dies_after_it_has_told_more_than_its_repetition_tells_loses_no_row(
    ray_local: None, make: Callable[..., BenchmarkConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a node is lost: the images that are cached by then are embedded no more, and not told of."""
    dies = dies_after_it_has_told_more_than_its_repetition_tells
    monkeypatch.setattr("his2lip.evaluation.grid.stream_outcomes", dies)
    config = make(models=["tiny"])
    Path(config.storage).mkdir(parents=True, exist_ok=True)
    received: list[str] = []
    result = run_grid(config, on_cell=lambda cell, done, total: received.append(cell.dataset))
    assert Path(config.storage, "died").exists()
    assert [(c.model, c.dataset) for c in result.cells] == [("tiny", name) for name in PROTOCOLS]
    assert sorted(received) == sorted(PROTOCOLS)
    assert not result.failed


def test_baselines_are_on_the_leaderboard_where_they_apply(
    ray_local: None, make: Callable[..., BenchmarkConfig]
) -> None:
    baselines = ["chance", "majority", "mean-colour", "stained-area"]
    config = make(models=["tiny"], baselines=baselines, controls=["shuffled-labels", "empty-prompts"])
    result = run_grid(config)
    board = {(c.model, c.dataset): c for c in result.cells}
    assert not result.failed
    assert board["baseline:mean-colour", "alpha"].accuracy >= 0.75, "the labels depend on colour"
    assert board["baseline:mean-colour", "alpha"].prompts_sha256 is None
    assert ("baseline:stained-area", "gamma") in board
    assert ("baseline:stained-area", "alpha") not in board, "tissue types are not positive and negative"
    shuffled = board["baseline:shuffled-labels of tiny", "alpha"]
    assert shuffled.is_baseline
    assert shuffled.chance_corrected == pytest.approx(0, abs=0.05)
    assert board["baseline:empty-prompts of tiny", "alpha"].ties == shuffled.n
    assert board["baseline:chance", "alpha"].accuracy == pytest.approx(0.5, abs=0.02)
    assert run_grid(config).ran == 0


def test_a_protocol_that_no_dataset_has_is_refused(
    ray_local: None, make: Callable[..., BenchmarkConfig]
) -> None:
    with pytest.raises(ConfigError) as refused:
        run_grid(make(protocols=["papr"]))
    assert refused.value.key == "protocols"
    assert "'paper'" in str(refused.value.fix)


def test_scoring_some_datasets_again_keeps_the_rows_of_the_others(
    ray_local: None, make: Callable[..., BenchmarkConfig]
) -> None:
    config = make(models=["tiny"])
    whole = run_grid(config)
    before = read_leaderboard(whole)
    part = run_grid(config, datasets=["beta"])
    assert [cell.dataset for cell in part.cells] == ["beta"]
    assert {cell.cell for cell in [*part.cells, *part.kept]} == {cell.cell for cell in whole.cells}
    assert sorted(read_leaderboard(part), key=str) == sorted(before, key=str)
    with pytest.raises(ConfigError) as refused:
        run_grid(config, datasets=["betta"])
    assert refused.value.key == "--datasets"


def test_scoring_some_datasets_again_keeps_the_failures_of_the_others(
    ray_local: None, make: Callable[..., BenchmarkConfig], tmp_path: Path
) -> None:
    places = {name: str(tmp_path / "shards" / name) for name in ("alpha", "absent", "gone")}
    config = make(models=["tiny"], datasets=places)
    whole = run_grid(config)
    assert [f.dataset for f in whole.failed] == ["absent", "gone"]
    part = run_grid(config, datasets=["alpha"])
    assert part.failed == [], "those of this call"
    assert Frame.read(config.folder).failed == whole.failed
    assert [f["dataset"] for f in json.loads(Path(config.folder, "failures.json").read_text())] == [
        "absent",
        "gone",
    ]
    fewer = config.model_copy(update={"datasets": {n: places[n] for n in ("alpha", "absent")}})
    run_grid(fewer, datasets=["alpha"])
    assert [f.dataset for f in Frame.read(config.folder).failed] == ["absent"]


def test_relative_paths_are_relative_to_the_folder_of_the_driver(
    ray_local: None,
    make: Callable[..., BenchmarkConfig],
    tmp_path: Path,
    real_ihc: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = run_grid(make(models=["tiny"], datasets=["alpha"]))
    monkeypatch.chdir(tmp_path)  # the workers were started in another folder
    places = {"shards": "shards", "cache": "cache2", "storage": "runs2"}
    best = {"name": "tuned", "path": "best"}
    found = run_grid(make(models=["tiny", best], datasets=["alpha"], **places))
    assert not found.failed
    assert (tmp_path / "runs2/benchmark/t/leaderboard.csv").is_file()
    assert (tmp_path / "cache2").is_dir()
    one, other = found.cells[0], wanted.cells[0]
    assert (one.cell, one.confusion) == (other.cell, other.confusion)


def test_a_worker_that_reads_other_shards_than_the_driver_fails_its_grid_cell(
    make: Callable[..., BenchmarkConfig],
) -> None:
    config = make(models=["tiny"], datasets=["alpha"])
    plans, _ = plan_cells(config)
    changed = [dataclasses.replace(plan, data_digest="another") for plan in plans]
    (outcome,) = score_models(config.models, Work(changed, config))
    assert isinstance(outcome.cell, CellFailure)
    assert config.uris()["alpha"] in outcome.cell.reason


def test_a_worker_that_finds_another_model_than_the_driver_fails_its_grid_cells(
    make: Callable[..., BenchmarkConfig], tmp_path: Path
) -> None:
    config = make(datasets=["alpha"])
    plans, _ = plan_cells(config)
    best = str(tmp_path / "best")
    weights = {best: weights_identity(best), "tiny": weights_identity("tiny")}
    save_checkpoint(tmp_path / "best", load_model("tiny", seed=2), meta={})
    frozen, tuned = score_models(config.models, Work(plans, config, weights))
    assert isinstance(frozen.cell, CellResult)
    assert isinstance(tuned.cell, CellFailure)
    assert best in tuned.cell.reason


def test_more_gpus_than_the_cluster_has_are_refused_before_any_work(
    ray_local: None, make: Callable[..., BenchmarkConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(RunError) as refused:
        run_grid(make(gpus=64))
    assert refused.value.key == "gpus"
