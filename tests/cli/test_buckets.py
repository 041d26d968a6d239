"""Verbs whose checkpoint is in a bucket."""

import json
from pathlib import Path

from rb_jax import storage
from rb_jax.cli import main
from rb_jax.weights.folder import resolve


def test_verbs_take_a_checkpoint_in_a_bucket(buckets, tmp_path, capsys):
    address = f"{buckets['s3']}/{tmp_path.name}/weights"
    storage.upload(Path(resolve("shipped")), storage.place(address), last="config.json")
    for verb, flags in {
        "export": ["--format=torch", f"--out={tmp_path / 'torch'}"],
        "evaluate": ["--count=1", "--steps=1", f"--out={tmp_path / 'e'}"],
    }.items():
        assert main([verb, f"--checkpoint={address}", *flags]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "e" / "scores.json").read_text())
    assert (tmp_path / "torch").is_dir()
