"""FLUX.1-dev in and out at full size: bytes, memory and time.

    python benchmarks/port_flux.py --folder=DIR [--scale=0.1] [--json=OUT]

Writes a random bfloat16 checkpoint of FLUX.1-dev's shapes in diffusers' layout (24 GB), copies it
with cp, imports it with `rb-jax import`, exports it again with `rb-jax export`, and compares every
byte of the result with what was written at first. Prints the wall times beside cp's and the peak
resident memory of each command. DIR is made and removed; twice the checkpoint must fit into it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rb_jax.port.families.flux import FAMILY, write_diffusers
from rb_jax.port.family import Part, porter
from rb_jax.runtime.progress import progress_bar
from rb_jax.weights.safetensors.reader import TensorFiles
from rb_jax.weights.safetensors.writer import TensorSpec, write_tensors

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Bytes of random numbers; each tensor begins STEP bytes later in them than the one before.
BLOCK, STEP = 2**26, 8198
CLI = [sys.executable, "-m", "rb_jax"]


def flux_dev(scale: float) -> Part:
    """FLUX.1-dev; ``scale`` below 1 leaves out blocks, not widths."""
    mmdit = {
        "width": 3072,
        "heads": 24,
        "mlp_ratio": 4.0,
        "context_width": 4096,
        "axes_dim": (16, 56, 56),
        "guidance_embed": True,
        "patch_size": 2,
        "source": "sequence",
        "double_blocks": max(1, round(19 * scale)),
        "single_blocks": max(1, round(38 * scale)),
    }
    return Part({"mmdit": mmdit, "autoencoder": {"latent_channels": 16}, "text": {"width": 768}})


def tensors(part: Part) -> list[TensorSpec]:
    layout = FAMILY.layout("diffusers")
    table = porter(FAMILY, layout, part, layout.first_names())
    return [TensorSpec(name, BFLOAT16, table.source_shape(name)) for name in table.sources]


def pieces(spec: TensorSpec, number: int, noise: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of the ``number``-th tensor."""
    left, start = spec.size, number * STEP % BLOCK
    while left:
        piece = noise[start : start + left]
        yield piece
        left, start = left - len(piece), 0


def write_checkpoint(folder: Path, part: Part, specs: list[TensorSpec], noise: np.ndarray) -> None:
    numbers = {spec.name: i for i, spec in enumerate(specs)}

    def produce(name: str) -> Iterator[np.ndarray]:
        number = numbers[name]
        return (piece.view(BFLOAT16) for piece in pieces(specs[number], number, noise))

    folder.mkdir()
    write_tensors(
        folder,
        "diffusion_pytorch_model",
        specs,
        produce,
        metadata={"format": "pt"},
        label="writing",
        progress=True,
    )
    (folder / "config.json").write_text(json.dumps(write_diffusers(part)))
    subprocess.run(["sync", *map(str, folder.iterdir())], check=True)


def differing(folder: Path, specs: list[TensorSpec], noise: np.ndarray) -> list[str]:
    """Names of tensors that are not, in name, dtype, shape and bytes, what was written."""
    files = TensorFiles.open(folder)
    wrong = sorted(set(files) ^ {spec.name for spec in specs})
    with progress_bar(len(specs), "comparing", "tensor") as bar:
        for number, spec in enumerate(specs):
            if spec.name in files:
                x = files.read(spec.name)
                same, data = (x.dtype, x.shape) == (BFLOAT16, spec.shape), x.view(np.uint8).ravel()
                for piece in pieces(spec, number, noise):
                    same = same and np.array_equal(data[: len(piece)], piece)
                    data = data[len(piece) :]
                wrong += [] if same and not len(data) else [spec.name]
            bar.update(1)
    return wrong


def timed(step: str, command: list[str]) -> dict[str, Any]:
    """Wall time and peak resident memory of a command, which syncs what it writes to the disk."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {
        "step": step,
        "seconds": round(time.perf_counter() - begin, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_rss_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }


def measure(root: Path, part: Part, specs: list[TensorSpec]) -> dict[str, Any]:
    noise = np.frombuffer(np.random.default_rng(0).bytes(BLOCK), np.uint8)
    flux, copy, imported, exported = (root / n for n in ("flux", "copy", "imported", "exported"))
    write_checkpoint(flux, part, specs, noise)
    config = (flux / "config.json").read_text()
    rows = [timed("cp", ["sh", "-c", f'cp -r "{flux}" "{copy}" && sync "{copy}"/*'])]
    shutil.rmtree(copy)
    rows.append(timed("import", [*CLI, "import", f"--source={flux}", f"--out={imported}"]))
    shutil.rmtree(flux)
    command = [*CLI, "export", f"--checkpoint={imported}", "--format=diffusers"]
    rows.append(timed("export", [*command, f"--out={exported}"]))
    shutil.rmtree(imported)
    wrong = differing(exported, specs, noise)
    if json.loads((exported / "config.json").read_text()) != json.loads(config):
        wrong.append("config.json")
    for row in rows:
        row["times_cp"] = round(row["seconds"] / rows[0]["seconds"], 2)
    size = sum(spec.size for spec in specs)
    return {"bytes": size, "tensors": len(specs), "differing": wrong, "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where to work; made, then removed")
    add("--scale", type=float, default=1.0, help="share of the blocks (default: all)")
    add("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    part, root = flux_dev(options.scale), options.folder
    specs = tensors(part)
    size = sum(spec.size for spec in specs)
    root.mkdir(parents=True)
    try:
        free = shutil.disk_usage(root).free
        if free < 2.02 * size:
            raise SystemExit(
                f"{root}: {2.02 * size / 1e9:.0f} GB are needed, {free / 1e9:.0f} free"
            )
        report = measure(root, part, specs)
    finally:
        shutil.rmtree(root)
    wrong = report["differing"]
    print(f"{size / 1e9:.2f} GB, {len(specs)} tensors; after import and export {len(wrong)} differ")
    print(f"{'':<8}{'wall':>8}{'of cp':>10}{'CPU':>9}{'peak memory':>14}")
    for row in report["rows"]:
        print(
            f"{row['step']:<8}{row['seconds']:>7.1f}s{row['times_cp']:>8.2f} x"
            f"{row['cpu_seconds']:>8.1f}s{row['peak_rss_gb']:>11.2f} GB"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
