"""How fast batches come, beside bare decoding and beside a torch.utils.data.DataLoader.

    python -m benchmarks.loader [--size=full|toy] [--only=jpeg,cache,memory] [--workers=1,2]
        [--repeats=3] [--json=OUT]

``jpeg``: pairs of 512 and 1024 px JPEGs to batches of ``side`` px; ``cache``: the feature cache at
the paper's sizes; ``memory``: resident memory over many samples. All sides take turns, and a ratio
is one of medians. The DataLoader's worker processes read the same records one by one and collate
with the same code; "as usual" decodes in full and then resizes with Pillow, "our decoding" calls
our functions. Without PyTorch these rows are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.torch_loader import torch_batches
from rb_jax import files
from rb_jax.config import Config, DataConfig, from_config_dict, paper_model, to_config_dict
from rb_jax.data.cache import features
from rb_jax.data.formats import shards
from rb_jax.data.formats.records import EditRecord
from rb_jax.data.inputs.images import decode_resized
from rb_jax.data.pipeline import loader, synthetic
from rb_jax.models.types import FeatureBatch

PARTS = ("jpeg", "cache", "memory")


@dataclasses.dataclass(frozen=True)
class Size:
    pictures: tuple[int, ...]  # sides of the JPEGs
    side: int  # of the batch's pictures
    examples: int  # distinct ones on disk
    batch: int
    seconds: float  # of each timing
    samples: int  # in the memory part
    cached: int  # examples of the feature cache


SIZES = {
    "full": Size((512, 1024), 512, 256, 16, 4.0, 50_000, 512),
    "toy": Size((130,), 64, 12, 4, 0.05, 200, 12),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--workers", default="1,2", help="threads or processes, with commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - set(PARTS):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    size, rows = SIZES[args.size], []
    workers = [int(n) for n in args.workers.split(",")]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("| What | Examples/s | Ratio | To |", "|---|---|---|---|", sep="\n")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for part in args.only.split(","):
            for row in globals()[f"measure_{part}"](size, workers, args.repeats, Path(folder)):
                rows.append(row)
                rate, ratio = (f"{row[x]:.2f}" if x in row else "" for x in ("rate", "ratio"))
                print(f"| {row['what']} | {rate} | {ratio} | {row.get('to', '')} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure_jpeg(size: Size, workers: list[int], repeats: int, folder: Path) -> Iterator[dict]:
    """Ours against bare decoding on one core for each worker, and against the DataLoader."""
    for side in size.pictures:
        place = folder / f"jpeg{side}"
        write_jpegs(place, size.examples, side, distinct=min(size.examples, 32))
        for count in workers:
            config = configuration(place, size, count)
            sides: dict[str, Side] = {
                "bare": functools.partial(bare, place, size, count),
                "ours": timed(functools.partial(ours, config), count),
            }
            for usual in (True, False) if has_torch() else ():
                name = "as usual" if usual else "our decoding"
                sides[name] = timed(functools.partial(torch_batches, config, usual), count)
            rates = in_turns(sides, size.seconds, repeats)
            what = f"{side} px, {count} worker" + "s" * (count > 1)
            yield {"what": f"{what}: decode and resize alone", "rate": rates["bare"]}
            yield {
                "what": f"{what}: loader",
                "rate": rates["ours"],
                "ratio": rates["ours"] / rates["bare"],
                "to": "alone",
            }
            for name in list(sides)[2:]:
                yield {
                    "what": f"{what}: DataLoader, {name}",
                    "rate": rates[name],
                    "ratio": rates["ours"] / rates[name],
                    "to": "loader to this",
                }


def measure_cache(size: Size, workers: list[int], repeats: int, folder: Path) -> Iterator[dict]:
    """Reading features against the DataLoader that makes batches of pixels."""
    for side in size.pictures:
        write_jpegs(folder / f"pixels{side}", size.examples, side, distinct=min(size.examples, 32))
    write_cache(folder / "cache", size)
    for count in workers:
        opened = functools.partial(cached, folder / "cache", size, count)
        sides: dict[str, Side] = {"cache": timed(opened, count)}
        for side in size.pictures if has_torch() else ():
            config = configuration(folder / f"pixels{side}", size, count)
            sides[f"{side} px"] = timed(functools.partial(torch_batches, config, True), count)
        rates = in_turns(sides, size.seconds, repeats)
        what = f"cache, {count} worker" + "s" * (count > 1)
        yield {"what": what, "rate": rates["cache"]}
        for name in list(sides)[1:]:
            yield {
                "what": f"{what}: DataLoader, {name}",
                "rate": rates[name],
                "ratio": rates["cache"] / rates[name],
                "to": "cache to this",
            }


def measure_memory(size: Size, workers: list[int], repeats: int, folder: Path) -> Iterator[dict]:
    """Resident memory after a tenth of the samples, and how much more after all."""
    place = folder / "memory"
    write_jpegs(place, size.samples, 64, distinct=64)
    small = dataclasses.replace(size, side=64, batch=min(50, size.samples // 20))
    batches = loader.batches(configuration(place, small, max(workers)), "train")
    seen, tenth, most = 0, 0, 0
    while seen < size.samples:
        next(batches)
        seen += small.batch
        if seen >= size.samples // 10:
            now = resident()
            tenth, most = tenth or now, max(most, now)
    yield {"what": f"resident after {size.samples // 10} samples: {tenth >> 20} MiB"}
    yield {
        "what": f"most up to {seen} samples: {most >> 20} MiB",
        "ratio": most / tenth,
        "to": "after a tenth",
    }


Side = Callable[[float], float]  # seconds to measure for -> examples per second
Opened = contextlib.AbstractContextManager[Iterator[int]]  # yields the examples of each batch


def in_turns(sides: Mapping[str, Side], seconds: float, repeats: int) -> dict[str, float]:
    """Median examples per second of each side."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            rates[name].append(side(seconds))
    return {name: statistics.median(found) for name, found in rates.items()}


def timed(opened: Callable[[], Opened], workers: int) -> Side:
    """A stream's rate, once what it made ahead while it started is used up."""

    def rate(seconds: float) -> float:
        with opened() as batches:
            for _ in range(2 * workers + 3):
                next(batches)
            begin, count = time.perf_counter(), 0
            while (spent := time.perf_counter() - begin) < seconds:
                count += next(batches)
            return count / spent

    return rate


def bare(folder: Path, size: Size, workers: int, seconds: float) -> float:
    """Decoding and resizing alone, in so many processes at once."""
    given = [(folder, size.side, seconds)] * workers
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(decode_alone, *zip(*given, strict=True)))


def decode_alone(folder: Path, side: int, seconds: float) -> float:
    """Examples a second of this process, their bytes in memory already."""
    records = shards.Records(folder, "train")
    held = [records[n] for n in range(min(len(records), 32))]
    begin, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < seconds:
        record = held[count % len(held)]
        for picture in (record.source, record.target):
            decode_resized(picture or b"", "", side, side)
        count += 1
    return count / spent


@contextlib.contextmanager
def ours(config: Config) -> Iterator[Iterator[int]]:
    batches: Any = loader.batches(config, "train")
    yield (len(batch.source) for batch in batches)
    batches.close()


@contextlib.contextmanager
def cached(folder: Path, size: Size, workers: int) -> Iterator[Iterator[int]]:
    cache = features.FeatureCache(folder, "train")
    batches: Any = cache.batches(size.batch, seed=0, threads=workers)
    yield (len(batch.target_latent) for batch in batches)
    batches.close()


def configuration(folder: Path, size: Size, workers: int) -> Config:
    """Records at the benchmark's size; regions on a grid as coarse as SAM's stride."""
    base = Config()
    data = DataConfig(
        name="records", path=str(folder), image_size=size.side, workers=workers, prepare=False
    )
    regions = dataclasses.replace(base.model.regions, stride=16, max_regions=64)
    model = dataclasses.replace(base.model, regions=regions)
    train = dataclasses.replace(base.train, batch_size=size.batch)
    return dataclasses.replace(base, data=data, model=model, train=train)


def write_jpegs(folder: Path, examples: int, side: int, distinct: int) -> None:
    """A split of edits whose pictures are ``distinct`` different JPEGs, over and over."""
    folder.mkdir()
    pictures = [jpeg(seed, side) for seed in range(distinct)]
    records = (
        EditRecord(
            f"e{n}",
            "benchmark",
            f"What if the lamp fell {n % 7} times?",
            pictures[n % distinct],
            pictures[(n + 1) % distinct],
        )
        for n in range(examples)
    )
    path = folder / shards.shard_name("train", 0, 1)
    shards.write_shard(path, path.name, records)
    shard = shards.describe_shard(path, path.name, examples)
    manifest = shards.Manifest(
        shards.SCHEMA_VERSION,
        "benchmark",
        "train",
        "",
        {},
        {},
        examples,
        examples,
        {},
        0,
        [],
        [shard],
    )
    content = files.to_json(dataclasses.asdict(manifest))
    files.write_text(shards.manifest_path(folder, "train"), content)


def jpeg(seed: int, side: int) -> bytes:
    """About as many bytes as a photograph: blurred noise of many sizes."""
    random, pixels = np.random.default_rng(seed), np.zeros((side, side, 3))
    for cells in (5, 17, 61, side // 4):
        noise = Image.fromarray(random.integers(0, 256, (cells, cells, 3)).astype(np.uint8))
        pixels += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC)) / 4
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_cache(folder: Path, size: Size) -> None:
    """Random features with the shapes of the paper's model at 512 px."""
    folder.mkdir()
    values: Any = to_config_dict(Config())
    if size is SIZES["full"]:
        values.model.update_from_flattened_dict(paper_model())
        values.data.image_size = 512
    values.data.update(name="synthetic", inputs="features")
    values.train.update(batch_size=size.batch, eval_examples=0)
    batch = next(synthetic.batches(from_config_dict(values)))
    assert isinstance(batch, FeatureBatch)
    batch = dataclasses.replace(batch, category=np.zeros(size.batch, np.int32))
    arrays = {name: np.asarray(x) for name, x in features.flatten(batch).items()}
    fields: dict[str, list[Any]] = {k: [x.dtype.name, list(x.shape[1:])] for k, x in arrays.items()}
    path = features.shard_path(folder, "train", 0, 1)
    shard = features.write_shard(path, [arrays] * (size.cached // size.batch))
    manifest = features.FeatureManifest(
        features.VERSION, "train", {}, "", {}, fields, shard.examples, [shard]
    )
    content = files.to_json(dataclasses.asdict(manifest))
    files.write_text(features.manifest_path(folder, "train"), content)


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


if __name__ == "__main__":
    main()
