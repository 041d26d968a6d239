"""The command line ``rb-jax VERB``: one module per verb, imported when it is asked for.

A verb's module has a docstring, its help; ``define``, which adds its flags; and ``run``, which
does the work and returns the exit status. Nothing heavy is imported until a verb runs.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rb_jax.errors import InputError, reason
from rb_jax.runtime import exits
from rb_jax.runtime.exits import RunError

# Words -> module in this folder, and what the verb does.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "the main job once: train a small model, edit, score, write a report"),
    "train": ("train", "train, or continue what is in a workdir"),
    "edit": ("edit", "edit one picture"),
    "evaluate": ("evaluate", "edit and score held-out scenes"),
    "data reasonworld": ("data_reasonworld", "write ReasonWorld scenes as a data set"),
    "data import": ("data_import", "convert a data set to shards of records"),
    "data cache": ("data_cache", "run the frozen encoders once over a data set"),
    "import": ("import_", "read a PyTorch checkpoint"),
    "assemble": ("assemble", "put imported parts and new modules together"),
    "export": ("export", "write a model for PyTorch"),
    "parity": ("parity", "compare ours and PyTorch's side, stage by stage"),
    "plan": ("plan", "compile for hardware that is not here: memory, traffic, time"),
    "completion": ("completion", "print the completion script of a shell"),
}
# What has to be installed besides rb_jax itself.
EXTRAS = {
    "data import": "Parquet files: [data]",
    "import": ".pt files: [torch]",
    "parity": "[torch]",
    "plan": "[plan] for TPUs, [plan-gpu] for GPUs",
}
HELP = ("help", "--help", "-h", "-help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; 0 when done, 2 with one line on stderr for bad input, 130 after ctrl-C.

    ``train`` has more (docs/reliability.md).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a path may have letters that a terminal lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with ExitStack() as stack:
        # Ahead of the slow imports: a training that is stopped before it begins says so.
        takeover = exits.installed if words[:1] == ["train"] else exits.interruptible
        stack.enter_context(takeover())
        status = _main(words)
    if argv is None and status in exits.STATUS.values():
        exits.leave(status)
    if status in exits.FAILED:
        exits.give_up(status)
    return status


def _main(words: list[str]) -> int:
    try:
        status = _verb(words)
        sys.stdout.flush()  # here, where it is said when that fails
        return status
    except InputError as error:
        return _fail(str(error))
    except RunError as error:
        return _fail(str(error), error.status)
    except exits.Terminated:
        return _fail("terminated", 143)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the interpreter flushes it at its end)
        return 1
    except MemoryError as error:
        return _fail(f"not enough memory: {reason(error)}")
    except OSError as error:
        if not error.filename:  # then it may be stdout that failed
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the end)
        place = f"{str(error.filename)[:100]}: " if error.filename else ""
        return _fail(f"{place}{reason(error)}")


def _verb(words: list[str]) -> int:
    if not words or words == ["--version"] or words[0] in HELP:
        return _without_a_verb(words)
    verb, rest = find(words)
    if not verb:
        print(usage(f"{words[0]} "))
        return 0
    from rb_jax.cli.flags import Flags

    module = importlib.import_module(f"rb_jax.cli.{VERBS[verb][0]}")
    flags = Flags(verb, rest, module.__doc__ or "")
    module.define(flags)
    if not flags.parse():
        return 0
    _spare_libtpu()
    if "compilation_cache" in flags.values:
        from rb_jax.runtime.compiling import keep_programs

        keep_programs(flags.compilation_cache)
    return module.run(flags)


def _spare_libtpu() -> None:
    """libtpu, installed for the planner, complains at length on a machine without accelerators."""
    devices = ("accel*", "vfio/*", "nvidia*", "kfd")
    there = any(any(Path("/dev").glob(name)) for name in devices)
    if not there and importlib.util.find_spec("libtpu"):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _without_a_verb(words: list[str]) -> int:
    if words == ["--version"]:
        print(f"rb_jax {version()}")
        return 0
    verb = [word for word in words if word not in HELP]
    if verb:  # rb-jax help VERB
        return _main([*verb, "--help"])
    print(usage())
    return 0 if words else 2


def find(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that words begin with, and the rest; "" for a group of verbs asked for its help.

    Raises InputError, with the nearest verb, for none.
    """
    for count in (2, 1):
        if (verb := " ".join(words[:count])) in VERBS:
            return verb, list(words[count:])
    inside = [verb for verb in VERBS if verb.startswith(f"{words[0]} ")]
    if inside and (len(words) > 1 and words[1] in HELP):
        return "", []
    choices = inside or list(VERBS)
    said = " ".join(words[:2]) if inside else words[0]
    close = difflib.get_close_matches(said, choices, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    what = (
        f"{words[0]} needs one of its verbs"
        if len(words) < 2 and inside
        else f"no such verb: {said}"
    )
    raise InputError(f"{what}; {hint}there are {', '.join(choices)}")


def usage(prefix: str = "") -> str:
    """The verbs, those that begin with ``prefix``, in a line each."""
    lines = ["rb-jax: edit a picture by reasoning about a hypothesis (ReasonBrain in JAX)", ""]
    for verb, (_, text) in VERBS.items():
        if verb.startswith(prefix):
            extra = f"  ({EXTRAS[verb]})" if verb in EXTRAS else ""
            lines.append(f"  rb-jax {verb:<18}{text}{extra}")
    lines += [
        "",
        "rb-jax VERB --help explains a verb and lists its flags. Words in brackets are extras to",
        "install: pip install '.[data]'. rb-jax --version says which version this is.",
    ]
    return "\n".join(lines)


def version() -> str:
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
