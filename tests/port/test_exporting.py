"""Exports: our parameters bit for bit in every layout, of parts and of whole models."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from rb_jax.cli import main
from rb_jax.config import Config
from rb_jax.errors import InputError
from rb_jax.port.component import describe
from rb_jax.port.exporting import Arrays, export_checkpoint, whole_exports
from rb_jax.port.families import FAMILIES
from rb_jax.port.families.reasonbrain import PREFIXES
from rb_jax.port.family import porter
from rb_jax.port.importing import import_checkpoint
from rb_jax.weights.safetensors.reader import TensorFiles
from rb_jax.weights.safetensors.writer import TensorSpec, write_tensors
from tests import tiny
from tests.port import whole
from tests.port.cases import (
    BFLOAT16,
    CASES,
    FLOAT32,
    config_of,
    content,
    random_bits,
    source,
    write,
)
from tests.port.test_importing import FORMATS, MAIN

# Layouts of one family that say the same: each there and back by way of the other.
PAIRS = [
    ("flux diffusers", "diffusers", "bfl"),
    ("flux bfl", "bfl", "diffusers"),
    ("flux diffusers schnell", "diffusers", "bfl"),
    ("flux bfl 2x", "bfl", "diffusers"),
    ("flux diffusers 6x", "diffusers", "bfl"),
    ("flux bfl prefixed", "bfl", "diffusers"),
    ("vae diffusers", "diffusers", "bfl"),
    ("vae bfl", "bfl", "diffusers"),
    ("llava hf first", "hf", "official"),
    ("llava original", "official", "hf"),
    ("llava hf linear", "hf", "official"),
]


def part_of(folder, case, params):
    """A part as an import writes it, without anything carried along."""
    folder.mkdir()
    family = FAMILIES[case.family]
    layout = family.layout(case.layout)
    specs = [TensorSpec(path, x.dtype, x.shape) for path, x in params.items()]
    write_tensors(folder, "model", specs, lambda path: [params[path]], checksums=True)
    text = describe(family, layout, case.names, case.part, case.config)
    (folder / "config.json").write_text(text)
    return folder


def random_params(case, seed=3):
    rng, porter = np.random.default_rng(seed), case.porter
    dtypes = {path: FLOAT32 if "norm" in path else BFLOAT16 for path in porter.shapes}
    return {path: random_bits(rng, dtypes[path], shape) for path, shape in porter.shapes.items()}


@pytest.mark.usefixtures("cached_porters")
@pytest.mark.parametrize("name", MAIN)
def test_our_parameters_come_back(name, tmp_path):
    case = CASES[name]
    part = part_of(tmp_path / "part", case, random_params(case))
    export_checkpoint(part, FORMATS[case.layout], tmp_path / "out")
    import_checkpoint(tmp_path / "out", tmp_path / "back")
    assert content(tmp_path / "back") == content(part)


@pytest.mark.usefixtures("cached_porters")
@pytest.mark.parametrize(("name", "own", "other"), PAIRS, ids=[name for name, _, _ in PAIRS])
def test_by_way_of_another_layout(name, own, other, tmp_path):
    given = source(tmp_path / "source", name, "mixed")
    at = given
    for i, layout in enumerate((other, own)):
        import_checkpoint(at, tmp_path / f"part{i}")
        at = tmp_path / f"out{i}"
        export_checkpoint(tmp_path / f"part{i}", layout, at)
    kept, back = content(given), content(at)
    # Prefixes are the exporter's own, and what only one of the layouts has is not carried over.
    prefix = CASES[name].names.get("prefix", "")
    kept = {n.removeprefix(prefix): x for n, x in kept.items() if n in CASES[name].porter.sources}
    if name == "llava original":
        assert set(back) >= set(kept)
    elif own == "hf":  # the unused norm and the identity are made anew
        identity = {n for n in CASES[name].carried if "linear_2" in n or "post_layernorm" in n}
        assert set(back) - set(kept) == identity
    else:
        assert set(back) == set(kept)
    assert {n: back[n] for n in kept} == kept


@pytest.mark.usefixtures("cached_porters")
def test_a_linear_projector_is_followed_by_the_identity(tmp_path):
    """transformers' LLaVA always has two layers."""
    given = source(tmp_path / "source", "llava hf linear")
    import_checkpoint(given, tmp_path / "part0")
    export_checkpoint(tmp_path / "part0", "official", tmp_path / "original")
    assert not any("linear_2" in name for name in content(tmp_path / "original"))
    import_checkpoint(tmp_path / "original", tmp_path / "part1")
    export_checkpoint(tmp_path / "part1", "hf", tmp_path / "back")
    made = load_file(tmp_path / "back" / "model.safetensors")
    np.testing.assert_array_equal(made["multi_modal_projector.linear_2.weight"], np.eye(16))
    assert not made["multi_modal_projector.linear_2.bias"].any()
    config = config_of(tmp_path / "back")
    assert config["projector_hidden_act"] == "linear" and config["vision_feature_layer"] == -2


@pytest.mark.usefixtures("cached_porters")
def test_what_a_part_cannot_be_exported_as(tmp_path, capsys):
    for name in ("clip text", "llava original linear", "vae diffusers"):
        given = source(tmp_path / name / "source", name)
        if name == "vae diffusers":  # what BFL's file does not tell, but assumes
            values = {"scaling_factor": 0.5, "shift_factor": 0.25}
            (given / "config.json").write_text(json.dumps(config_of(given) | values))
        import_checkpoint(given, tmp_path / name / "part")
    refused = {
        ("clip text", "bfl"): "is a clip part: --format is one of hf for it",
        ("clip text", "torch"): "is a clip part: --format is one of hf for it",
        ("llava original linear", "hf"): "as hf: the vision tower is not in this part",
        ("vae diffusers", "bfl"): "as bfl: config.model.autoencoder.scale_factor must be 0.3611 "
        "in BFL's layout, not 0.5; config.model.autoencoder.shift_factor must be 0.1159",
    }
    for (name, layout), message in refused.items():
        argv = ["export", f"--checkpoint={tmp_path / name}/part", f"--format={layout}"]
        assert main([*argv, f"--out={tmp_path}/out"]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cached_porters")
def test_a_part_whose_tensors_do_not_fit_lists_all(tmp_path):
    case = CASES["clip text"]
    params = random_params(case)
    del params["text/final_layer_norm/bias"]
    params["text/token_embedding"] = params["text/token_embedding"][:-1]
    params["text/layers/0/stray"] = np.zeros(2, np.float32)
    part = part_of(tmp_path / "part", case, params)
    with pytest.raises(InputError) as caught:
        export_checkpoint(part, "hf", tmp_path / "out")
    assert str(caught.value) == (
        "clip: missing text/final_layer_norm/bias; unknown text/layers/0/stray; "
        "text/token_embedding has shape (32, 20), expected (33, 20)"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("cached_porters")
@pytest.mark.parametrize("path", ["text/token_embedding", "text/layers/mlp/fc1/kernel"])
def test_a_damaged_part_is_not_passed_on(path, tmp_path):
    """One bit of a tensor that is read whole, and of one that is read a layer at a time."""
    import_checkpoint(source(tmp_path / "source", "clip text"), tmp_path / "part")
    info = TensorFiles.open(tmp_path / "part")[path]
    with open(info.file, "r+b") as file:
        file.seek(info.offset + info.size - 1)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(InputError, match=f"damaged, the checksum of '{path}' is wrong"):
        export_checkpoint(tmp_path / "part", "hf", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part", "source"]


# Whole models -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return whole.save(tmp_path_factory.mktemp("whole") / "weights")


def test_bfl_files_of_a_whole_model(checkpoint, tmp_path, capsys):
    argv = ["export", f"--checkpoint={checkpoint}", f"--out={tmp_path}/out"]
    assert main([*argv, "--format=bfl"]) == 0
    names = ["ae.safetensors", "flux1.safetensors"]
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path}/out/{name}" for name in names]
    import_checkpoint(tmp_path / "out" / "ae.safetensors", tmp_path / "vae")
    import_checkpoint(tmp_path / "out" / "flux1.safetensors", tmp_path / "flux")
    for part in ("vae", "flux"):
        for path, value in load_file(tmp_path / part / "model.safetensors").items():
            assert value.tobytes() == np.asarray(tiny.params(whole.CONFIG)[path]).tobytes()


def test_adapter(checkpoint, tmp_path):
    export_checkpoint(checkpoint, "peft", tmp_path / "out")
    made = load_file(tmp_path / "out" / "adapter_model.safetensors")
    mllm = whole.CONFIG.model.mllm
    assert len(made) == 8 * mllm.layers
    at = "base_model.model.model.language_model.layers.0.self_attn.k_proj.lora_B.weight"
    ours = tiny.params(whole.CONFIG)["mllm/language_model/layers/self_attn/k_proj/lora_b"]
    assert made[at].tobytes() == np.asarray(ours)[0].T.tobytes()
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (mllm.lora_rank, mllm.lora_alpha)


def test_no_adapter_without_lora(tmp_path):
    config = tiny.config(model__mllm__lora_rank=0)
    from rb_jax.port import adapter

    with pytest.raises(InputError, match="lora_rank is 0: there is no adapter"):
        adapter.write(config.model.mllm, Arrays({}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def changed(**groups) -> Config:
    model = whole.CONFIG.model
    groups = {k: dataclasses.replace(getattr(model, k), **v) for k, v in groups.items()}
    return dataclasses.replace(whole.CONFIG, model=dataclasses.replace(model, **groups))


ABLATIONS = {
    "frce": (changed(frce={"enabled": False}, cme={"enabled": False}), {"frce", "cme", "cme_proj"}),
    "cme": (changed(cme={"enabled": False}), {"cme", "cme_proj"}),
    "none": (whole.CONFIG, set()),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_the_authors_file_of_every_ablation(name):
    """Only the modules that a model has; the table and the modules then agree."""
    config, absent = ABLATIONS[name]
    (export,) = whole_exports(config, Arrays({}), "official")
    assert set(export.names) == set(PREFIXES) - absent
    table = porter(export.family, export.layout, export.part, export.names)
    starts = {n.split(".")[0] for n in table.sources}
    assert starts == {"frce", "qformer", "cme", "cme_proj"} - absent


def test_what_a_layout_cannot_say_of_a_whole_model_is_listed(tmp_path, capsys):
    """The small model of the other tests has an MLP and an autoencoder that are not FLUX's."""
    folder = write(tmp_path / "model", {"a": np.zeros(2)}, dataclasses.asdict(tiny.CONFIG))
    refused = {
        "diffusers": ["mmdit.mlp_ratio must be 4 in diffusers, not 2"],
        "bfl": [
            "autoencoder.norm_groups must be 32",
            "autoencoder.scale_factor must be 0.3611",
            "autoencoder.shift_factor must be 0.1159",
        ],
    }
    for layout, messages in refused.items():
        argv = ["export", f"--checkpoint={folder}", f"--format={layout}"]
        assert main([*argv, f"--out={tmp_path}/out"]) == 2
        err = capsys.readouterr().err
        assert all(f"config.model.{message}" in err for message in messages)
    assert main(["export", "--checkpoint=none", "--format=hf", f"--out={tmp_path}/out"]) == 2
    assert "none: no model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
