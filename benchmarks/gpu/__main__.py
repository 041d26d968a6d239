"""Measures rb_jax on one GPU, beside diffusers and PyTorch on the same card.

    python -m benchmarks.gpu [--size=full|toy] [--only=forward,train,...] [--repeats=20]
        [--minutes=9.5] [--json=OUT]

Run it in the repository's root. Parts, in this order: ``forward`` (FLUX's 12B transformer at 1024
px, one forward and the sampler), ``attention``, ``train`` (a step of the largest transformer that
fits), ``planner`` (what rb_jax.plan predicts for the same programs). ``--size=toy`` runs all of it
in less than a minute on a CPU. Ends with 2 without a GPU, with 1 when a part failed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu import rows

# Which sides measure each part, and how.
PARTS = {
    "forward": ("ours", "theirs"),
    "attention": ("ours", "theirs"),
    "train": ("ours",),
    "planner": ("planner",),
}
PACKAGES = ("jax", "torch", "diffusers")
CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
# At toy size programs are compiled for longer than they run, and one thread is enough: several wait
# for each other on a busy machine.
TOY = CPU | {
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", "--xla_backend_optimization_level=0"),
    "OMP_NUM_THREADS": "1",
}
# PyTorch's process counts FLOPs with JAX, and must leave it the card's memory.
ENVIRONMENT = {
    "ours": {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.93"},
    "theirs": {"JAX_PLATFORMS": "cpu"},
    "planner": CPU,
}


def main() -> int:
    options = parse()
    card = gpu_name()
    if options.size == "full" and card is None:
        print("benchmarks.gpu: no NVIDIA GPU here; --size=toy runs on a CPU", file=sys.stderr)
        return 2
    end = time.monotonic() + 60 * options.minutes
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        for part in options.only:
            for side in PARTS[part]:
                why = run(side, part, options, path, end)
                failed += [f"{part}, {side}: {why}"] if why else []
                if options.json:
                    options.json.write_text(rows.to_json(joined(path)), encoding="utf-8")
        result = joined(path)
    device = card if options.size == "full" else "CPU, toy size"
    print(f"{device}; {versions()}; Python {sys.version.split()[0]}")
    print(rows.table(result))
    for line in failed:
        print(f"FAILED {line}")
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--size", choices=("full", "toy"), default="full")
    add("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    add("--repeats", type=int, help="default 20, at toy size 3")
    add("--minutes", type=float, default=9.5, help="parts that would start or end later are cut")
    add("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := sorted(set(options.only) - set(PARTS)):
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(PARTS)}")
    options.repeats = options.repeats or (20 if options.size == "full" else 3)
    return options


def run(side: str, part: str, options: argparse.Namespace, path: Path, end: float) -> str:
    """Runs one child; why it failed, or nothing."""
    left = end - time.monotonic()
    if left < 1:
        return "no time left"
    command = [sys.executable, "-m", "benchmarks.gpu.part", side, part, f"--size={options.size}"]
    command += [f"--repeats={options.repeats}", f"--rows={path}"]
    environment = os.environ | ENVIRONMENT[side] | (TOY if options.size == "toy" else {})
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        try:
            status = subprocess.run(
                command, env=environment, stdout=output, stderr=output, timeout=left
            ).returncode
        except subprocess.TimeoutExpired:
            return f"stopped after {left:.0f} s, the last of --minutes={options.minutes:g}"
        output.seek(0)
        log = output.read()
    print(f"{part}, {side}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    if status == 0:
        return ""
    sys.stderr.write(log[-4000:])
    return (log.strip().splitlines() or [f"status {status}"])[-1][:300]


def joined(path: Path) -> list[rows.Row]:
    """The measured rows, each of ours with its ratio and the planner's time."""
    found = rows.read(path)
    planned = {row.what: row for row in found if row.by == "planner"}
    result = [row for row in found if row.by != "planner"]
    for row in result:
        if row.by == rows.OURS and row.what in planned:
            row.planned = planned[row.what].planned
            row.planner_note = planned[row.what].planner_note
    rows.compare(result)
    order = list(dict.fromkeys(row.what for row in result))
    return sorted(result, key=lambda row: order.index(row.what))


def gpu_name() -> str | None:
    """Of the first GPU, from the driver, which takes none of its memory."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, name = ctypes.c_int(), ctypes.create_string_buffer(100)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return None
    cuda.cuDeviceGetName(name, len(name), 0)
    return name.value.decode()


def versions() -> str:
    return ", ".join(f"{name} {_version(name)}" for name in PACKAGES)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    sys.exit(main())
