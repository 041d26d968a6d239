"""A whole run with its workdir in a bucket: a kill, two processes, a store that fails."""

import http.client
import http.server
import os
import random
import signal
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rb_jax import storage
from rb_jax.checkpoint import layout, stored
from rb_jax.errors import InputError
from rb_jax.train import loop
from rb_jax.train.metrics import read_lines
from tests.addresses import free_address
from tests.torture.child import write_config
from tests.train import fake

ROOT = Path(__file__).parents[2]
SETTINGS = dict(steps=6, log_every=1, eval_every=4, checkpoint_every=2, keep_checkpoints=2)


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    fake.use(monkeypatch)


@pytest.fixture(scope="module")
def peace(tmp_path_factory):
    """The same run on a disk: its state's hash and its losses."""
    folder = tmp_path_factory.mktemp("peace")
    with pytest.MonkeyPatch.context() as patch:
        fake.use(patch)
        assert loop.train(fake.config(**SETTINGS), folder) == 0
    return stored.state_hash(stored.load_arrays(folder)), losses(folder)


def losses(workdir):
    rows = [row for row in read_lines(workdir) if row["kind"] != "start"]
    return [(row["step"], row["kind"], row["loss"]) for row in rows]


@pytest.mark.parametrize("kind", ["gs", "s3"])
def test_a_run_leaves_the_same_in_a_bucket_as_on_a_disk(buckets, peace, tmp_path, kind):
    workdir = f"{buckets[kind]}/{tmp_path.name}"
    assert loop.train(fake.config(**SETTINGS), workdir) == 0
    assert (stored.state_hash(stored.load_arrays(workdir)), losses(workdir)) == peace
    root = storage.place(workdir)
    names = storage.files(root)
    for name in ("config.json", "metrics.jsonl", "samples/step_4.png", "weights/model.safetensors"):
        assert name in names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert "run.lock" not in names
    assert layout.steps(root / "checkpoints") == [4, 6]
    for source in (workdir, f"{workdir}/weights", f"{workdir}/checkpoints/6"):
        assert stored.load_weights(source)[0].train.steps == 6
    assert loop.train(fake.config(**SETTINGS), workdir) == 0  # finished: nothing to do
    longer = SETTINGS | dict(steps=8)
    assert loop.train(fake.config(**longer), workdir) == 0
    assert losses(workdir)[: len(peace[1])] == peace[1]


def run_child(config, workdir, *flags):
    command = ["-m", "tests.train.worker", "none", "0", "train", f"--config={config}"]
    return subprocess.Popen(
        [sys.executable, *command, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
    )


def test_killed_in_the_middle_of_a_save_and_a_second_run_beside_it(buckets, peace, tmp_path):
    config = write_config(tmp_path, **SETTINGS)
    workdir = f"{buckets['s3']}/{tmp_path.name}"
    folder = storage.place(workdir) / "checkpoints"
    process = run_child(config, workdir)

    def half_written():
        names = [path.name for path in layout.children(folder)]
        return any(int(name) not in layout.steps(folder) for name in names)

    deadline = time.monotonic() + 120
    while not half_written() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[1]
    with pytest.raises(InputError, match=f"another run is at work in it .*process {process.pid}"):
        loop.train(fake.config(**SETTINGS), workdir)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "run.lock" in storage.files(storage.place(workdir))
    assert loop.train(fake.config(**SETTINGS), workdir) == 0
    assert (stored.state_hash(stored.load_arrays(workdir)), losses(workdir)) == peace


def test_two_processes_write_one_checkpoint(buckets, tmp_path):
    config = write_config(tmp_path, **SETTINGS)
    workdir = f"{buckets['s3']}/{tmp_path.name}"
    joined = [f"--coordinator_address={free_address()}", "--num_processes=2"]
    mesh = ["--config.mesh.fsdp=2", "--config.mesh.data=1"]
    both = [run_child(config, workdir, *joined, *mesh, f"--process_id={i}") for i in range(2)]
    said = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    names = storage.files(storage.place(workdir))
    for index in range(2):
        assert f"checkpoints/6/params/ocdbt.process_{index}/manifest.ocdbt" in names
    assert stored.load_arrays(workdir)["step"] == 6
    assert loop.train(fake.config(**SETTINGS | dict(steps=7)), workdir) == 0  # and one goes on


class Faulty(http.server.BaseHTTPRequestHandler):
    """Hands requests on to a store, but answers some with 503, and after ``broken`` all."""

    protocol_version = "HTTP/1.1"
    store, share, broken, failed = "", 0.04, False, 0
    draw = random.Random(0)

    def handle_one(self):
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        if Faulty.broken or Faulty.draw.random() < Faulty.share:
            Faulty.failed += 1
            self.send_response(503)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        to = http.client.HTTPConnection(urlsplit(Faulty.store).netloc, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        to.request(self.command, self.path, body, headers)
        answer = to.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date"):
                self.send_header(name, value)
        length = answer.getheader("content-length") if self.command == "HEAD" else len(content)
        self.send_header("content-length", str(length or 0))
        self.end_headers()
        self.wfile.write(content)
        to.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = handle_one

    def log_message(self, format, *args):
        pass


@pytest.fixture
def faulty(buckets):
    """The address of an S3 that fails now and then."""
    Faulty.store, Faulty.broken, Faulty.failed = os.environ["AWS_ENDPOINT_URL"], False, 0
    server = socketserver.ThreadingTCPServer(("localhost", 0), Faulty)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_store_that_fails_now_and_then_is_asked_again(faulty, peace, tmp_path):
    config = write_config(tmp_path, **SETTINGS)
    workdir = f"s3://bucket/{tmp_path.name}"
    command = ["-m", "tests.train.worker", "none", "0", "train", f"--config={config}"]
    ended = subprocess.run(
        [sys.executable, *command, f"--workdir={workdir}"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env=os.environ | {"AWS_ENDPOINT_URL": faulty},
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert Faulty.failed > 4
    assert layout.problems(storage.place(workdir) / "checkpoints" / "6") == []
    assert [row[:2] for row in losses(workdir)] == [row[:2] for row in peace[1]]


def test_a_bucket_nobody_has_is_one_line(buckets):
    said = "s3://nobody-has-it/run: there is no bucket s3://nobody-has-it"
    with pytest.raises(InputError, match=f"^{said}$"):
        loop.train(fake.config(**SETTINGS), "s3://nobody-has-it/run")
