"""An object store fails while it gets a checkpoint: the one before stays, and the run ends as undisturbed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moments import MANY, moments
from moto.server import ThreadedMotoServer
from plain_run import outcome, plain_run, small_run
from proxy import Proxy
from reliability_page import Record
from training_data import write_small_shards

from his2lip import files
from his2lip.errors import StorageError
from his2lip.models.stored import fetch_stored
from his2lip.training.progress import StepReport

STEPS, PUTS = 8, 5  # steps of a run; the fewest PUT requests that follow any of them but the last


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A store with the bucket `ihc`, reached through a proxy."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with Proxy(f"http://{host}:{port}").running() as proxy:
        made_up = {"AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": "made-up"}
        keys = {"AWS_ENDPOINT_URL": proxy.url, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        for key, value in (made_up | keys).items():
            monkeypatch.setenv(key, value)
        boto3.client("s3").create_bucket(Bucket="ihc")
        yield proxy
    server.stop()


@MANY
def test_an_upload_that_fails_half_way_leaves_the_checkpoint_before(
    store: Proxy, tmp_path: Path, count: int, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_small_shards(tmp_path / "shards", train=64, select=16)
    whole = outcome(plain_run(small_run(shards, tmp_path / "whole")))
    bucket = boto3.client("s3")
    for i, part in enumerate(moments("upload", count)):
        config, for_good = small_run(shards, f"s3://ihc/{i}"), i % 2 == 1
        step = 3 + int(part * (STEPS - 3))  # a checkpoint is before it
        # Arrow itself repeats a request for six seconds.
        store.refused = 0
        monkeypatch.setattr(files, "_AGAIN_S", () if for_good else (0.05, 0.05))

        def fail(
            progress: StepReport, step: int = step, spared: int = int(part * PUTS), good: bool = for_good
        ) -> None:
            if progress.step == step and store.mode == "up" and not store.refused:
                store.spared, store.patience = spared, None if good else 12
                store.mode = "away"

        if for_good:
            with pytest.raises(StorageError) as refused:
                plain_run(config, report=fail)
            assert refused.value.key == "store"
            store.mode = "up"
            assert fetch_stored(f"s3://ihc/{i}/train/small/last.tar", tmp_path / f"last{i}"), "there is none"
            run = plain_run(config)
        else:
            run = plain_run(config, report=fail)
            assert store.refused >= 12
        assert outcome(run) == whole
        assert outcome(plain_run(config)) == whole, "another process finds it finished"
    unfinished = len(bucket.list_multipart_uploads(Bucket="ihc").get("Uploads", []))
    how = (
        f"an S3 server closes connections from a seeded request on, every second time for good; {unfinished}"
    )
    ended = "stored at another attempt, or refused in one sentence and resumed by the same command: weights, "
    record(
        "a checkpoint whose upload fails half-way",
        f"{how} uploads were cut in two",
        count,
        f"{ended}optimizer and history of the undisturbed run",
    )
