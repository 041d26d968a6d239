"""The command line: ``rb-jax train | edit | evaluate | data``.

Flags are absl's; any value of a configuration is set with ``--config.a.b=value``.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from rb_jax.config import check_key, from_config_dict
from rb_jax.errors import InputError

USAGE = """rb-jax: edit a picture by reasoning about a hypothesis (ReasonBrain in JAX)

  rb-jax train --config=FILE.py --workdir=DIR [--config.a.b=VALUE ...]
      Trains, or continues what is in DIR; checkpoints, metrics, TensorBoard and weights go there.
  rb-jax edit --image=PATH --instruction=TEXT --out=PATH
              [--checkpoint=DIR --steps=N --guidance=G --true_cfg=G --seed=S]
      Edits one picture; without --checkpoint by the model that comes with the package.
  rb-jax evaluate --checkpoint=DIR --data=reasonworld --split=test --count=N --out=DIR
      Edits and scores N pictures; writes scores.json and grid.png.
  rb-jax data reasonworld --out=DIR --split=train --count=N --seed=S --size=PX
      Writes ReasonWorld in the Reason50K layout.

  rb-jax VERB --help lists all flags of a verb.
"""


def train(argv: Sequence[str]) -> int:
    values = _flags(argv, "train")
    config_flags.DEFINE_config_file(
        "config", None, "Configuration file; change values with --config.a.b=VALUE.",
        flag_values=values, sys_argv=list(argv),
    )  # fmt: skip
    _string(values, "workdir", None, "Folder of the run: checkpoints, logs, weights.")
    for argument in argv:  # absl's and ml_collections' own messages would not name these
        flag, _, value = argument.lstrip("-").partition("=")
        if flag == "config" and value and not os.path.isfile(value.partition(":")[0]):
            raise InputError(f"--config={value}: no such file")
        if flag.startswith("config."):
            check_key(flag.removeprefix("config."))
    _parse(values, argv, required=("config", "workdir"))
    from rb_jax.train.loop import train as run

    return run(from_config_dict(values.config), values.workdir)


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


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "edit": edit,
    "evaluate": evaluate,
    "data": data,
}
DATA = {"reasonworld": data_reasonworld}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; 0 when done, 2 with one line on stderr for bad input."""
    argv = list(sys.argv[1:] if argv is None else argv)
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
    except BrokenPipeError:
        return 1


def _version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("rb_jax")
    except importlib.metadata.PackageNotFoundError:
        return "(run from a source folder, not installed)"


def _fail(message: str) -> int:
    print(f"rb-jax: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _show_warning(message, category, *_) -> None:
    print(f"rb-jax: {message}", file=sys.stderr)


def _flags(argv: Sequence[str], verb: str) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, f"Flags of rb-jax {verb}.", short_name="h", flag_values=values)
    return values


def _string(values: flags.FlagValues, name: str, default: str | None, text: str) -> None:
    flags.DEFINE_string(name, default, text, flag_values=values)


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


if __name__ == "__main__":
    sys.exit(main())
