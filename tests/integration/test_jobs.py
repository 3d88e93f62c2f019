"""Jobs, and a driver in another folder, on a cluster of `ray start --head` on loopback with a token."""

from __future__ import annotations

import csv
import json
import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from early_end import ends_early
from mlflow_stores import new_store
from test_grid import PROTOCOLS, write_dataset
from test_log_files import LINE
from training_data import write_small_shards

from his2lip import __version__
from his2lip.config import load
from his2lip.data.captions import CaptionBank
from his2lip.errors import ClusterError
from his2lip.evaluation.config import BenchmarkConfig
from his2lip.evaluation.grid_plans import plan_cells
from his2lip.evaluation.grid_task import Work, score_models
from his2lip.jobs import submit
from his2lip.models.checkpoint import save_checkpoint
from his2lip.models.load import load_model
from his2lip.models.provenance import read_meta
from his2lip.training.config import TrainConfig
from his2lip.training.local import run_in_process

REPO = Path(__file__).resolve().parents[2]
SECRETS = [
    *(".env", ".env.local", "app/.env", ".netrc", ".ssh/id_ed25519", ".aws/credentials", ".ray/auth_token"),
    *("auth_token", "deploy.pem", "keys/server.key", "id_rsa", "gcp-credentials.json", "hub.token"),
]
SUBMIT = """
import sys
from his2lip.errors import His2lipError
from his2lip.jobs import submit
try:
    sys.exit(submit(sys.argv[1], sys.argv[3:], working_dir=sys.argv[2] or None))
except His2lipError as error:
    sys.exit(f"his2lip: {error}")
"""

# Joins the cluster as a command does; first as one whose code differs from that of the cluster's nodes, which
# refuse it when they are asked, and nodes that join later when they work for it.
FROM_ANOTHER_FOLDER = """
import json, ray, sys
from his2lip import resources
from his2lip.config import load
from his2lip.data.captions import CaptionBank
from his2lip.errors import ClusterError
from his2lip.evaluation import BenchmarkConfig, run_grid
from his2lip.runtime import check_code, check_nodes, start_ray
start_ray()
own, resources.code_version = resources.code_version, lambda: "edited"
try:
    check_nodes()
except ClusterError as refused:
    keys = [refused.key]
try:
    ray.get(ray.remote(check_code).remote("edited"))
except ClusterError as refused:
    keys.append(refused.key)
print(json.dumps(keys))
resources.code_version = own
result = run_grid(load(BenchmarkConfig, "benchmark.yaml"))
cells = [cell.model_dump(mode="json") for cell in result.cells]
print(json.dumps([cells, [failure.reason for failure in result.failed]]))
"""

TRAINING_FROM_ANOTHER_FOLDER = """
import json
from his2lip.cli.train import validator
from his2lip.config import load
from his2lip.data.captions import CaptionBank
from his2lip.models import read_meta
from his2lip.runtime import start_ray
from his2lip.training import TrainConfig, train
from his2lip.tuning import SweepConfig, run_sweep, training_objective
start_ray()
trained = train(load(TrainConfig, "train.yaml"))
config = load(SweepConfig, "sweep.yaml")
objective = training_objective(config, make_validator=validator)
swept = run_sweep(config, objective, inputs=objective.inputs, places=objective.places)
folder = swept.directory / "trials"
metas = {row.params["model.backbone"]: read_meta(folder / str(row.number) / "best") for row in swept.trials}
digests = {name: meta["tensor_digest"] for name, meta in metas.items()}
print(json.dumps([read_meta(trained.best)["tensor_digest"], digests]))
"""


@dataclass(frozen=True)
class Cluster:
    """
    address  of the dashboard and the job server
    node     of the head, for RAY_ADDRESS
    folder   the current folder of the processes that were started with the head
    env      environment of a client that has the token
    """

    address: str
    node: str
    folder: Path
    env: dict[str, str]

    def submit(
        self, *argv: str, working_dir: Path | str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Submits from a new process, because Ray reads its token only once per process."""
        return ended(self.start(*argv, working_dir=working_dir, env=env))

    def start(
        self, *argv: str, working_dir: Path | str = "", env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts the process of `submit`."""
        return subprocess.Popen(
            [sys.executable, "-c", SUBMIT, self.address, str(working_dir), *argv],
            cwd=REPO, env=self.env if env is None else env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, program: str, *, folder: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Runs a program in `folder` as a driver on this cluster."""
        env = self.env | {"RAY_ADDRESS": self.node, "RAY_AUTH_MODE": "token"}
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, done.stderr
        return done


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Waits for the end of a process."""
    try:
        shown, said = process.communicate(timeout=120)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, shown, said)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head node with its own home, ports and folder. Only its own processes are stopped at the end."""
    home = Path(tempfile.mkdtemp(prefix="rj"))  # a short path, because Ray makes sockets in it
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    ray = str(Path(sys.executable).with_name("ray"))
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text(secrets.token_hex(32))
    token.chmod(0o644)
    port, own_port = free_port(), free_port()
    folder = home / "a"
    folder.mkdir()
    command = [ray, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={own_port}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--temp-dir={home}/r"]
    command += [
        "--num-cpus=1",
        f"--object-store-memory={100 << 20}",
        f"--ray-client-server-port={free_port()}",
    ]
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    head = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert head.stdout is not None
    said = []
    for line in head.stdout:
        said.append(line)
        if "will now block" in line:  # printed when everything has started
            break
    else:
        pytest.fail("".join(said))
    del env["RAY_AUTH_MODE"]  # his2lip sets it where there is a token
    try:
        yield Cluster(f"http://127.0.0.1:{port}", f"127.0.0.1:{own_port}", folder, env)
    finally:
        head.kill()  # its processes end too (--block); after SIGTERM the node would drain for half a minute
        head.wait()
        shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True)
class GridJob:
    """A benchmark of `tiny` on three datasets, of which `beta` is damaged, as a job; and its storage."""

    done: subprocess.CompletedProcess[str]
    storage: Path


@dataclass(frozen=True)
class Submitted:
    """That benchmark as a job that may still run. Other jobs can be submitted meanwhile."""

    client: subprocess.Popen[str]
    storage: Path


@pytest.fixture(scope="module")
def grid_submitted(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, real_ihc: np.ndarray
) -> Iterator[Submitted]:
    folder = tmp_path_factory.mktemp("grid")
    for name in PROTOCOLS:
        write_dataset(folder / "shards", name, real_ihc)
    (folder / "shards/beta/dataset.json").write_text("{}", encoding="utf-8")
    tree = {
        "name": "job",
        "models": ["tiny"],
        "datasets": list(PROTOCOLS),
        "shards": str(folder / "shards"),
        "baselines": ["majority"],
        "cache": str(folder / "cache"),
        "storage": str(folder / "runs"),
    }
    (folder / "benchmark.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    program = "import his2lip as h; print(h.__version__, h.__file__); from his2lip.cli import main; main()"
    store = f"MLFLOW_TRACKING_URI={new_store(folder)}"
    command = ["env", store, sys.executable, "-c", program, "benchmark", str(folder / "benchmark.yaml")]
    with cluster.start(*command) as client:
        yield Submitted(client, folder / "runs")
        client.kill()


@pytest.fixture(scope="module")
def grid_job(grid_submitted: Submitted) -> GridJob:
    return GridJob(ended(grid_submitted.client), grid_submitted.storage)


@pytest.mark.usefixtures("grid_submitted")
def test_a_command_that_is_killed_has_no_exit_code_of_its_own(cluster: Cluster, tmp_path: Path) -> None:
    killed = cluster.submit(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)", working_dir=tmp_path)
    assert killed.returncode not in (0, 2)


def test_the_job_gets_arguments_and_folder_without_secrets_and_ignored_files_and_returns_its_exit_code(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("name: x", encoding="utf-8")
    (tmp_path / ".gitignore").write_text("secret\n", encoding="utf-8")
    (tmp_path / "secret").write_text("no", encoding="utf-8")
    for name in SECRETS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("no", encoding="utf-8")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "old").write_text("no", encoding="utf-8")
    argument = "a b='$HOME' `x`; \"y\" [a]"
    program = (
        "import os, sys\n"
        "files = [os.path.relpath(os.path.join(d, f)) for d, _, names in os.walk('.') for f in names]\n"
        "print(sorted(f for f in files if f != '.gitignore'), [sys.argv[1]])\n"
        "sys.exit(2)"
    )
    done = cluster.submit(sys.executable, "-c", program, argument, working_dir=tmp_path)
    assert done.stdout.splitlines()[-1] == f"['config.yaml'] {[argument]}"
    assert done.returncode == 2


@pytest.mark.parametrize("refused", [0, 2])
def test_a_log_whose_stream_ends_early_is_shown_whole_and_once(
    cluster: Cluster, tmp_path: Path, refused: int
) -> None:
    with ends_early(cluster.address, refused=refused) as (address, ended_streams):
        done = replace(cluster, address=address).submit(
            sys.executable, "-c", "import sys; print('first', 'line'); sys.exit(3)", working_dir=tmp_path
        )
    assert ended_streams
    assert done.stdout.splitlines().count("first line") == 1
    assert done.returncode == 3
    assert "cannot be read" not in done.stderr


def test_a_log_that_cannot_be_read_to_its_end_is_said_to_be_cut(cluster: Cluster, tmp_path: Path) -> None:
    with ends_early(cluster.address, refused=100) as (address, _):
        command = [sys.executable, "-c", "import sys; print('first', 'line'); sys.exit(3)"]
        done = replace(cluster, address=address).submit(*command, working_dir=tmp_path)
    assert done.returncode == 3
    assert "first line" not in done.stdout.splitlines()
    assert "the end of this job's log cannot be read" in done.stderr


def test_a_client_without_the_token_is_refused_in_one_sentence(cluster: Cluster, tmp_path: Path) -> None:
    env = {**cluster.env, "HOME": str(tmp_path)}
    done = cluster.submit("true", working_dir=tmp_path, env=env)
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") == 0
    assert "token" in done.stderr


def test_a_client_makes_the_token_file_readable_by_its_owner_only(
    cluster: Cluster, grid_job: GridJob
) -> None:
    token = Path(cluster.env["HOME"]) / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "ftp://host", "http://", "://x"])
def test_an_address_that_is_not_a_dashboards_is_refused(address: str) -> None:
    with pytest.raises(ClusterError) as refused:
        submit(address, ["true"])
    assert (refused.value.where, refused.value.key) == (address, "--address")


def test_a_cluster_that_does_not_answer_is_reported_in_one_sentence(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ClusterError) as refused:
        submit(address, ["true"], working_dir=tmp_path)
    assert (refused.value.where, refused.value.key) == (address, "--address")
    assert "\n" not in str(refused.value)


def test_a_job_must_be_submitted_from_the_checkout_that_is_sent_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", SUBMIT, cluster.address, "", "true"]
    done = subprocess.run(command, env=cluster.env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"cd {REPO}" in done.stderr


def test_a_command_runs_on_the_cluster_with_the_code_of_this_checkout_and_returns_its_log(
    grid_job: GridJob,
) -> None:
    done = grid_job.done
    (line,) = (line for line in done.stdout.splitlines() if line.endswith("his2lip/__init__.py"))
    version, where = line.split()
    assert version == __version__
    assert "working_dir_files" in where  # the code that was sent, not an installed version
    assert done.stderr.startswith("job raysubmit_")
    assert done.stderr.count("\n") == 1


def test_a_grid_as_a_job_writes_the_leaderboard_and_returns_its_exit_code(grid_job: GridJob) -> None:
    done = grid_job.done
    assert done.returncode == 1, done.stdout + done.stderr  # a grid cell failed
    assert "failed: tiny on beta" in done.stdout
    board = grid_job.storage / "benchmark/job/leaderboard.csv"
    with board.open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    assert [(row["model"], row["dataset"]) for row in rows] == [
        (model, dataset)
        for model in ("tiny", "baseline:majority")
        for dataset in PROTOCOLS
        if dataset != "beta"
    ]


def test_a_benchmark_prints_no_log_lines_and_its_log_file_has_those_of_the_tasks(grid_job: GridJob) -> None:
    log = grid_job.storage / "benchmark/job/his2lip.log"
    lines = [line for line in map(LINE.match, log.read_text(encoding="utf-8").splitlines()) if line]
    scored = {line[1] for line in lines if line[3].startswith("scored: tiny on alpha")}
    received = {line[1] for line in lines if line[3].startswith("received tiny on alpha")}
    assert len(scored) == len(received) == 1
    assert scored != received, "the process of the task, and that of the command"
    printed = grid_job.done.stdout
    assert not [line for line in printed.splitlines() if LINE.match(line) or line.startswith("(pid=")]
    assert "scored: " not in printed


def write_folder(folder: Path, pixels: np.ndarray, *, count: int, seed: int) -> None:
    """A benchmark of relative paths, of two models on a dataset of `count` patches."""
    write_dataset(folder / "shards", "alpha", pixels, count=count)
    save_checkpoint(folder / "best", load_model("tiny", seed=seed), meta={})
    models = [{"name": "one", "path": "best"}, {"name": "two", "path": "local-dir:best"}]
    tree = {"name": "here", "models": models, "datasets": ["alpha"], "shards": "shards", "baselines": []}
    (folder / "benchmark.yaml").write_text(yaml.safe_dump(tree | {"cache": "cache", "storage": "runs"}))


def test_a_cluster_that_was_started_in_another_folder_reads_the_files_that_the_driver_names(
    cluster: Cluster,
    tmp_path: Path,
    real_ihc: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_folder(cluster.folder, real_ihc, count=12, seed=2)  # other files at the same relative paths
    write_folder(tmp_path, real_ihc, count=24, seed=1)
    done = cluster.run(FROM_ANOTHER_FOLDER, folder=tmp_path, timeout_s=120)
    refused, (cells, failed) = map(json.loads, done.stdout.splitlines())
    assert refused == ["code", "code"], "a node with other code than the driver is refused"
    assert failed == []
    monkeypatch.chdir(tmp_path)
    config = load(BenchmarkConfig, "benchmark.yaml", {"storage": "runs2"})
    plans, _ = plan_cells(config)
    here = [
        outcome.cell.model_dump(mode="json") for outcome in score_models(config.models, Work(plans, config))
    ]
    same = ("model", "n", "accuracy", "macro_f1", "weights_sha256", "images_sha256", "cell")
    assert [[cell[name] for name in same] for cell in cells] == [
        [cell[name] for name in same] for cell in here
    ]
    assert not (cluster.folder / "runs").exists()
    assert (tmp_path / "runs/benchmark/here/leaderboard.csv").is_file()


def write_training_folder(folder: Path, *, count: int, seed: int) -> None:
    """A run and a sweep of relative paths: shards of `count` patches, captions, and first weights."""
    write_small_shards(folder / "shards", train=count, select=16)
    CaptionBank.templates().save(folder / "bank.json")
    save_checkpoint(folder / "best", load_model("tiny", seed=seed), meta={})
    data = {"shards": "shards", "captions": "bank.json", "batch_size": 16, "lanes": 4}
    train = {"data": data, "model": {"backbone": "local-dir:best"}, "optim": {"epochs": 1, "lr": 1e-3}}
    (folder / "train.yaml").write_text(yaml.safe_dump(train | {"name": "here", "storage": "runs"}))
    sweep = {
        "name": "here",
        "train": train,
        "space": {"model.backbone": {"kind": "choice", "values": ["best", "local-dir:best"]}},
        "points": [{"model.backbone": "best"}, {"model.backbone": "local-dir:best"}],
        "trials": 2,
        "keep": 2,
        "storage": "runs",
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_that_was_started_in_another_folder_trains_and_sweeps_on_the_files_of_the_driver(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_training_folder(cluster.folder, count=32, seed=2)  # other files at the same relative paths
    write_training_folder(tmp_path, count=64, seed=1)
    done = cluster.run(TRAINING_FROM_ANOTHER_FOLDER, folder=tmp_path, timeout_s=800)
    trained, swept = json.loads(done.stdout.splitlines()[-1])
    monkeypatch.chdir(tmp_path)
    # The cluster has one CPU, which decides the threads and with them the last bits.
    run_in_process(load(TrainConfig, "train.yaml"), report=lambda metrics: None, folder="local", cores=1)
    here = read_meta("local/best")["tensor_digest"]
    assert trained == here
    assert swept == {"best": here, "local-dir:best": here}
    assert not (cluster.folder / "runs").exists()
