"""Imports that are interrupted, divided, repeated, or given rubbish."""

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from rb_jax import files
from rb_jax.cli import main
from rb_jax.data.formats import shards
from rb_jax.data.importers import importing
from rb_jax.data.importers.importing import import_dataset
from rb_jax.data.importers.layout import Piece, pack
from rb_jax.errors import InputError
from tests.data import edits
from tests.data.edits import content, every, put


def run(root, out="out", **changes: Any):
    options: dict[str, Any] = dict(shard_examples=3, progress=False) | changes
    return import_dataset("folder", root / "in", root / out, **options)


def test_pieces_are_packed_in_order():
    pieces = [Piece("a", n, count) for n, count in enumerate((2, 2, 5, 1, 9, 1, 1))]
    assert [[p.count for p in unit] for unit in pack(pieces, 4)] == [[2, 2], [5], [1], [9], [1, 1]]
    assert pack([], 3) == []


def test_a_folder_of_an_import(tmp_path):
    edits.folder(tmp_path / "in", 8)
    made = run(tmp_path)
    assert made is not None and [s.examples for s in made.shards] == [3, 3, 2]
    assert made.categories == {"": 3, "physical": 5} and made.targets == 8
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "dataset_info.json",
        "features.json",
        *(f"train-0000{n}-of-00003.array_record" for n in range(3)),
        "train.manifest.json",
        "train.rejects.jsonl",
    ]
    for shard in made.shards:
        assert files.file_hash(tmp_path / "out" / shard.file) == shard.sha256
    before = content(tmp_path / "out")
    assert run(tmp_path) == made and content(tmp_path / "out") == before


def import_command(folder) -> list[str]:
    """The import of ``folder``/in to ``folder``/out, as a process of its own."""
    verb = [sys.executable, "-m", "rb_jax", "data", "import", "--from=folder"]
    return [*verb, f"--source={folder}/in", f"--out={folder}/out", "--shard_examples=2"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", [*range(0, 18, 4), *range(18, 32)])
def test_stopped_anywhere_and_started_again(tmp_path, monkeypatch, step):
    """At any change of the disk: the next run ends with the files of an uninterrupted one."""
    edits.folder(tmp_path / "in", 8)
    run(tmp_path, "whole")
    left = step

    def falling(call):
        def wrapped(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return call(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", falling(os.replace))
        patch.setattr(os, "fsync", falling(os.fsync))
        try:
            run(tmp_path)
            assert left >= 0
        except Killed:
            assert left == -1
    run(tmp_path)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("wait", [0.05, 0.6])
def test_killed_by_the_system(tmp_path, wait):
    edits.folder(tmp_path / "in", 60)
    run(tmp_path, "whole", shard_examples=2)
    command = import_command(tmp_path)
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while child.poll() is None and not list(tmp_path.glob("out/.import-train/0*.json")):
        time.sleep(0.01)
    time.sleep(wait)
    child.send_signal(signal.SIGKILL)
    child.wait()
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/.import-train/*.array_record")}
    assert main(command[3:]) == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    kept = {p.stat().st_mtime_ns for p in tmp_path.glob("out/*.array_record")}
    reported = len(finished) - 1  # the last may have had no report yet
    assert len(kept & set(finished.values())) >= reported


def test_processes_share_the_work(tmp_path):
    edits.folder(tmp_path / "in", 11)
    run(tmp_path, "whole", shard_examples=2)
    order = [2, 0, 1]
    made = [run(tmp_path, shard_examples=2, process_index=i, process_count=3) for i in order]
    assert made[0] is None and made[1] is None and made[2] is not None
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_processes_at_the_same_time(tmp_path):
    edits.folder(tmp_path / "in", 24)
    run(tmp_path, "whole", shard_examples=2)
    command = import_command(tmp_path)
    # Two of them do the same half: what they make is the same, and neither disturbs the other.
    places = ["--process_index=0", "--process_index=1", "--process_index=0"]
    children = [subprocess.Popen([*command, place, "--process_count=2"]) for place in places]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize("place", ["before its units", "waiting for the lock"])
def test_another_process_finishes_the_same_import_first(tmp_path, monkeypatch, place):
    """What it has taken away is neither missed nor left behind."""
    edits.folder(tmp_path / "in", 7)
    whole = run(tmp_path, "whole", shard_examples=2)
    owner: Any = importing if place == "before its units" else files.fcntl
    name = "_make_units" if place == "before its units" else "flock"
    original = getattr(owner, name)

    def meanwhile(*args):
        monkeypatch.setattr(owner, name, original)
        run(tmp_path, shard_examples=2)
        return original(*args)

    monkeypatch.setattr(owner, name, meanwhile)
    made = run(tmp_path, shard_examples=2)
    assert made is not None and whole is not None and made.shards == whole.shards
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_other_imports_are_refused(tmp_path):
    edits.folder(tmp_path / "in", 4)
    run(tmp_path)
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match="with other options"):
        run(tmp_path, shard_examples=2)
    put(tmp_path / "in/dev.jsonl", (tmp_path / "in/train.jsonl").read_bytes())
    put(tmp_path / "in/train.jsonl", (tmp_path / "in/train.jsonl").read_text() * 2)
    with pytest.raises(InputError, match="of another source"):
        run(tmp_path)
    with pytest.raises(InputError, match="holds an import of folder; choose another"):
        import_dataset("reason50k", tmp_path / "in", tmp_path / "out", progress=False)
    assert content(tmp_path / "out") == before
    made = run(tmp_path, split="dev")
    assert made is not None and len(every(tmp_path / "out", "dev")) == 4
    info = json.loads((tmp_path / "out/dataset_info.json").read_text())
    assert [s["name"] for s in info["splits"]] == ["dev", "train"]


def test_a_changed_source_does_not_go_on(tmp_path, monkeypatch):
    edits.folder(tmp_path / "in", 4)
    monkeypatch.setattr(importing, "_publish", lambda work: None)
    assert run(tmp_path) is None
    put(tmp_path / "in/train.jsonl", (tmp_path / "in/train.jsonl").read_text() + "{}\n")
    with pytest.raises(InputError, match="was begun here; delete"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (dict(shard_examples=0), "shard_examples must be at least 1"),
        (dict(max_rejects=-1), "max_rejects must not be negative"),
        (dict(split="../x"), "not a name for a split"),
        (dict(process_index=2, process_count=2), "process_index=2 is not below process_count=2"),
        (dict(split="none"), "no manifest for split 'none'"),
    ],
)
def test_bad_options(tmp_path, options, why):
    edits.folder(tmp_path / "in", 1)
    with pytest.raises(InputError, match=why):
        run(tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_bad_folders(tmp_path):
    edits.folder(tmp_path / "in", 1)
    with pytest.raises(InputError, match="no such folder"):
        import_dataset("folder", tmp_path / "none", tmp_path / "out")
    put(tmp_path / "file", "")
    with pytest.raises(InputError, match="is a file"):
        run(tmp_path, "file")
    with pytest.raises(InputError, match="is not empty and holds no import"):
        run(tmp_path, "in")
    put(tmp_path / "in/train.jsonl", "\n\n")
    with pytest.raises(InputError, match="has no rows"):
        run(tmp_path)


def spoil(root, bad):
    """The pictures of these lines are cut off."""
    for number in bad:
        path = root / f"in/b/{number}.jpg"
        path.write_bytes(path.read_bytes()[:200])


def test_rejects_are_named_and_left_out(tmp_path):
    edits.folder(tmp_path / "in", 9)
    spoil(tmp_path, [0, 4, 5, 3])
    made = run(tmp_path)
    assert made is not None and made.rejects == 4
    # A unit without any record makes no shard.
    assert [s.examples for s in made.shards] == [2, 3] and made.shards[1].unit == "00002"
    assert [r.instruction for r in every(tmp_path / "out")] == [
        f"fell {n}?" for n in (1, 2, 6, 7, 8)
    ]
    rejects = [
        json.loads(r) for r in (tmp_path / "out/train.rejects.jsonl").read_text().splitlines()
    ]
    assert [r["row"] for r in rejects] == [1, 4, 5, 6]
    assert all(r["file"] == "train.jsonl" and "target: damaged" in r["reason"] for r in rejects)


def test_a_budget_of_rejects(tmp_path, capsys):
    edits.folder(tmp_path / "in", 9)
    spoil(tmp_path, [1, 4, 5])
    flags = [
        "data",
        "import",
        "--from=folder",
        f"--source={tmp_path}/in",
        f"--out={tmp_path}/out",
        "--shard-examples=3",
    ]
    assert main([*flags, "--max-rejects=2"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "more than --max_rejects=2 of 9 items" in said
    assert f"{tmp_path}/in/train.jsonl:6: target: damaged" in said
    named = (tmp_path / "out/train.rejects.jsonl").read_text().splitlines()
    assert [json.loads(r)["row"] for r in named] == [2, 5, 6]
    assert not list(tmp_path.glob("out/*.array_record"))
    assert main([*flags, "--max-rejects=3"]) == 0
    assert "6 examples of train in 3 shards, 3 items rejected" in capsys.readouterr().out


def test_the_budget_counts_all_processes(tmp_path):
    edits.folder(tmp_path / "in", 6)
    spoil(tmp_path, [0, 3])
    assert run(tmp_path, process_index=0, process_count=2, max_rejects=1) is None
    with pytest.raises(InputError, match="more than --max_rejects=1 of 6"):
        run(tmp_path, process_index=1, process_count=2, max_rejects=1)


def test_nothing_but_rejects(tmp_path):
    edits.folder(tmp_path / "in", 2)
    spoil(tmp_path, [0, 1])
    with pytest.raises(InputError, match="none of the 2 items is an edit to keep"):
        run(tmp_path)
    assert (tmp_path / "out/train.rejects.jsonl").read_text().count("\n") == 2


def test_a_bomb_and_a_giant_are_rejected(tmp_path):
    """A PNG of 30 KB that is 10^9 pixels; a line of 3 MB."""
    import struct
    import zlib

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    edits.folder(tmp_path / "in", 3)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 31_000, 32_258, 1, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(31_000 // 8 * 1000), 9))
    put(tmp_path / "in/a/1.png", b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    with open(tmp_path / "in/train.jsonl", "a") as file:
        file.write(json.dumps({"instruction": "x" * 3_000_000, "source": "a/0.png"}) + "\n")
    made = run(tmp_path)
    assert made is not None and made.examples == 2
    rejects = (tmp_path / "out/train.rejects.jsonl").read_text().splitlines()
    assert "31000 x 32258 pixels" in rejects[0] and "longer than" in rejects[1]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    edits.folder(tmp_path / "in", 4)
    monkeypatch.setattr(shards, "count_records", lambda path: 0)  # what was written is not there
    with pytest.raises(InputError, match="cannot be written .*is the disk full"):
        run(tmp_path)
    assert not list(tmp_path.glob("out/**/*.array_record"))
    monkeypatch.undo()
    assert run(tmp_path) is not None


def test_command_line(tmp_path, capsys):
    edits.folder(tmp_path / "in", 3)
    flags = [f"--source={tmp_path}/in", f"--out={tmp_path}/out"]
    assert main(["data", "import", "--from=coco", *flags]) == 2
    assert "no such layout: coco; choose reason50k, " in capsys.readouterr().err
    assert main(["data", "import", *flags]) == 2
    assert "needs --from" in capsys.readouterr().err
    assert main(["data", "import", "--from=folder", *flags, "--process_count=2"]) == 0
    assert (
        main(["data", "import", "--from=folder", *flags, "--process_index=1", "--process_count=2"])
        == 0
    )
    assert "3 examples of train in 1 shards, 0 items rejected" in capsys.readouterr().out
    assert np.array_equal([r.id for r in every(tmp_path / "out")], ["1", "2", "3"])
