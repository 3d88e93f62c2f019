"""`models promote` and `list` on a real MLflow, and models:/NAME@ALIAS as the name of a model."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
from cell_results import cell_result
from huggingface_hub import ModelCard
from mlflow_stores import new_store
from pandas import DataFrame
from PIL import Image
from test_grid import write_dataset
from training_data import write_small_shards
from typer.testing import CliRunner

from his2lip.cli import app
from his2lip.cli.benchmark import run_benchmark
from his2lip.config import load, validate
from his2lip.data.cards.terms import Terms
from his2lip.errors import CheckpointError, ConfigError, ModelError
from his2lip.evaluation import BenchmarkConfig, CellResult
from his2lip.evaluation.results import to_csv
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.identity import weights_identity
from his2lip.models.load import load_model
from his2lip.models.provenance import read_meta
from his2lip.models.registered import local_name
from his2lip.serving.calibration import Calibration, similarity_digest
from his2lip.serving.mlflow_model import ServedModel
from his2lip.serving.questions import ask
from his2lip.synthetic.twins import write_twin
from his2lip.tracking.registry import promoted_models, scored_models
from his2lip.tracking.store import Tracker
from his2lip.tracking.store_run import RUN_ID
from his2lip.training.config import TrainConfig
from his2lip.training.run_inputs import identity, open_data, terms_of_run, with_absolute_paths

TERMS = Terms(datasets={"bci": "CC BY-NC 4.0"}, commercial=False, attribution=("Liu et al. 2022",))


def his2lip(*arguments: object) -> str:
    """The output of `his2lip ARGUMENTS`, whose errors are raised."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite store for this module."""
    return new_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(params=["sqlite_uri", "mlflow_server"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A SQLite store, then a server. The current folder is a new one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue(request.param))
    monkeypatch.chdir(tmp_path)
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # the process's own default again


@pytest.fixture
def sqlite(sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)
    monkeypatch.chdir(tmp_path)
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """checkpoint(run, seed=…) -> runs/train/RUN/best, with random weights of `tiny`, as if trained on BCI."""

    def write(run: str, *, seed: int = 1) -> Path:
        meta = {"config": {"model": {"backbone": "tiny"}}, "data_digest": "d" * 64, "terms": TERMS.to_json()}
        return save_checkpoint(
            tmp_path / "runs/train" / run / "best", load_model("tiny", seed=seed), meta=meta
        )

    return write


def score(checkpoint: Path, name: str, value: float, *, run: str = "", **others: float) -> None:
    """Writes grid cells of this checkpoint on MIST and others to MLflow, as the benchmark `run` does."""
    digest = read_meta(checkpoint)["tensor_digest"]
    tags = {RUN_ID: f"{run}{name}-{digest}"}
    with Tracker.open().run("his2lip-benchmark", "grid", {}, tags=tags, beside=checkpoint.parent) as written:
        model = written.model(name, digest=digest, path=str(checkpoint))
        for dataset, figure in (("mist", value), *others.items()):
            written.cell(
                f"{name}/{dataset}", model=model, scored_as=dataset, digest="e" * 64,
                metrics={"macro_f1": figure}, params={"dataset": dataset},
            )  # fmt: skip


def test_a_promoted_checkpoint_is_loaded_by_its_alias_and_its_terms_are_printed(
    store: None, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = checkpoint("first")
    monkeypatch.setattr("his2lip.tracking.run.now", lambda: 1_700_000_000_000)  # all in one millisecond
    score(best, "first", 0.4321, bci=0.25)
    said = his2lip("models", "promote", best, "--alias", "champion", "--as", "lung")
    digest = read_meta(best)["tensor_digest"]
    for part in (
        "version 1 of 'lung'",
        digest,
        "forbids commercial use",
        "bci (CC BY-NC 4.0)",
        "Liu et al. 2022",
    ):
        assert part in said
    assert load_model("models:/lung@champion").tensor_digest() == digest
    client = Tracker.open().client
    version = client.get_model_version_by_alias("lung", "champion")
    assert "forbids commercial use" in version.description
    metrics = client.get_logged_model(version.source.rpartition("/")[2]).metrics
    scored = {(m.dataset_name, m.key): m.value for m in metrics if m.dataset_name}
    assert scored == {("mist", "macro_f1"): 0.4321, ("bci", "macro_f1"): 0.25}


def test_of_several_scores_of_the_same_weights_the_latest_is_promoted_and_listed(
    sqlite: None, checkpoint: Callable[..., Path]
) -> None:
    best = checkpoint("again", seed=5)
    for name, figure in (("early", 0.2), ("late", 0.6)):
        score(best, name, figure)
    his2lip("models", "promote", best, "--alias", "champion", "--as", "again")
    tracker = Tracker.open()
    version = tracker.client.get_model_version_by_alias("again", "champion")
    promoted = tracker.client.get_logged_model(version.source.rpartition("/")[2])
    assert [m.value for m in promoted.metrics if m.dataset_name == "mist"] == [0.6]

    score(best, "early", 0.4, run="third-")
    weights = read_meta(best)["tensor_digest"]
    (listed,) = (row for row in scored_models(tracker) if row.weights == weights)
    assert listed.names == ["again", "late", "early"]
    assert listed.scores == {"mist": 0.4}


def test_promoting_again_moves_the_alias_and_keeps_one_version_of_the_same_weights(
    sqlite: None, checkpoint: Callable[..., Path]
) -> None:
    one, two = checkpoint("one", seed=1), checkpoint("two", seed=2)
    his2lip("models", "promote", one, "--alias", "best", "--as", "moves")
    said = his2lip("models", "promote", two, "--alias", "best", "--as", "moves")
    assert "'best' was version 1" in said
    assert load_model("models:/moves@best").tensor_digest() == read_meta(two)["tensor_digest"]
    assert load_model("models:/moves/1").tensor_digest() == read_meta(one)["tensor_digest"]
    his2lip("models", "promote", one, "--alias", "best", "--as", "moves")
    assert len(Tracker.open().client.search_model_versions("name = 'moves'")) == 2
    assert load_model("models:/moves@best").tensor_digest() == read_meta(one)["tensor_digest"]
    tracker = Tracker.open()
    tracker.client.update_model_version("moves", "1", description="edited after version 2 was made")
    listed = [(p.version, p.aliases) for p in promoted_models(tracker) if p.name == "moves"]
    assert listed == [(2, []), (1, ["best"])]


def test_a_model_is_promoted_by_the_name_of_its_run_or_its_row_or_its_backbone(
    sqlite: None, checkpoint: Callable[..., Path]
) -> None:
    best = checkpoint("first")
    score(best, "my favourite", 0.5)
    assert "models:/first@champion" in his2lip("models", "promote", "first", "--alias", "champion")
    assert "models:/first@a" in his2lip("models", "promote", "my favourite", "--alias", "a")
    assert "models:/tiny@frozen" in his2lip("models", "promote", "tiny", "--alias", "frozen")
    again = his2lip("models", "promote", "models:/first@a", "--alias", "b", "--as", "second")
    assert "forbids commercial use" in again, "a model keeps its terms in the registry"
    save_checkpoint(best, load_model("tiny", seed=9), meta={})
    with pytest.raises(CheckpointError) as refused:
        his2lip("models", "promote", "my favourite", "--alias", "champion")
    assert refused.value.key == "my favourite"


def test_equal_weights_under_another_similarity_are_another_version(
    sqlite: None, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    by_dot = load_model("tiny", seed=1)
    by_dot.similarity = "dot"
    his2lip("models", "promote", checkpoint("cosine"), "--alias", "one", "--as", "twice")
    dot = save_checkpoint(tmp_path / "dot", by_dot, meta={})
    his2lip("models", "promote", dot, "--alias", "two", "--as", "twice")
    for alias, similarity in (("one", "cosine"), ("two", "dot")):
        copied = local_name(f"models:/twice@{alias}", str(tmp_path / "runs"))
        assert load_model(copied).similarity == similarity


def test_a_promoted_model_carries_its_calibrations(
    sqlite: None, checkpoint: Callable[..., Path], tmp_path: Path, real_ihc: np.ndarray
) -> None:
    best, (question,) = checkpoint("calibrated", seed=11), ask()
    zeros = dict.fromkeys(("nll_before", "nll_after", "ece_before", "ece_after"), 0.0)
    fitted = Calibration(
        temperature=0.1, model=similarity_digest(load_model(best)), prompts=question.prompts.digest,
        question=question.title, data_digest="d", dataset="mihic", split="val", n=84, **zeros,
    )  # fmt: skip
    fitted.save(tmp_path / "given.json")
    his2lip("models", "promote", best, "--alias", "bare", "--as", "fitted")
    promote = ("models", "promote", best, "--alias", "a", "--as", "fitted", "--calibration")
    said = his2lip(*promote, tmp_path / "given.json")
    assert "version 2" in said, "another calibration is another version"
    assert "mihic, split val, 84 patches" in said
    assert his2lip(*promote, tmp_path / "given.json").count("version 2") == 1
    Image.fromarray(real_ihc[:64, :64]).save(tmp_path / "patch.png")
    asked = ("classify", tmp_path / "patch.png", "--csv", tmp_path / "rows.csv", "--model")
    assert "mihic, split val, 84 patches" in his2lip(*asked, "models:/fitted@a")
    with (tmp_path / "rows.csv").open() as file:
        (row,) = csv.DictReader(file)
    folder = mlflow.artifacts.download_artifacts("models:/fitted@a/artifacts/checkpoint")
    served = ServedModel()
    served.load_context(SimpleNamespace(artifacts={"checkpoint": folder}))  # type: ignore[arg-type]
    image = base64.b64encode((tmp_path / "patch.png").read_bytes()).decode()
    (answer,) = served.predict(None, DataFrame({"image": [image]}))  # type: ignore[arg-type]
    assert answer["tissue"]["probability"] == pytest.approx(float(row["probability"]))
    again = his2lip("models", "promote", "models:/fitted@a", "--alias", "b", "--as", "copied")
    assert "mihic, split val, 84 patches" in again
    assert "not calibrated" in his2lip(*asked, "models:/fitted@bare")
    with pytest.raises(ConfigError) as refused:
        his2lip("models", "promote", "tiny", "--alias", "a", "--calibration", tmp_path / "given.json")
    assert refused.value.key == "model"


def test_an_unknown_model_or_a_name_that_mlflow_does_not_accept_is_refused(
    sqlite: None, checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError) as unknown:
        his2lip("models", "promote", "tinny", "--alias", "champion")
    assert unknown.value.key == "tinny"
    assert "'tiny'" in str(unknown.value.fix)
    with pytest.raises(ConfigError) as refused:
        his2lip("models", "promote", "tiny", "--alias", "champion", "--as", "a/b")
    assert (refused.value.key, refused.value.fix) == ("--as", "--as a-b")
    for alias, allowed in (("a b", "a-b"), ("latest", "model-latest"), ("V2", "model-V2")):
        with pytest.raises(ConfigError) as refused:
            his2lip("models", "promote", "tiny", "--alias", alias, "--as", "refused")
        assert "refused" not in {p.name for p in promoted_models(Tracker.open())}, "nothing is registered"
        assert (refused.value.key, refused.value.fix) == ("--alias", f"--alias {allowed}")


def test_an_unknown_registered_model_is_refused_in_one_sentence(
    sqlite: None, checkpoint: Callable[..., Path]
) -> None:
    his2lip("models", "promote", checkpoint("there"), "--alias", "champion")
    for uri, missing, fix in (
        ("models:/nothing@champion", "nothing", "models list"),
        ("models:/there@nobody", "nobody", "models list"),
        ("models:/there", "models:/there", "models:/NAME@ALIAS"),
    ):
        with pytest.raises(ModelError) as refused:
            load_model(uri)
        assert refused.value.key == uri
        assert missing in refused.value.what
        assert fix in str(refused.value.fix)
        assert "\n" not in str(refused.value)


def test_looking_for_a_registered_model_does_not_create_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as refused:
        load_model("models:/first@champion")
    assert refused.value.key == "models:/first@champion"
    assert str(refused.value.where).endswith("runs/mlflow.db")
    assert "tiny" in his2lip("models", "list")
    assert list(tmp_path.iterdir()) == []


def test_a_registered_model_is_looked_up_in_the_store_that_commands_use_by_default(
    sqlite_uri: str, checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)
    monkeypatch.chdir(tmp_path)
    best = checkpoint("default")
    his2lip("models", "promote", best, "--alias", "champion")
    (tmp_path / "runs/mlflow.db").symlink_to(sqlite_uri.removeprefix("sqlite:///"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # as a process that has asked nothing yet
    try:
        assert load_model("models:/default@champion").tensor_digest() == read_meta(best)["tensor_digest"]
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    assert not (tmp_path / "mlflow.db").exists(), "the default store of MLflow"


def test_the_list_is_one_table_of_known_cached_logged_and_registered_models(
    store: None, checkpoint: Callable[..., Path]
) -> None:
    first, second = checkpoint("listed", seed=3), checkpoint("other", seed=4)
    score(first, "listed", 0.25)
    score(second, "other", 0.75)
    his2lip("models", "promote", first, "--alias", "champion", "--as", "listed")
    rows = his2lip("models", "list").splitlines()

    def row(start: str) -> str:
        return next(line for line in rows if line.startswith(start))

    assert "mist 25.00" in row("models:/listed@champion")
    assert "version 1 of listed, champion" in row("models:/listed@champion")
    assert "mist 75.00" in row("runs/train/other/best")
    assert "not for commercial" in row("runs/train/other/best")
    assert not any(line.startswith("runs/train/listed") for line in rows), "it has a registered name"
    assert "MIT" in row("clip")
    digest = read_meta(second)["tensor_digest"][:8]
    assert f"mist 75.00 ({digest})" in row("runs/train/other/best")
    checkpoint("other", seed=5)  # as --fresh does
    rows = his2lip("models", "list").splitlines()
    assert f"mist 75.00 ({digest})" in row("runs/train/other/best"), "of the weights that were there before"
    assert "replaced" in row("runs/train/other/best")
    assert "not for commercial" not in row("runs/train/other/best")


def test_commands_accept_a_registered_model_in_place_of_a_checkpoint(
    sqlite: None,
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    real_ihc: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # a long path would be folded in the table
    best = checkpoint("used", seed=5)
    his2lip("models", "promote", best, "--alias", "champion")
    uri, digest = "models:/used@champion", read_meta(best)["tensor_digest"]
    Image.fromarray(real_ihc[:64, :64]).save(tmp_path / "patch.png")
    assert "patch.png" in his2lip("classify", "patch.png", "--model", uri)
    shards = write_small_shards(tmp_path / "shards", train=4, select=4)
    assert "small/" in his2lip("retrieve", "stroma", "--model", uri, "--index", shards, "--top", 1)
    assert digest in his2lip("models", "show", uri)
    assert "forbids commercial use" in his2lip("models", "export", uri, "--out", tmp_path / "exported")
    assert ModelCard.load(tmp_path / "exported/README.md").data.model_name == "used"
    his2lip("models", "blend", "tiny", uri, "--alpha", 0.5, "--out", tmp_path / "blend")
    assert read_meta(tmp_path / "blend")["terms"] == TERMS.to_json()


def test_training_starts_from_a_registered_model_and_records_its_version(
    sqlite: None, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    his2lip("models", "promote", checkpoint("start", seed=6), "--alias", "champion")
    shards = write_small_shards(tmp_path / "shards", train=4, select=4)
    tree = {"data": {"shards": shards}, "model": {"backbone": "models:/start@champion"}, "storage": "runs"}
    config, opened, bank = open_data(with_absolute_paths(validate(TrainConfig, tree)))
    digest = read_meta("runs/train/start/best")["tensor_digest"]
    assert read_meta(config.model.backbone)["tensor_digest"] == digest
    made_of = identity(config, opened, bank)["made_of"]
    assert made_of["config"]["model"]["backbone"] == weights_identity("runs/train/start/best")
    assert terms_of_run(config, opened).commercial is False
    his2lip("models", "promote", checkpoint("next", seed=7), "--alias", "champion", "--as", "start")
    moved = with_absolute_paths(validate(TrainConfig, tree))
    assert moved.model.backbone != config.model.backbone
    assert read_meta(config.model.backbone)["tensor_digest"] == digest


def test_the_champion_of_a_benchmark_on_select_splits_is_promoted(
    sqlite: None, checkpoint: Callable[..., Path], tmp_path: Path, ray_local: None, real_ihc: np.ndarray
) -> None:
    write_dataset(tmp_path / "shards", "beta", real_ihc, other_role="select")
    write_dataset(tmp_path / "shards", "gamma", real_ihc)
    paths = {name: str(checkpoint(name, seed=seed)) for name, seed in (("red", 1), ("blue", 2))}
    tree = {
        "name": "choose",
        "role": "select",
        "models": [{"name": name, "path": path} for name, path in paths.items()],
        "datasets": ["beta", "gamma"],
        "shards": str(tmp_path / "shards"),
        "storage": "runs",
        "cache": "cache",
        "baselines": ["majority"],
    }
    result = run_benchmark(validate(BenchmarkConfig, tree))
    assert not result.failed
    assert {(cell.dataset, cell.split, cell.role) for cell in result.cells} == {("beta", "train", "select")}
    scores = {cell.model: cell.chance_corrected for cell in result.cells if not cell.is_baseline}
    best = max(scores, key=lambda name: scores[name])
    assert scores["red"] != scores["blue"]
    promote = ("models", "promote", "--best", "runs/benchmark/choose", "--alias", "champion")
    promote += ("--by", "mean", "--force")  # both have random weights
    said = his2lip(*promote)
    assert f"champion: {best}" in said
    found = load_model(f"models:/{best}@champion")
    assert found.tensor_digest() == read_meta(paths[best])["tensor_digest"]
    version = Tracker.open().client.get_model_version_by_alias(best, "champion")
    assert "runs/benchmark/choose" in version.description
    assert "not surely above chance, and was promoted by --force" in version.description
    with pytest.raises(ConfigError) as refused:
        run_benchmark(validate(BenchmarkConfig, tree | {"role": None}))
    assert refused.value.key == "role"
    checkpoint(best, seed=3)  # as --fresh does
    with pytest.raises(CheckpointError):
        his2lip(*promote)


@pytest.mark.parametrize(
    ("value", "limits", "surely"),
    [(0.3, (0.1, 0.5), True), (0.3, (-0.1, 0.7), False), (0.9, (None, None), False)],
)
def test_a_champion_that_may_be_as_good_as_chance_is_promoted_by_force_only(
    sqlite: None,
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    value: float,
    limits: tuple[float | None, float | None],
    surely: bool,
) -> None:
    """On a board of made-up figures."""
    path = checkpoint("figures", seed=12)
    digest = read_meta(path)["tensor_digest"]
    cell = cell_result(
        model="figures", split="val", role="select", weights_sha256=digest, chance_corrected=value,
        chance_corrected_lo=limits[0], chance_corrected_hi=limits[1],
    )  # fmt: skip
    board = tmp_path / "runs/benchmark/choose"
    write_leaderboard_files(board, cell, path)
    promote = ("models", "promote", "--best", board, "--alias", "champion", "--as", "by-force")
    if not surely:
        with pytest.raises(ConfigError) as refused:
            his2lip(*promote)
        assert (refused.value.key, refused.value.where) == ("--best", board)
        promote += ("--force",)
    assert "champion: figures" in his2lip(*promote)
    assert load_model("models:/by-force@champion").tensor_digest() == digest


def write_leaderboard_files(folder: Path, cell: CellResult, path: Path) -> None:
    """The files of a benchmark of one row that `path` loads, without its grid cell."""
    folder.mkdir(parents=True)
    (folder / "leaderboard.csv").write_text(to_csv([cell]), encoding="utf-8")
    models = [{"name": cell.model, "path": str(path), "blend": None}]
    (folder / "board.json").write_text(json.dumps({"rows": [], "failed": [], "config": {"models": models}}))


def test_a_benchmark_scores_a_registered_model_under_its_name(
    sqlite: None, checkpoint: Callable[..., Path], tmp_path: Path, ray_local: None
) -> None:
    best = checkpoint("scored", seed=8)
    his2lip("models", "promote", best, "--alias", "champion")
    write_twin("mihic", tmp_path / "shards/mihic", scale=0.05)
    (tmp_path / "b.yaml").write_text(
        f"{{models: ['models:/scored@champion'], datasets: [mihic], shards: {tmp_path}/shards, "
        f"storage: {tmp_path}/runs, cache: {tmp_path}/cache, baselines: []}}"
    )
    result = run_benchmark(load(BenchmarkConfig, "b.yaml"))
    assert not result.failed
    (cell,) = result.cells
    assert (cell.model, cell.weights_sha256) == ("models:/scored@champion", read_meta(best)["tensor_digest"])
    said = his2lip("models", "promote", best, "--alias", "champion")
    assert "is version 2" in said, "its card has figures now"
    folder = mlflow.artifacts.download_artifacts("models:/scored@champion/artifacts/checkpoint")
    (result,) = (r for r in ModelCard.load(f"{folder}/README.md").data.eval_results if r.metric_type == "f1")
    assert (result.dataset_name, result.metric_value) == ("mihic-generated", cell.macro_f1)
    client = Tracker.open().client
    version = client.get_model_version_by_alias("scored", "champion")
    assert "## Intended use" in version.description
    assert version.tags["his2lip.calibration"] == "not calibrated"
    figures = client.get_run(version.tags["his2lip.benchmark_run"])
    assert figures.data.metrics["mihic-generated/macro_f1"] == round(cell.macro_f1, 4)
    assert "is version 2" in his2lip("models", "promote", best, "--alias", "champion"), "the same card"
