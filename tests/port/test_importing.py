"""Imports: bit for bit, found by themselves, all or nothing, and no trust in what is read."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from rb_jax.cli import main
from rb_jax.errors import InputError
from rb_jax.port.component import open_component
from rb_jax.port.exporting import export_checkpoint
from rb_jax.port.importing import import_checkpoint
from rb_jax.weights.safetensors.reader import TensorFiles, verify
from tests.port.cases import CASES, DTYPES, config_of, content, left, source, tensors, write

pytestmark = pytest.mark.usefixtures("cached_porters")

FORMATS = {
    "diffusers": "diffusers",
    "bfl": "bfl",
    "hf": "hf",
    "official": "official",
    "original": "official",
}
# Each layout in every dtype; the other spellings and sizes in the mixed one.
MAIN = [
    name
    for name in (
        "flux diffusers",
        "flux bfl",
        "vae diffusers",
        "vae bfl",
        "clip",
        "llava hf first",
        "llava original",
        "reasonbrain",
        "sam",
    )
    if name in CASES
]
TRIPS = [(name, kind) for name in MAIN for kind in DTYPES]
TRIPS += [(name, "mixed") for name in CASES if name not in MAIN]


@pytest.mark.parametrize(("name", "kind"), TRIPS, ids=map("-".join, TRIPS))
def test_round_trip_is_bit_exact(name, kind, tmp_path):
    """Found without --family; back come the same names, dtypes, bytes and config.json."""
    case, given = CASES[name], source(tmp_path / "source", name, kind)
    family, layout, part = import_checkpoint(given, tmp_path / "part")
    assert (family.name, layout.name) == (case.family, case.layout)
    assert part.values == case.values
    component = open_component(tmp_path / "part")
    assert component.part.values == case.values and dict(component.names) == dict(case.names)
    assert {p.removeprefix("extras/") for p in component.files if p.startswith("extras/")} == set(
        case.carried
    )
    export_checkpoint(tmp_path / "part", FORMATS[case.layout], tmp_path / "back")
    assert content(tmp_path / "back") == content(given)
    if case.config:
        assert config_of(tmp_path / "back") == config_of(given)
    assert left(tmp_path / "part") == ["config.json", "model.safetensors"]


def test_our_layout(tmp_path):
    """The imported file as any safetensors reader sees it: our paths, layers stacked."""
    given = source(tmp_path / "source", "clip text")
    import_checkpoint(given, tmp_path / "part")
    theirs, ours = (
        load_file(given / "model.safetensors"),
        load_file(tmp_path / "part" / "model.safetensors"),
    )
    layers = [theirs[f"text_model.encoder.layers.{i}.mlp.fc1.weight"].T for i in range(3)]
    assert ours["text/layers/mlp/fc1/kernel"].tobytes() == np.stack(layers).tobytes()
    embedding = theirs["text_model.embeddings.token_embedding.weight"]
    assert ours["text/token_embedding"].tobytes() == embedding.tobytes()
    files = TensorFiles.open(tmp_path / "part")
    assert files.checksums.keys() == ours.keys()
    verify(files)


def test_source_may_be_a_file_an_index_or_a_folder(tmp_path):
    made, case = tensors(CASES["clip text"]), CASES["clip text"]
    names = sorted(made)
    shards = {"model-00001-of-00002": names[::2], "model-00002-of-00002": names[1::2]}
    folder = tmp_path / "sharded"
    for stem, some in shards.items():
        write(folder, {n: made[n] for n in some}, case.config, stem)
    weight_map = {name: f"{stem}.safetensors" for stem, some in shards.items() for name in some}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    one = source(tmp_path / "one", "clip text")
    parts = []
    for i, path in enumerate((one, one / "model.safetensors", folder, index)):
        import_checkpoint(path, tmp_path / str(i))
        parts.append(content(tmp_path / str(i)))
    assert parts[0] == parts[1] == parts[2] == parts[3]


def test_tokenizer_travels_along(tmp_path):
    given = source(tmp_path / "source", "clip text")
    (given / "tokenizer.json").write_text('{"any": "tokenizer"}')
    import_checkpoint(given, tmp_path / "part")
    export_checkpoint(tmp_path / "part", "hf", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.json").read_text() == '{"any": "tokenizer"}'


def test_command_line(tmp_path, capsys):
    given = source(tmp_path / "source", "flux diffusers", "bfloat16")
    assert main(["import", f"--source={given}", f"--out={tmp_path}/part", "--family=flux"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/part: flux in the diffusers layout"
    assert lines[1].startswith("  mmdit: ") and "width=24" in lines[1]
    assert lines[2:] == ["  autoencoder: latent_channels=3", "  text: width=10"]


# Sizes ------------------------------------------------------------------------------------------


def test_values_that_files_do_not_tell_are_set(tmp_path):
    given = source(tmp_path / "source", "reasonbrain qformer")
    _, _, part = import_checkpoint(given, tmp_path / "a", settings=["qformer.heads=4"])
    assert part.values["qformer"]["heads"] == 4
    new = ["mllm.image_tokens=3", "mllm.vocab_size=27"]
    given = source(tmp_path / "llava", "llava hf first")
    import_checkpoint(given, tmp_path / "b", settings=new)
    assert open_component(tmp_path / "b").files["mllm/image_tokens/embedding"].shape == (3, 16)
    export_checkpoint(tmp_path / "b", "hf", tmp_path / "back")
    assert content(tmp_path / "back") == content(given)


SETTINGS = {
    "frce": "expected GROUP.KEY=VALUE",
    "frce.heads": "expected GROUP.KEY=VALUE",
    "frce.head=8": "config.model.frce.head: no such key; did you mean model.frce.heads?",
    "nose.heads=8": "config.model.nose: no such group",
    "frce.heads=eight": "config.model.frce.heads: expected int, got 'eight'",
    "frce.heads=0": "config.model.frce.heads: must be positive, got 0",
    "dtype.x=1": "config.model.dtype: no such group",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_that_make_no_sense(setting, tmp_path):
    given = source(tmp_path / "source", "reasonbrain")
    with pytest.raises(InputError) as caught:
        import_checkpoint(given, tmp_path / "part", settings=[setting])
    assert SETTINGS[setting] in str(caught.value)


# Dtypes -----------------------------------------------------------------------------------------


def plain(name, folder, dtype=np.float32, seed=0):
    """A source of small whole numbers, which every dtype holds."""
    rng = np.random.default_rng(seed)
    made = {n: rng.integers(-9, 9, x.shape).astype(dtype) for n, x in tensors(CASES[name]).items()}
    return made, write(folder, made, CASES[name].config)


def test_lost_bits_are_an_error_that_lists_all(tmp_path, capsys):
    made, given = plain("flux diffusers", tmp_path / "source")
    made["x_embedder.bias"][3] = 1 + 2**-9
    made["transformer_blocks.1.attn.to_k.weight"][0, 0] = 1e-45
    made["proj_out.weight"][1, 1] = 3.4e38  # rounds to infinity
    write(given, made)
    argv = ["import", f"--source={given}", f"--out={tmp_path}/part", "--dtype=bfloat16"]
    assert main(argv) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    lost = (
        "mmdit/double_blocks/img/attn/qkv/kernel",
        "mmdit/final_layer/linear/kernel",
        "mmdit/img_in/bias",
    )
    assert message.endswith("; ".join(f"{path} would lose bits as bfloat16" for path in lost))
    assert "--allow_rounding" in message
    assert left(tmp_path) == ["source", "source/config.json", "source/model.safetensors"]
    assert main([*argv, "--allow_rounding"]) == 0
    kernel = TensorFiles.open(tmp_path / "part").read("mmdit/final_layer/linear/kernel")
    assert str(kernel.dtype) == "bfloat16" and np.isinf(kernel.astype(np.float32)[1, 1])


def test_values_that_a_dtype_holds_pass(tmp_path):
    made, given = plain("clip", tmp_path / "source")
    made["logit_scale"] = np.array(1.2345, np.float32)  # carried: kept as it is
    made = made | {"vision_model.embeddings.position_ids": np.arange(5)[None]}
    for value, at in ((np.nan, 0), (np.inf, 1), (-np.inf, 2), (-0.0, 3), (2.0**-20, 4)):
        made["text_model.final_layer_norm.bias"][at] = value
    write(given, made)
    import_checkpoint(given, tmp_path / "part", dtype="bfloat16")
    part = TensorFiles.open(tmp_path / "part")
    kept = {p: str(part[p].dtype) for p in part if p.startswith("extras/")}
    assert kept.pop("extras/vision_model.embeddings.position_ids") == "int64"
    assert set(kept.values()) == {"float32"}
    assert {str(part[p].dtype) for p in part if not p.startswith("extras/")} == {"bfloat16"}
    narrow = part.read("text/final_layer_norm/bias").astype(np.float32)
    wide = made["text_model.final_layer_norm.bias"]
    assert np.array_equal(narrow, wide, equal_nan=True) and np.signbit(narrow[3])


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_a_wider_dtype_is_exact(kind, tmp_path):
    given = source(tmp_path / "source", "clip text", kind)
    import_checkpoint(given, tmp_path / "part", dtype="float32")
    import_checkpoint(given, tmp_path / "same")
    wide, narrow = (TensorFiles.open(tmp_path / name) for name in ("part", "same"))
    for path in (p for p in wide if not p.startswith("extras/")):
        x, y = wide.read(path), narrow.read(path)
        assert x.dtype == np.float32
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(x, y.astype(np.float32))


# Nothing half-written ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, InputError])
@pytest.mark.parametrize("verb", ["import", "export"])
def test_an_end_in_the_middle_leaves_nothing(verb, error, tmp_path, monkeypatch):
    given = source(tmp_path / "source", "clip")
    import_checkpoint(given, tmp_path / "part")
    before, calls = left(tmp_path), [0]

    def breaking(read):
        def wrapped(*args, **kwargs):
            calls[0] += 1
            if calls[0] == 9:
                raise error("stop")
            return read(*args, **kwargs)

        return wrapped

    for method in ("read", "read_rows"):
        monkeypatch.setattr(TensorFiles, method, breaking(getattr(TensorFiles, method)))
    with pytest.raises(error):
        if verb == "import":
            import_checkpoint(given, tmp_path / "new" / "part")
        else:
            export_checkpoint(tmp_path / "part", "hf", tmp_path / "new" / "part")
    assert calls[0] >= 9
    shutil.rmtree(tmp_path / "new", ignore_errors=True) if not left(tmp_path / "new") else None
    assert left(tmp_path) == before


@pytest.mark.parametrize("verb", ["import", "export"])
def test_a_folder_with_something_in_it_is_not_overwritten(verb, tmp_path, capsys):
    given = source(tmp_path / "source", "clip text")
    import_checkpoint(given, tmp_path / "part")
    argv = {
        "import": ["import", f"--source={given}"],
        "export": ["export", f"--checkpoint={tmp_path}/part", "--format=hf"],
    }[verb]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    (tmp_path / "file").write_text("x")
    before = left(tmp_path)
    for out, message in (("mine", "exists and is not empty"), ("file", "is not a folder")):
        assert main([*argv, f"--out={tmp_path}/{out}"]) == 2
        assert message in capsys.readouterr().err
    assert left(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert main([*argv, f"--out={tmp_path}/empty"]) == 0
