"""Every line of a program says when, how serious and where; libraries' warnings come along."""

import os
import re
import subprocess
import sys

import pytest

LINE = re.compile(r"[EWID] \d\d-\d\d \d\d:\d\d:\d\d [\w.-]+\] (.*)")
CODE = """
import logging, sys, warnings
logging.warning("before the setup")  # gives the root logger a handler of its own
from absl import logging as absl_logging
from rb_jax.runtime.logging import LOG, name_process, setup
setup(*sys.argv[1:])
LOG.debug("our details")
LOG.info("our news\\nin two lines")
absl_logging.info("a library's news")
absl_logging.warning("a library's warning")
logging.getLogger("jax.x").warning("jax's warning")
warnings.warn("python's warning")
LOG.error("our error")
name_process(3, 8)
LOG.warning("one of eight")
"""
EVERYTHING = [
    "our details",
    "our news",
    "in two lines",
    "a library's news",
    "a library's warning",
    "jax's warning",
    "python's warning",
    "our error",
]


@pytest.mark.parametrize(
    ("verbosity", "left_out"),
    [
        ("debug", []),
        ("info", ["our details", "a library's news"]),
        ("0", ["our details", "a library's news"]),
        ("warning", ["our details", "our news", "in two lines", "a library's news"]),
        ("error", EVERYTHING[:-1]),
    ],
)
def test_lines(verbosity, left_out):
    command = [sys.executable, "-c", CODE, verbosity]
    lines = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()[1:]
    found = [LINE.fullmatch(line.replace("/3]", "]")) for line in lines]
    assert all(found), lines
    texts = [match[1] for match in found if match]
    expected = [text for text in EVERYTHING if text not in left_out]
    assert texts == expected + ["one of eight"] * (verbosity != "error")
    if verbosity != "error":
        assert "/3] one of eight" in lines[-1] and lines[-1][0] == "W"


def test_what_tensorstore_prints_of_a_closed_loop_is_no_news():
    """It does so in a thread of its own, when the second of two requests fails."""
    code = """
import asyncio, threading
from rb_jax.runtime.logging import setup
setup()
import tensorstore
loop = asyncio.new_event_loop()
async def ask():
    future = tensorstore.KvStore.open({"driver": "gcs", "bucket": "b1b", "path": "x/",
        "gcs_request_retries": {"max_retries": 1, "initial_delay": "1s"}}).result().write("a", b"x")
    asyncio.ensure_future(future)
    await asyncio.sleep(0.1)
    return future
future = loop.run_until_complete(ask())
loop.close()
try:
    future.result()
except ValueError:
    print("failed")
import time; time.sleep(0.5)
class Ours:
    def __del__(self):
        raise RuntimeError("ours is shown")
ours = Ours()
del ours
"""
    where = {"TENSORSTORE_GCS_HTTP_URL": "http://localhost:9", "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x"}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | where
    )
    assert ended.stdout == "failed\n"
    assert "Event loop is closed" not in ended.stderr
    assert "RuntimeError: ours is shown" in ended.stderr
