"""docs/recipe.md, command by command, with tiny random parts in the place of published ones."""

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import rb_jax
from rb_jax.checkpoint.stored import load_weights
from rb_jax.cli import main
from rb_jax.data.formats.reason50k import write_dataset
from rb_jax.data.inputs.images import open_image
from rb_jax.port.exporting import export_checkpoint
from tests.data.fakes import FakeWorld
from tests.port import cases, whole

PAGE = Path(rb_jax.__file__).parents[1] / "docs" / "recipe.md"
# What the parts do not decide, or what is checked before they do, as small as they are.
SMALL = {
    "assemble": {
        "data.image_size": 32,
        "model.sam.image_size": 32,
        "model.sam.patch_size": 8,
        "model.sam.out_channels": 8,
        "model.regions.width": 8,
        "model.frce.width": 40,
        "model.frce.heads": 4,
        "model.frce.patch_layers": 1,
        "model.frce.region_layers": 1,
        "model.frce.id_controller_layers": 1,
        "model.frce.max_objects": 3,
        "model.regions.max_regions": 5,
        "model.mllm.max_length": 40,
        "model.mllm.image_tokens": 4,
        "model.qformer.width": 36,
        "model.qformer.heads": 3,
        "model.qformer.layers": 1,
        "model.qformer.queries": 5,
        "model.cme.width": 44,
        "model.cme.heads": 4,
        "model.cme.blocks": 1,
        "model.cme.queries": 5,
        "model.dtype": "float32",
        "train.steps": 2,
        "train.batch_size": 4,
        "train.checkpoint_every": 2,
        "train.eval_every": 2,
        "train.eval_examples": 0,
        "optimizer.warmup_steps": 1,
        "flow.steps": 2,
    },
}
has_libtpu = importlib.util.find_spec("libtpu") is not None


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """A folder with what the page says was fetched, and is the current one."""
    whole.save(tmp_path / "whole")
    for layout in ("diffusers", "hf"):
        export_checkpoint(tmp_path / "whole", layout, tmp_path / layout)
    places = {
        "FLUX.1-dev/transformer": "diffusers/transformer",
        "FLUX.1-dev/vae": "diffusers/vae",
        "llava-1.5-7b-hf": "hf/mllm",
        "clip-vit-large-patch14": "hf/text_encoder",
    }
    for name, made in places.items():
        shutil.copytree(tmp_path / made, tmp_path / "here" / name)
    sam = cases.source(tmp_path / "here" / "sam-vit-huge", "sam")
    for file in sam.glob("*.safetensors"):  # of any bits: NaN, which no training survives
        rng = np.random.default_rng(0)
        shapes = {name: x.shape for name, x in load_file(file).items()}
        values = {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in shapes.items()}
        save_file(values, file, {"format": "pt"})
    monkeypatch.chdir(tmp_path / "here")
    for split, count in (("train", 5), ("val", 3)):
        write_dataset(FakeWorld(), count, "Reason50K", split, progress=False)
    Image.fromarray(FakeWorld()[7].source).save("photo.png")
    return tmp_path / "here"


@pytest.mark.parametrize("plan", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_the_page_runs(downloads, capsys, plan):
    """The planner compiles for as long as all the rest takes, hence the exhaustive one."""
    if plan and not has_libtpu:
        pytest.skip("libtpu is not installed")
    done, advice = [], []
    for command in commands():
        assert command[0] == "rb-jax"
        if command[1] == "plan" and not plan:
            continue
        small = [f"--config.{key}={value}" for key, value in SMALL.get(command[1], {}).items()]
        assert main([*command[1:], *small]) == 0, (command, capsys.readouterr().err)
        done.append(" ".join(command[1:3]) if command[1] == "data" else command[1])
        said = capsys.readouterr().out
        if done[-1] == "data cache":
            advice = shlex.split(said.splitlines()[-1].replace("RUN", "run"))
        elif done[-1] == "train":
            assert sorted(command) == sorted(advice)
    assert set(done) >= {"import", "assemble", "data import", "data cache", "train", "evaluate"}
    made, given = load_weights("run/weights")[1], load_weights("model")[1]
    assert set(made) == set(given)
    changed = {p.split("/")[0] for p in made if made[p].tobytes() != given[p].tobytes()}
    assert changed == {"mmdit", "frce", "qformer", "cme", "projections", "mllm"}
    assert (downloads / "exported").is_dir() and open_image("edited.png").shape == (32, 32, 3)


@pytest.mark.exhaustive
def test_what_the_cache_advises_works_for_the_shipped_model(downloads, capsys):
    """Its evaluations show pictures, which features alone have none of."""
    for split in ("train", "val"):
        words = ["data", "cache", "--data=Reason50K", "--checkpoint=shipped", "--batch_size=4"]
        assert main([*words, f"--split={split}", "--out=features"]) == 0
    advice = capsys.readouterr().out.splitlines()[-1].strip()
    assert advice.startswith("rb-jax train --config=from_checkpoint:shipped --workdir=RUN ")
    small = ("train.steps=1", "train.batch_size=2", "optimizer.warmup_steps=0", "flow.steps=1")
    words = shlex.split(advice)[1:]
    assert main([*words, *(f"--config.{each}" for each in small)]) == 0
    assert (downloads / "RUN" / "samples" / "step_1.png").exists()
