"""An object store on this machine: moto's S3, served on loopback from a thread."""

import contextlib
import json
import logging
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fct_tf.common import stores

# Looked for wherever it must not be.
SECRET = "kept/to/itself+0123456789abcdefghijklm"
KEY_ID = "AKIATHISISNOTWRITTEN"


@dataclass(frozen=True)
class Server:
    """endpoint: where it is reached. client: of boto3, to look at what is there."""

    endpoint: str
    client: Any

    @property
    def options(self) -> dict[str, str]:
        """What opens its buckets."""
        return {
            "aws_endpoint": self.endpoint,
            "allow_http": "true",
            "aws_access_key_id": KEY_ID,
            "aws_secret_access_key": SECRET,
            "aws_region": "us-east-1",
        }

    def bucket(self, name: str) -> str:
        """Makes a bucket; its URI."""
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def contents(self, name: str) -> dict[str, bytes]:
        """All that a bucket holds."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=name)
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        get = self.client.get_object
        return {key: get(Bucket=name, Key=key)["Body"].read() for key in keys}

    @contextlib.contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """It refuses whoever it does not know while the block runs, and it knows nobody."""
        try:
            _ask(self.endpoint, "reset-auth", b"0")
            yield
        finally:
            _ask(self.endpoint, "reset-auth", b"inf")

    def write_options(self, path: Path, **changed: str) -> Path:
        """The file for --storage_options."""
        path.write_text(json.dumps({**self.options, **changed}))
        return path


@contextlib.contextmanager
def served() -> Iterator[Server]:
    """A server with no bucket, until the block ends."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # A line for each request.

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="another",
        aws_secret_access_key="another",
        region_name="us-east-1",
    )
    try:
        _ask(endpoint, "reset", b"")  # All servers of a process have the same buckets.
        yield Server(endpoint, client)
    finally:
        server.stop()


def _ask(endpoint: str, what: str, data: bytes) -> None:
    headers = {"Content-Type": "text/plain"}
    asked = urllib.request.Request(f"{endpoint}/moto-api/{what}", data, headers)
    urllib.request.urlopen(asked).read()


@contextlib.contextmanager
def opened(server: Server) -> Iterator[None]:
    """Its buckets are what this process opens while the block runs."""
    before = {**stores._given}
    stores.use(server.options)
    try:
        yield
    finally:
        stores._given.clear()
        stores._given.update(before)


def forget_stores(monkeypatch: Any) -> None:
    """No options, and none in the environment, until the test ends."""
    for name in os.environ.keys() - without_stores().keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(stores, "_given", {})


def without_stores(environment: dict[str, str] | None = None) -> dict[str, str]:
    """An environment without what opens stores."""
    known = os.environ if environment is None else environment
    named = ("AWS_", "GOOGLE_", "AZURE_", "FCT_TF_")
    return {key: value for key, value in known.items() if not key.startswith(named)}
