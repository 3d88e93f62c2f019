"""A bucket of S3's protocol on loopback, which this process and those that it starts use as AWS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import boto3
from moto.server import ThreadedMotoServer


@contextmanager
def s3_on_loopback(bucket: str) -> Iterator[str]:
    """The URI of an empty bucket, whose server and made-up keys are in the environment until the end."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        settings = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "made-up",
            "AWS_SECRET_ACCESS_KEY": "made-up",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        with mock.patch.dict(os.environ, settings):
            client = boto3.client("s3", region_name="us-east-1")
            client.create_bucket(Bucket=bucket)
            yield f"s3://{bucket}"
    finally:
        server.stop()
