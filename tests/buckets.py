"""Object stores on this machine: real servers over a socket, which forget all when they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rb_jax.checkpoint.layout import COMMITTED
from tests.addresses import free_address

BUCKET = "bucket"  # names of buckets have three letters or more


@contextmanager
def google() -> Iterator[str]:
    """A Google Cloud Storage with one bucket, for this process and its children; its address."""
    host, port = free_address().split(":")
    command = ["-m", "gcp_storage_emulator", "start", f"--host={host}", f"--port={port}"]
    command += ["--in-memory", f"--default-bucket={BUCKET}"]
    url = f"http://{host}:{port}"
    with _server(command, f"{url}/storage/v1/b/{BUCKET}"):
        os.environ |= google_environment(url)
        yield url


def google_environment(url: str) -> dict[str, str]:
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        "NO_GCE_CHECK": "true",  # no credentials to be found on this machine
    }


@contextmanager
def amazon() -> Iterator[str]:
    """An S3 with one bucket, likewise."""
    host, port = free_address().split(":")
    url = f"http://{host}:{port}"
    with _server(["-m", "moto.server", "-H", host, "-p", port], f"{url}/moto-api/"):
        os.environ |= {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"))
        yield url


@contextmanager
def both() -> Iterator[dict[str, str]]:
    """Scheme -> the address of its bucket."""
    with ExitStack() as stack:
        stack.enter_context(google())
        stack.enter_context(amazon())
        yield {"gs": f"gs://{BUCKET}", "s3": f"s3://{BUCKET}"}


def unfinished(prefix: str) -> bool:
    """Whether a folder below the prefix in Google's bucket has files, but not Orbax's last one.

    Asked without a client, which would not survive a fork.
    """
    query = urllib.parse.urlencode({"prefix": prefix, "fields": "items/name"})
    url = f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/{BUCKET}/o?{query}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        names = [item["name"] for item in json.load(answer).get("items", [])]
    folders = {name.removeprefix(prefix).partition("/")[0] for name in names}
    return any(f"{prefix}{folder}/{COMMITTED}" not in names for folder in folders)


@contextmanager
def _server(command: list[str], ready: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(lambda: urllib.request.urlopen(ready, timeout=1).close(), process)
        yield
    finally:
        process.kill()
        process.wait()


def _wait(answers: Callable[[], None], process: subprocess.Popen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return answers()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
