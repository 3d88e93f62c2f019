"""MLflow as the head's service starts it, with a real PostgreSQL and a bucket on loopback."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import boto3
import mlflow
import pytest
from loopback import on_loopback
from made_up_aws import CLUSTER, cluster
from postgres import DATABASE, PASSWORD, USER, needs_postgres, postgres

UNIT = CLUSTER.parent / "his2lip/cloud/his2lip-mlflow.service"
BUCKET = "his2lip-bucket"


def unit() -> dict[str, list[str]]:
    """The keys of the service, each with its values."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(encoding="utf-8"), flags=re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def settings(home: Path, command: str) -> dict[str, str]:
    """What the command under `metadata.mlflow` writes for the service."""
    subprocess.run(["bash", "-c", command], env={"HOME": str(home), "PATH": os.environ["PATH"]}, check=True)
    lines = (home / Path(unit()["EnvironmentFile"][0]).name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_the_service_is_restarted_for_ever_and_reads_the_two_settings(tmp_path: Path) -> None:
    service = unit()
    assert service["Restart"] == ["always"]
    assert service["StartLimitIntervalSec"] == ["0"]
    assert service["User"] == [cluster()["auth"]["ssh_user"]]
    assert settings(tmp_path, cluster()["metadata"]["mlflow"]) == {
        "MLFLOW_BACKEND_STORE_URI": "sqlite:////mnt/his2lip/mlflow/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
    }


def start() -> list[str]:
    """ExecStart of the service, with this environment's MLflow; without address and port."""
    words = shlex.split(unit()["ExecStart"][0])
    assert words[0] == "/home/ubuntu/venv/bin/mlflow"
    kept = " ".join(words[1:]).replace(" --host 127.0.0.1 --port 5000", "")
    assert "--host" not in kept
    return [sys.executable, "-m", "mlflow", *shlex.split(kept)]


@pytest.mark.slow
@needs_postgres
def test_runs_in_postgresql_and_artifacts_in_a_bucket_outlive_a_killed_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg2
    from moto.server import ThreadedMotoServer

    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    host, s3_port = s3.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    keys["AWS_ENDPOINT_URL"] = keys["MLFLOW_S3_ENDPOINT_URL"] = f"http://{host}:{s3_port}"
    client = boto3.client(
        "s3", endpoint_url=keys["AWS_ENDPOINT_URL"], region_name="us-east-1",
        aws_access_key_id="x", aws_secret_access_key="x",
    )  # fmt: skip
    client.create_bucket(Bucket=BUCKET)
    try:
        with postgres() as port:
            # As docs/cluster.md tells: the address in the file, the password in ~/.pgpass.
            pgpass = tmp_path / ".pgpass"
            pgpass.write_text(f"127.0.0.1:{port}:{DATABASE}:{USER}:{PASSWORD}\n")
            pgpass.chmod(0o600)
            ours = f"postgresql+psycopg2://{USER}@127.0.0.1:{port}/{DATABASE}"
            command = re.sub(r"sqlite:\S+", ours, cluster()["metadata"]["mlflow"])
            fixed = dict(pair.split("=") for pair in shlex.split(unit()["Environment"][0]))
            env = {**os.environ, **keys, **fixed, **settings(tmp_path, command), "HOME": str(tmp_path)}
            (tmp_path / "plot.txt").write_text("a plot")
            with on_loopback(start(), env=env, stop=signal.SIGKILL) as url:
                run = _log(url, tmp_path / "plot.txt", monkeypatch)
            with on_loopback(start(), env=env, stop=signal.SIGKILL) as url:
                again = mlflow.MlflowClient(url).get_run(run)
                assert again.data.metrics == {"macro_f1": 0.5}
                assert [file.path for file in mlflow.MlflowClient(url).list_artifacts(run)] == ["plot.txt"]
            with psycopg2.connect(
                host="127.0.0.1", port=port, user=USER, password=PASSWORD, dbname=DATABASE
            ) as connection:
                rows = connection.cursor()
                rows.execute("SELECT value FROM metrics WHERE run_uuid = %s", (run,))
                assert rows.fetchall() == [(0.5,)]
            stored = [item["Key"] for item in client.list_objects_v2(Bucket=BUCKET)["Contents"]]
            assert any(key.startswith("mlflow/") and key.endswith("plot.txt") for key in stored)
    finally:
        s3.stop()


def _log(url: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run with one metric and one artifact; its id."""
    from his2lip.tracking import Tracker

    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    client = Tracker.open(url).client
    run = client.create_run(client.create_experiment("his2lip-train")).info.run_id
    client.log_metric(run, "macro_f1", 0.5)
    client.log_artifact(run, str(file))
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # the process's own default again
    return run
