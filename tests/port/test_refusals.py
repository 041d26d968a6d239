"""Checkpoints from outside that are not what they should be: one line, and nothing is written."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from rb_jax.cli import main
from rb_jax.port.importing import import_checkpoint
from tests.port.cases import CASES, content, left, source, tensors, write


def broken_file(change):
    """A good CLIP whose file's bytes are changed."""

    def make(folder):
        path = source(folder, "clip text") / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return make


def other_config(name, **changes):
    def make(folder):
        case = CASES[name]
        write(folder, tensors(case), {**case.config, **changes})

    return make


def other_tensors(name, **changes):
    """Tensors replaced by arrays of other shapes, or removed."""

    def make(folder):
        made = tensors(CASES[name])
        for key, shape in changes.items():
            key = key.replace("__", ".")
            assert key in made
            made[key] = np.zeros(shape or (), np.float32)
            if shape is None:
                del made[key]
        write(folder, made, CASES[name].config)

    return make


def text(name, content):
    def make(folder):
        (folder / name).write_text(content)

    return make


def both(*makers):
    return lambda folder: [make(folder) for make in makers]


def index_out_of_the_folder(folder):
    weight_map = {"a": "../model.safetensors"}
    content = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


LLAVA_HEADS = {**CASES["llava hf first"].config["text_config"], "num_attention_heads": 0}
HOSTILE = {
    "cut off": (broken_file(lambda data: data[:-40]), "not within the file"),
    "cut off in the header": (broken_file(lambda data: data[:90]), "cut off"),
    "an endless header": (broken_file(lambda data: b"\xff" * 8 + data[8:]), "cut off"),
    "no JSON": (broken_file(lambda data: data[:8] + b"{{" + data[10:]), "not JSON"),
    "more bytes": (broken_file(lambda data: data + b"xx"), "after the last tensor"),
    "nothing": (text("readme", ""), "no .safetensors file in it"),
    "a way out": (index_out_of_the_folder, "is not the name of a .safetensors file"),
    "unknown tensors": (
        lambda f: save_file({"a.b": np.zeros(2)}, f / "model.safetensors"),
        "not the names of any family (flux, flux_vae, llava",
    ),
    "config of no JSON": (
        both(other_config("clip text"), text("config.json", "{")),
        "not readable as JSON",
    ),
    "config of a list": (
        both(other_config("clip text"), text("config.json", "[]")),
        "expected a JSON object",
    ),
    "deep config": (
        both(other_config("clip text"), text("config.json", "[" * 10**5)),
        "not readable as JSON",
    ),
    "heads in words": (
        other_config("flux diffusers", num_attention_heads="two"),
        "sizes of a flux",
    ),
    "no heads": (other_config("llava hf first", text_config=LLAVA_HEADS), "sizes of a llava"),
    "a list of sizes": (other_config("clip", vision_config=[1]), "sizes of a clip"),
    "layers below zero": (
        other_config("clip text", num_hidden_layers=-1),
        "config.model.text.layers: must be positive, got -1",
    ),
    "layers without end": (
        other_config("flux diffusers", num_layers=10**6),
        "mmdit.double_blocks=1000000 is more than its tensors",
    ),
    "a width without end": (
        other_config("flux diffusers", attention_head_dim=10**7),
        "config.model.mmdit.width cannot be",
    ),
    "an odd activation": (other_config("clip text", hidden_act="relu"), "'relu' is not one of"),
    "no number": (
        other_config("clip text", layer_norm_eps=float("nan")),
        "norm_eps: must be a finite number",
    ),
    "groups that divide nothing": (
        other_config("vae diffusers", norm_num_groups=7),
        "sizes of a flux_vae",
    ),
    "another kind of VAE": (
        other_config("vae diffusers", use_quant_conv=True),
        "use_quant_conv=True is not supported",
    ),
    "a vector for a matrix": (other_tensors("flux bfl", img_in__weight=(3,)), "sizes of a flux"),
    "heads of no width": (
        other_tensors("flux bfl", double_blocks__0__img_attn__norm__query_norm__scale=(0,)),
        "sizes of a flux",
    ),
    "widths that contradict each other": (
        other_tensors("flux bfl", txt_in__bias=(7,), single_blocks__2__linear1__bias=None),
        "missing single_blocks.2.linear1.bias; txt_in.bias has shape (7,), expected (24,)",
    ),
    "a projector that is not linear": (
        other_tensors("llava hf linear", multi_modal_projector__linear_2__weight=(16, 16)),
        "'a general matrix' is not supported",
    ),
    "a pickle": (text("pytorch_model.bin", "x"), "a pickle"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_read_is_one_line_and_leaves_nothing(name, tmp_path, capsys):
    make, expected = HOSTILE[name]
    folder = tmp_path / "source"
    folder.mkdir()
    make(folder)
    before = left(tmp_path)
    assert main(["import", f"--source={folder}", f"--out={tmp_path}/part"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("rb-jax: ") and err.count("\n") == 1
    assert expected in err
    assert left(tmp_path) == before


@pytest.mark.parametrize("family", ["flux", "flux_vae", "llava", "reasonbrain"])
def test_another_family_than_the_files_have(family, tmp_path, capsys):
    given = source(tmp_path / "source", "clip")
    argv = ["import", f"--source={given}", f"--out={tmp_path}/part", f"--family={family}"]
    assert main(argv) == 2
    assert f"not the names of {family}" in capsys.readouterr().err
    assert main([*argv[:-1], "--family=clip"]) == 0


def test_a_pipeline_says_which_folder_to_take(tmp_path, capsys):
    folder = tmp_path / "FLUX.1-dev"
    source(folder / "transformer", "flux diffusers")
    source(folder / "vae", "vae diffusers")
    (folder / "scheduler").mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (folder / "ae.safetensors").write_bytes(b"")
    assert main(["import", f"--source={folder}", f"--out={tmp_path}/part"]) == 2
    assert capsys.readouterr().err == (
        f"rb-jax: {folder}: a whole diffusers pipeline; give one of its parts as --source: "
        f"{folder}/transformer (flux), {folder}/vae (flux_vae)\n"
    )


# Pickles ----------------------------------------------------------------------------------------


def test_pickles_take_a_flag(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    case = CASES["clip text"]
    made = {n: torch.from_numpy(x) for n, x in tensors(case).items()}
    folder = tmp_path / "a pickle"
    folder.mkdir()
    torch.save({"state_dict": made}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(dict(case.config)))
    argv = ["import", f"--source={folder}", f"--out={tmp_path}/part"]
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert f"rb-jax import --source='{folder}/pytorch_model.bin' --allow_pickle" in message
    assert main([*argv, "--allow_pickle"]) == 0
    import_checkpoint(source(tmp_path / "source", "clip text"), tmp_path / "same")
    assert content(tmp_path / "part") == content(tmp_path / "same")
