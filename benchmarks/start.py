"""How long people wait for a first training step and a first edit, of configs/reasonworld.py.

``python -m benchmarks.start``: real commands in child processes, from the command to the end of
the first step or to the picture, in seconds and in the CPU-seconds that they took. ``cold`` has an
empty compilation cache, ``warm`` what the cold one left, ``resumed`` also its workdir. Few examples
are prepared, so that this does not count. ``--other=DIR`` measures another checkout in turns with
this one, which is fairer than two runs where other work runs beside; ratios are this one's share
of the other's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rb_jax.data.inputs.images import save_image
from rb_jax.data.reasonworld import ReasonWorld

HERE = Path(__file__).parents[1]
# Name -> the workdir of a training.
STARTS = {
    "train cold": "first",
    "train warm": "second",
    "train resumed": "second",
    "edit cold": "",
    "edit warm": "",
}
TICKS = os.sysconf("SC_CLK_TCK")
SETTINGS = ("train.log_every=1", "data.count=64")

Wait = tuple[float, float]  # seconds and CPU-seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--other", type=Path, metavar="DIR", help="a checkout to compare with")
    parser.add_argument("--only", default="", help="what to start: train or edit (default: both)")
    parser.add_argument("--repeats", type=int, default=1, help="of everything; medians are shown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the results")
    args = parser.parse_args()
    checkouts = [HERE, *([args.other.resolve()] if args.other else [])]
    waits: dict[str, dict[str, list[Wait]]] = {str(place): {} for place in checkouts}
    starts = [name for name in STARTS if name.startswith(args.only)]
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name in starts:
                for i, place in enumerate(checkouts):
                    own = Path(folder) / str(i)
                    own.mkdir(exist_ok=True)
                    workdir = STARTS[name]
                    wait = train(place, own, workdir) if workdir else edit(place, own)
                    waits[str(place)].setdefault(name, []).append(wait)
                    print(f"{place} {name}: {wait[0]:.1f} s", file=sys.stderr, flush=True)
    medians = {
        place: {
            name: tuple(map(statistics.median, zip(*each, strict=True)))
            for name, each in of.items()
        }
        for place, of in waits.items()
    }
    print(table(starts, *medians.values()))
    if args.json:
        args.json.write_text(json.dumps(medians, indent=1) + "\n")


def table(starts: list[str], ours: dict[str, Wait], theirs: dict[str, Wait] | None = None) -> str:
    """A row for each start: seconds and CPU-seconds, those of the other checkout, and ratios."""
    heads = ["seconds", "CPU-seconds"]
    if theirs:
        heads += ["other's", "other's CPU", "ratio", "ratio of CPU"]
    lines = [f"{'start':<14}" + "".join(f"{head:>13}" for head in heads)]
    for name in starts:
        numbers = [*ours[name]]
        if theirs:
            numbers += [
                *theirs[name],
                *(a / b for a, b in zip(ours[name], theirs[name], strict=True)),
            ]
        lines.append(f"{name:<14}" + "".join(f"{number:>13.2f}" for number in numbers))
    return "\n".join(lines)


def train(place: Path, folder: Path, workdir: str) -> Wait:
    """Starts a training, or continues what is in the workdir, and stops it after a step."""
    flags = [f"--workdir={folder / workdir}", "--config=configs/reasonworld.py"]
    flags += [f"--config.{value}" for value in SETTINGS]
    begin, child = time.perf_counter(), command(place, folder, "train", *flags)
    said = []
    assert child.stderr is not None
    for line in child.stderr:
        said.append(line)
        if re.search(r"\bstep \d+/", line):
            wait = time.perf_counter() - begin, cpu_seconds(child.pid)
            child.send_signal(signal.SIGTERM)
            child.stderr.read()
            child.wait()
            return wait
    raise SystemExit("".join(said))


def edit(place: Path, folder: Path) -> Wait:
    """Edits the first test scene."""
    example = ReasonWorld("test", 1)[0]
    save_image(folder / "scene.png", example.source)
    flags = [f"--image={folder / 'scene.png'}", f"--instruction={example.instruction}"]
    begin = time.perf_counter()
    child = command(place, folder, "edit", *flags, f"--out={folder / 'edited.png'}")
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(said)
    return time.perf_counter() - begin, used.ru_utime + used.ru_stime


def command(place: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    cache = f"--compilation_cache={folder / 'programs'}"
    return subprocess.Popen(
        [sys.executable, "-m", "rb_jax", *words, cache],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(place)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def cpu_seconds(pid: int) -> float:
    """User's and system's of a process that runs, from its line in /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    main()
