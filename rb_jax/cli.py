"""The command line: ``rb-jax train | edit | evaluate | data | import | export | ...``.

Flags are absl's; any value of a configuration is set with ``--config.a.b=value``.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence

from absl import flags, logging
from ml_collections import config_flags

from rb_jax.config import check_key, from_config_dict
from rb_jax.errors import InputError, refuse_url
from rb_jax.train.exits import RunError, Signals, installed

USAGE = """rb-jax: edit a picture by reasoning about a hypothesis (ReasonBrain in JAX)

  rb-jax train --config=FILE.py --workdir=DIR [--config.a.b=VALUE ...]
              [--coordinator_address=HOST:PORT --num_processes=N --process_id=I]
      Trains, or continues what is in DIR; checkpoints, metrics, TensorBoard and weights go there.
  rb-jax edit --image=PATH --instruction=TEXT --out=PATH
              [--checkpoint=DIR --steps=N --guidance=G --true_cfg=G --seed=S]
      Edits one picture; without --checkpoint by the model that comes with the package.
  rb-jax evaluate --checkpoint=DIR --data=reasonworld --split=test --count=N --out=DIR
      Edits and scores N pictures; writes scores.json and grid.png.
  rb-jax data reasonworld --out=DIR --split=train --count=N --seed=S --size=PX
      Writes ReasonWorld in the Reason50K layout.
  rb-jax data import --from=LAYOUT --source=DIR --out=DIR [--split=NAME --max_rejects=N]
              [--shard_examples=N --process_index=I --process_count=N]
      Converts a data set to shards of records; goes on where it was stopped. Layouts: reason50k,
      magicbrush, emu_edit, reasonedit, editworld, ultraedit, instructpix2pix, folder.
  rb-jax data cache --data=DIR --checkpoint=DIR --out=DIR [--split=NAME --batch_size=N]
              [--shard_examples=N --process_index=I --process_count=N]
      Runs the frozen encoders once; trains without them (config.data.name=cache).

  rb-jax import --source=PATH --out=DIR [--family=NAME --dtype=bfloat16]
      Reads a PyTorch checkpoint: FLUX, its autoencoder, CLIP, LLaVA, SAM, the authors' modules.
  rb-jax assemble --config=FILE.py --parts=DIR,DIR,... --out=DIR
      Puts imported parts and fresh modules together to a model that train and edit take.
  rb-jax export --checkpoint=DIR --format=diffusers|bfl|hf|peft|official|torch --out=DIR
      Writes a model, or an imported part, for PyTorch.
  rb-jax parity --checkpoint=DIR --reference=DIR
      Runs ours and PyTorch's side on the same inputs and compares them stage by stage.

  rb-jax plan --config=FILE.py --topology=v5p:2x2x1,v5e:16x16,h200:8 [--slices=N --preset=NAME]
              [--search --batch_per_chip=N --program=sample --json=FILE --report=FILE.html]
      Compiles the step for hardware that is not here: memory, communication, predicted time.

  rb-jax VERB --help lists all flags of a verb.
"""


def train(argv: Sequence[str]) -> int:
    with installed() as signals:  # ahead of all that takes time
        return _train(argv, signals)


def _train(argv: Sequence[str], signals: Signals) -> int:
    values = _flags(argv, "train")
    _config_file(values, argv)
    _string(values, "workdir", None, "Folder of the run: checkpoints, logs, weights.")
    _process_flags(values)
    _parse(values, argv, required=("config", "workdir"))
    from rb_jax.sharding import distributed

    # First of all: JAX must not have looked for devices yet.
    places = (values.coordinator_address, values.num_processes, values.process_id)
    distributed.start(os.environ, *places)
    logging.set_verbosity(logging.FATAL)  # Orbax prints pages about an error that it also raises
    from rb_jax.train.loop import train as run

    return run(from_config_dict(values.config), values.workdir, signals)


def edit(argv: Sequence[str]) -> int:
    values = _flags(argv, "edit")
    _string(values, "image", None, "Picture to edit: PNG, JPEG, WebP, BMP, TIFF or GIF.")
    _string(values, "instruction", None, "The hypothesis, e.g. 'What if the rope were cut?'")
    _string(values, "out", None, "Where the edited picture goes; the suffix decides the format.")
    _string(values, "checkpoint", None, "Weights folder or training workdir (default: shipped).")
    _sampling_flags(values)
    _parse(values, argv, required=("image", "instruction", "out"))
    from pathlib import Path

    import numpy as np

    from rb_jax.data.images import check_writable, open_image, save_image
    from rb_jax.editor import Editor

    check_writable(values.out)
    pixels = open_image(Path(values.image))
    editor = Editor.from_pretrained(values.checkpoint)
    edited = editor.edit(pixels, values.instruction, **_sampling(values))
    save_image(Path(values.out), np.asarray(edited))
    print(f"{values.out}: {edited.width} x {edited.height} pixels")
    return 0


def evaluate(argv: Sequence[str]) -> int:
    values = _flags(argv, "evaluate")
    _string(values, "checkpoint", None, "Weights folder or training workdir (default: shipped).")
    flags.DEFINE_enum("data", "reasonworld", ["reasonworld"], "Data set.", flag_values=values)
    _string(values, "split", "test", "train, val, test or test_unseen.")
    flags.DEFINE_integer("count", 256, "Pictures to edit.", flag_values=values)
    _string(values, "out", None, "Folder for scores.json and grid.png.")
    _sampling_flags(values)
    _parse(values, argv, required=("out",))
    from rb_jax.editor import Editor
    from rb_jax.eval.evaluate import check_folder, score_table, write_evaluation
    from rb_jax.eval.evaluate import evaluate as run

    check_folder(values.out)
    editor = Editor.from_pretrained(values.checkpoint)
    report, edits = run(editor, values.split, values.count, **_sampling(values))
    write_evaluation(values.out, report, edits)
    print(score_table(report))
    print(f"{values.out}/scores.json, {values.out}/grid.png")
    return 0


def data(argv: Sequence[str]) -> int:
    if len(argv) < 2 or argv[1] not in DATA:
        raise InputError(f"rb-jax data needs one of: {', '.join(DATA)}")
    return DATA[argv[1]]([f"data {argv[1]}", *argv[2:]])


def data_reasonworld(argv: Sequence[str]) -> int:
    values = _flags(argv, "data reasonworld")
    _string(values, "out", None, "Folder to write; other splits in it stay.")
    _string(values, "split", "train", "train, val, test or test_unseen.")
    flags.DEFINE_integer("count", 1000, "Examples.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the world.", flag_values=values)
    flags.DEFINE_integer("size", 64, "Side of the pictures in pixels.", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "Replace a split that is there.", flag_values=values)
    _parse(values, argv, required=("out",))
    from rb_jax.data.reason50k import write_dataset
    from rb_jax.data.reasonworld import ReasonWorld

    if values.count < 1:
        raise InputError(f"--count must be at least 1, got {values.count}")
    try:
        world = ReasonWorld(values.split, values.seed, values.size)
    except ValueError as error:
        raise InputError(str(error)) from None
    write_dataset(
        world, values.count, values.out, values.split,
        progress=True, overwrite=values.overwrite,
    )  # fmt: skip
    print(f"{values.out}: {values.count} examples of {values.split}")
    return 0


def data_import(argv: Sequence[str]) -> int:
    values = _flags(argv, "data import")
    integer = flags.DEFINE_integer
    layouts = "Layout of the source: reason50k, magicbrush, ..., folder (see rb-jax --help)."
    _string(values, "from", None, layouts)
    _string(values, "source", None, "Folder of the data set, as it was fetched.")
    _string(values, "out", None, "Folder for the shards; other splits of the data set stay.")
    _string(values, "split", None, "Split to convert (default: the layout's, mostly train).")
    integer("shard_examples", 1000, "Examples a shard, at most where the source allows it.",
            flag_values=values)  # fmt: skip
    integer("max_rejects", None, "Unusable items after which to stop (default: 1 in 100, or 10).",
            flag_values=values)  # fmt: skip
    integer("process_index", 0, "Which of several processes this is, from 0.", flag_values=values)
    integer("process_count", 1, "How many processes share the work.", flag_values=values)
    _parse(values, argv, required=("from", "source", "out"))
    from rb_jax.data.importing import import_dataset

    made = import_dataset(
        str(values["from"].value), values.source, values.out, values.split,
        shard_examples=values.shard_examples, max_rejects=values.max_rejects,
        process_index=values.process_index, process_count=values.process_count,
    )  # fmt: skip
    if made is None:
        print(f"{values.out}: this process is done; other processes are not")
        return 0
    for note in made.notes:
        print(f"note: {note}")
    print(
        f"{values.out}: {made.examples} examples of {made.split} in {len(made.shards)} shards, "
        f"{made.rejects} items rejected"
    )
    return 0


def data_cache(argv: Sequence[str]) -> int:
    values = _flags(argv, "data cache")
    integer = flags.DEFINE_integer
    _string(
        values, "data", None, "Folder of records (rb-jax data import) or in Reason50K's layout."
    )
    _string(values, "checkpoint", None, "Weights folder or workdir of the whole model.")
    _string(values, "out", None, "Folder for the features; other splits in it stay.")
    _string(values, "split", "train", "Split to encode.")
    integer("batch_size", 16, "Examples encoded together.", flag_values=values)
    integer("shard_examples", 256, "Examples a shard.", flag_values=values)
    integer("process_index", 0, "Which of several processes this is, from 0.", flag_values=values)
    integer("process_count", 1, "How many processes share the work.", flag_values=values)
    _parse(values, argv, required=("data", "checkpoint", "out"))
    from rb_jax.encoders.cache import cache_features

    made = cache_features(
        values.data, values.checkpoint, values.out, values.split,
        batch_size=values.batch_size, shard_examples=values.shard_examples,
        process_index=values.process_index, process_count=values.process_count,
    )  # fmt: skip
    if made is None:
        print(f"{values.out}: this process is done; other processes are not")
        return 0
    size = sum(shard.bytes for shard in made.shards)
    print(
        f"{values.out}: features of {made.examples} examples of {made.split} in "
        f"{len(made.shards)} shards, {size / 1e9:.2f} GB; train from them with "
        f"--config.data.name=cache --config.data.inputs=features --config.data.path={values.out}"
    )
    return 0


def import_(argv: Sequence[str]) -> int:
    values = _flags(argv, "import")
    families = ["flux", "flux_vae", "clip", "llava", "sam", "reasonbrain"]
    flags.DEFINE_enum(
        "family", None, families, "What it is (default: found from the tensors' names).",
        flag_values=values,
    )  # fmt: skip
    _string(values, "source", None, "A .safetensors file, or a folder of them with its index.")
    _string(values, "out", None, "Folder to write; it must not exist, or be empty.")
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16", "float16"],
        "Stores floating tensors as this (default: as they are); losing bits is an error.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_bool("allow_rounding", False, "--dtype may lose bits.", flag_values=values)
    flags.DEFINE_bool(
        "allow_pickle", False, "Read .pt and .bin files, with torch.load(weights_only=True).",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_multi_string(
        "set", [], "GROUP.KEY=VALUE: a size that the files do not tell, e.g. frce.heads=8.",
        flag_values=values,
    )  # fmt: skip
    _parse(values, argv, required=("source", "out"))
    from rb_jax.port.importing import import_checkpoint

    family, layout, part = import_checkpoint(
        values.source, values.out, family=values.family, dtype=values.dtype,
        allow_pickle=values.allow_pickle, allow_rounding=values.allow_rounding,
        settings=values["set"].value or [], progress=True,
    )  # fmt: skip
    print(f"{values.out}: {family.name} in the {layout.name} layout")
    for group, inner in part.values.items():
        print(f"  {group}: " + ", ".join(f"{key}={value}" for key, value in inner.items()))
    return 0


def assemble(argv: Sequence[str]) -> int:
    values = _flags(argv, "assemble")
    _config_file(values, argv)
    flags.DEFINE_list("parts", None, "Folders that rb-jax import wrote.", flag_values=values)
    _string(values, "out", None, "Folder to write; it must not exist, or be empty.")
    _parse(values, argv, required=("config", "parts", "out"))
    from rb_jax.port.assemble import assemble as run

    made = run(from_config_dict(values.config), values.parts, values.out, progress=True)
    for folder, stages in made.parts.items():
        print(f"{', '.join(stages) or 'nothing'} from {folder}")
    print(f"fresh parameters in {', '.join(made.fresh) or 'nothing'}")
    if made.unused:
        print(f"left out: {', '.join(sorted({p.split('/')[0] for p in made.unused}))}")
    print(f"{values.out}: train it with --config=configs/from_checkpoint.py:{values.out}")
    return 0


def export(argv: Sequence[str]) -> int:
    values = _flags(argv, "export")
    _string(values, "checkpoint", None, "Weights folder, training workdir, or imported part.")
    formats = ["diffusers", "bfl", "hf", "peft", "official", "torch"]
    flags.DEFINE_enum("format", None, formats, "The layout to write.", flag_values=values)
    _string(values, "out", None, "Folder to write; it must not exist, or be empty.")
    _parse(values, argv, required=("checkpoint", "format", "out"))
    from rb_jax.port.exporting import export_checkpoint

    for path in export_checkpoint(values.checkpoint, values.format, values.out, progress=True):
        print(path)
    return 0


def parity(argv: Sequence[str]) -> int:
    values = _flags(argv, "parity")
    _string(values, "checkpoint", None, "Weights folder, training workdir, or imported part.")
    _string(values, "reference", None, "The PyTorch side: a stock folder, or --format=torch's.")
    flags.DEFINE_integer("seed", 0, "Seed of the inputs.", flag_values=values)
    _parse(values, argv, required=("checkpoint", "reference"))
    from rb_jax.port.parity import compare

    report = compare(values.checkpoint, values.reference, values.seed)
    print(report.text())
    return 0 if report.passed else 1


def plan(argv: Sequence[str]) -> int:
    argv = _preset(argv)
    values = _flags(argv, "plan")
    _config_file(values, argv)
    topology = "Hardware, comma-separated: v5p:2x2x1, v5e:16x16, v6e:8x8, h200:8, ..."
    flags.DEFINE_list("topology", None, topology, flag_values=values)
    flags.DEFINE_integer("slices", 1, "Slices of each TPU topology.", flag_values=values)
    _string(values, "preset", None, "The configuration file's preset, e.g. paper or lora,1024.")
    flags.DEFINE_enum(
        "program", "train", ["train", "sample"], "The training step, or the sampler.",
        flag_values=values,
    )  # fmt: skip
    per_chip = "Examples a chip, for every topology (default: the configuration's batch)."
    flags.DEFINE_integer("batch_per_chip", 0, per_chip, flag_values=values)
    flags.DEFINE_bool("search", False, "Try meshes, batches and remat.", flag_values=values)
    flags.DEFINE_integer("compiles", 3, "Candidates that --search compiles.", flag_values=values)
    _string(values, "json", None, "File for the rows.")
    _string(values, "report", None, "File for an HTML page with charts.")
    _string(values, "save", None, "Folder for the optimized programs.")
    _parse(values, argv, required=("config", "topology"))
    from rb_jax.plan.command import run

    return run(values, argv)


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "edit": edit,
    "evaluate": evaluate,
    "data": data,
    "import": import_,
    "assemble": assemble,
    "export": export,
    "parity": parity,
    "plan": plan,
}
DATA = {"reasonworld": data_reasonworld, "import": data_import, "cache": data_cache}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; 0 when done, 2 with one line on stderr for bad input (train has more)."""
    argv = [_underscored(a) for a in (sys.argv[1:] if argv is None else argv)]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"rb_jax {_version()}")
        return 0
    if argv[0] not in VERBS:
        return _fail(f"no such verb: {argv[0]}; choose {', '.join(VERBS)}")
    warnings.showwarning = _show_warning
    try:
        return VERBS[argv[0]](argv)
    except (InputError, flags.Error) as error:
        return _fail(str(error))
    except RunError as error:
        return _fail(str(error), error.status)
    except BrokenPipeError:
        return 1


def _underscored(argument: str) -> str:
    """``--allow-pickle`` as absl knows it, ``--allow_pickle``; the value is left alone."""
    flag, equals, value = argument.partition("=")
    known = re.fullmatch(r"--[a-z]+(-[a-z]+)+", flag)
    return (f"--{flag[2:].replace('-', '_')}" if known else flag) + equals + value


def _version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("rb_jax")
    except importlib.metadata.PackageNotFoundError:
        return "(run from a source folder, not installed)"


def _fail(message: str, status: int = 2) -> int:
    try:
        print(f"rb-jax: {' '.join(message.split())}", file=sys.stderr, flush=True)
    except OSError:  # it goes to a full disk; the status must come through all the same
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the end)
    return status


def _show_warning(message, category, *_) -> None:
    print(f"rb-jax: {message}", file=sys.stderr)


def _flags(argv: Sequence[str], verb: str) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, f"Flags of rb-jax {verb}.", short_name="h", flag_values=values)
    return values


def _config_file(values: flags.FlagValues, argv: Sequence[str]) -> None:
    config_flags.DEFINE_config_file(
        "config", None, "Configuration file; change values with --config.a.b=VALUE.",
        flag_values=values, sys_argv=list(argv),
    )  # fmt: skip
    for argument in argv:  # absl's and ml_collections' own messages would not name these
        flag, _, value = argument.lstrip("-").partition("=")
        if flag == "config" and value and not os.path.isfile(value.partition(":")[0]):
            raise InputError(f"--config={value}: no such file")
        if flag.startswith("config."):
            check_key(flag.removeprefix("config."))


def _preset(argv: Sequence[str]) -> list[str]:
    """--preset=NAME as the configuration file's argument: --config=FILE:NAME."""
    presets = [a.partition("=")[2] for a in argv if a.startswith("--preset=")]
    return [
        f"{a}:{presets[-1]}" if presets and a.startswith("--config=") and ":" not in a else a
        for a in argv
    ]


def _string(values: flags.FlagValues, name: str, default: str | None, text: str) -> None:
    flags.DEFINE_string(name, default, text, flag_values=values)


def _process_flags(values: flags.FlagValues) -> None:
    integer, found = flags.DEFINE_integer, "(default: found on Cloud TPU and Slurm)."
    _string(values, "coordinator_address", None,
            f"With several processes: HOST:PORT of the first, for all {found}")  # fmt: skip
    integer("num_processes", None, f"How many processes train together {found}", flag_values=values)
    integer("process_id", None, f"Which of them this is, from 0 {found}", flag_values=values)


def _sampling_flags(values: flags.FlagValues) -> None:
    integer, number = flags.DEFINE_integer, flags.DEFINE_float
    integer("steps", None, "Euler steps (default: the model's).", flag_values=values)
    number("guidance", None, "Distilled guidance scale (default: the model's).", flag_values=values)
    number("true_cfg", None, "Classifier-free guidance scale; 1 is off.", flag_values=values)
    integer("seed", 0, "Seed of the noise; same seed, same picture.", flag_values=values)


def _sampling(values: flags.FlagValues) -> dict:
    return {name: values[name].value for name in ("steps", "guidance", "true_cfg", "seed")}


def _parse(values: flags.FlagValues, argv: Sequence[str], required: Sequence[str]) -> None:
    """Reads the flags; --help prints them and ends, what is missing or left over raises."""
    if any(a in ("--help", "-h", "-help") for a in argv):
        print(f"rb-jax {argv[0]}, flags:\n{values.main_module_help() or values.get_help()}")
        raise SystemExit(0)
    try:
        rest = values(list(argv))[1:]
    except flags.Error:
        raise
    except Exception as error:  # whatever the user's configuration file raises
        raise InputError(f"--config: {type(error).__name__}: {error}") from None
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r}; rb-jax {argv[0]} --help lists flags")
    for name in required:
        if values[name].value is None:
            raise InputError(f"rb-jax {argv[0]} needs --{name}")
    for name in values:
        value = values[name].value if name != "instruction" else None
        for each in value if isinstance(value, list) else [value]:
            refuse_url(f"--{name}", each)


if __name__ == "__main__":
    sys.exit(main())
