"""`models promote` and `list` on a real MLflow, and models:/NAME@ALIAS wherever a model's name goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image
from training_data import write_small_shards
from typer.testing import CliRunner

from his2lip.cli import app
from his2lip.cli.benchmark import run_benchmark
from his2lip.config import load, validate
from his2lip.data.cards.terms import Terms
from his2lip.errors import CheckpointError, ConfigError, ModelError
from his2lip.evaluation import BenchmarkConfig
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import load_model
from his2lip.models.provenance import read_meta, weights_identity
from his2lip.models.registered import local_name
from his2lip.synthetic.twins import write_twin
from his2lip.tracking.registry import promoted_models
from his2lip.tracking.store import Tracker
from his2lip.training.config import TrainConfig
from his2lip.training.run_inputs import identity, open_data, terms_of_run, with_absolute_paths

TERMS = Terms(datasets={"bci": "CC BY-NC 4.0"}, commercial=False, attribution=("Liu et al. 2022",))


def his2lip(*arguments: object) -> str:
    """What `his2lip ARGUMENTS` prints; raises what it raises."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite store for this module; making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(params=["sqlite_uri", "mlflow_server"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each kind of store that people have; the current folder is a fresh one."""
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
    """checkpoint(run, seed=…) -> runs/train/RUN/best: `tiny` by seed, as if trained on BCI."""

    def write(run: str, *, seed: int = 1) -> Path:
        meta = {"config": {"model": {"backbone": "tiny"}}, "data_digest": "d" * 64, "terms": TERMS.to_json()}
        return save_checkpoint(
            tmp_path / "runs/train" / run / "best", load_model("tiny", seed=seed), meta=meta
        )

    return write


def score(checkpoint: Path, name: str, value: float) -> None:
    """A cell of a benchmark on this checkpoint, as the driver writes it."""
    digest = read_meta(checkpoint)["tensor_digest"]
    with Tracker.open().run("his2lip-benchmark", "grid", {}) as run:
        model = run.model(name, digest=digest, path=str(checkpoint))
        run.cell(
            f"{name}/mist", model=name, model_id=model, dataset="mist", protocol="default", digest="e" * 64,
            metrics={"macro_f1": value}, generated=False,
        )  # fmt: skip


def test_a_promoted_checkpoint_is_loaded_by_its_alias_and_its_terms_are_said(
    store: None, checkpoint: Callable[..., Path]
) -> None:
    best = checkpoint("first")
    score(best, "first", 0.4321)
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
    (scored,) = [
        m for m in client.get_logged_model(version.source.rpartition("/")[2]).metrics if m.dataset_name
    ]
    assert (scored.dataset_name, scored.key, scored.value) == ("mist", "macro_f1", 0.4321)


def test_promoting_again_moves_the_alias_and_keeps_one_version_of_the_same_weights(
    store: None, checkpoint: Callable[..., Path]
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


def test_a_model_is_promoted_by_its_runs_name_its_name_on_the_leaderboard_or_its_own(
    sqlite: None, checkpoint: Callable[..., Path]
) -> None:
    best = checkpoint("first")
    score(best, "my favourite", 0.5)
    assert "models:/first@champion" in his2lip("models", "promote", "first", "--alias", "champion")
    assert "models:/first@a" in his2lip("models", "promote", "my favourite", "--alias", "a")
    assert "models:/tiny@frozen" in his2lip("models", "promote", "tiny", "--alias", "frozen")
    again = his2lip("models", "promote", "models:/first@a", "--alias", "b", "--as", "second")
    assert "forbids commercial use" in again, "a model keeps its terms through the registry"
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


def test_what_cannot_be_promoted_is_one_sentence(sqlite: None, checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="did you mean 'tiny'"):
        his2lip("models", "promote", "tinny", "--alias", "champion")
    with pytest.raises(ConfigError, match="--as a-b"):
        his2lip("models", "promote", "tiny", "--alias", "champion", "--as", "a/b")


def test_a_registered_model_that_is_not_there_is_one_sentence(
    sqlite: None, checkpoint: Callable[..., Path]
) -> None:
    his2lip("models", "promote", checkpoint("there"), "--alias", "champion")
    for uri, said in (
        ("models:/nothing@champion", "nothing not found.*models list"),
        ("models:/there@nobody", "alias nobody not found.*models list"),
        ("models:/there", "models:/NAME@ALIAS"),
    ):
        with pytest.raises(ModelError, match=said) as caught:
            load_model(uri)
        assert "\n" not in str(caught.value)


def test_without_a_store_a_registered_model_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="there is no MLflow store here"):
        load_model("models:/first@champion")
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
    assert not (tmp_path / "mlflow.db").exists(), "MLflow's own default store"


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
    assert "not for commercial use" in row("runs/train/other/best")
    assert not any(line.startswith("runs/train/listed") for line in rows), "it has a registered name"
    assert "MIT" in row("clip")


def test_a_registered_model_is_classified_with_blended_exported_and_shown(
    sqlite: None, checkpoint: Callable[..., Path], tmp_path: Path, real_ihc: np.ndarray
) -> None:
    best = checkpoint("used", seed=5)
    his2lip("models", "promote", best, "--alias", "champion")
    uri, digest = "models:/used@champion", read_meta(best)["tensor_digest"]
    Image.fromarray(real_ihc[:64, :64]).save(tmp_path / "patch.png")
    assert "patch.png" in his2lip("classify", tmp_path / "patch.png", "--model", uri)
    shards = write_small_shards(tmp_path / "shards", train=4, select=4)
    assert "small/" in his2lip("retrieve", "stroma", "--model", uri, "--index", shards, "--top", 1)
    assert digest in his2lip("models", "show", uri)
    assert "forbids commercial use" in his2lip("models", "export", uri, "--out", tmp_path / "exported")
    his2lip("models", "blend", "tiny", uri, "--alpha", 0.5, "--out", tmp_path / "blend")
    assert read_meta(tmp_path / "blend")["terms"] == TERMS.to_json()


def test_training_starts_from_a_registered_model_and_pins_what_its_alias_means(
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


def test_a_benchmark_scores_a_registered_model_under_its_name(
    sqlite: None, checkpoint: Callable[..., Path], tmp_path: Path, ray_local: None
) -> None:
    best = checkpoint("scored", seed=8)
    his2lip("models", "promote", best, "--alias", "champion")
    write_twin("mihic", tmp_path / "shards/mihic", scale=0.25)
    (tmp_path / "b.yaml").write_text(
        f"{{models: ['models:/scored@champion'], datasets: [mihic], shards: {tmp_path}/shards, "
        f"storage: {tmp_path}/runs, cache: {tmp_path}/cache, baselines: []}}"
    )
    result = run_benchmark(load(BenchmarkConfig, "b.yaml"))
    assert not result.failed
    (cell,) = result.cells
    assert (cell.model, cell.weights_sha256) == ("models:/scored@champion", read_meta(best)["tensor_digest"])
