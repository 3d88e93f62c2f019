"""Shards on an object store: the same code, against a real S3 protocol server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
from layouts import Cutter
from moto.server import ThreadedMotoServer

from his2lip.cli.data import write_twins
from his2lip.data.cards.card import Card, Split
from his2lip.data.check.dataset import check
from his2lip.data.prepare.dataset import prepare
from his2lip.data.shards.reader import open_shards
from his2lip.errors import DatasetError

MINE = Card(name="mine", reader="folder", splits={"test": Split(role="report")})


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "made-up")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made-up")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="ihc")
    yield f"s3://ihc/{{}}?scheme=http&endpoint_override={host}:{port}&region=us-east-1"
    server.stop()


def test_dataset_is_prepared_checked_and_read_on_s3(
    bucket: str, tmp_path: Path, real_ihc: np.ndarray
) -> None:
    cut = Cutter(real_ihc)
    for i in range(12):
        cut.write(tmp_path / f"in/{'ab'[i % 2]}/{i}.png")
    uri = bucket.format("some/toy")
    report = prepare(MINE, tmp_path / "in", uri, part_bytes=40_000)
    assert (report.read, report.quarantined) == (12, [])
    assert len(report.info.parts) > 1
    local = prepare(MINE, tmp_path / "in", tmp_path / "local")
    assert report.info.digest == local.info.digest
    assert open_shards(uri).table("test").num_rows == 12
    assert check(uri).problems == []
    with pytest.raises(DatasetError) as refused:
        prepare(MINE, tmp_path / "in", uri)
    assert refused.value.where == "ihc/some/toy"


def test_generated_twins_are_written_to_s3_in_one_folder_per_dataset(bucket: str) -> None:
    write_twins(bucket.format("twins"), datasets=["bcdata"], seed=0, scale=0.05)
    assert open_shards(bucket.format("twins/bcdata")).info.generated


def test_a_place_on_s3_without_a_dataset_is_refused(bucket: str) -> None:
    with pytest.raises(DatasetError) as refused:
        open_shards(bucket.format("nothing"))
    assert refused.value.where == bucket.format("nothing")


def test_a_bucket_that_does_not_exist_is_refused(bucket: str, tmp_path: Path, real_ihc: np.ndarray) -> None:
    Cutter(real_ihc).write(tmp_path / "in/a/1.png")
    uri = bucket.replace("s3://ihc", "s3://none").format("toy")
    with pytest.raises(DatasetError) as refused:
        prepare(MINE, tmp_path / "in", uri)
    assert refused.value.where == uri
