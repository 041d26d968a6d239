"""Runs the frozen encoders over a data set, once: ``rb-jax data cache``.

Each process works on shards of its own with all its local devices, so that none waits for another.
A shard is whole or not there; what is there is not computed again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from rb_jax.checkpoint.stored import load_weights
from rb_jax.config import Config, MeshConfig
from rb_jax.data.cache import features
from rb_jax.data.cache.features import (
    VERSION,
    FeatureManifest,
    flatten,
    manifest_path,
    weights_hash,
)
from rb_jax.data.cache.prepared import folder_hash
from rb_jax.data.formats.schema import EditExample
from rb_jax.data.formats.shards import Shard, read_manifest, splits_in
from rb_jax.data.pipeline import loader
from rb_jax.data.pipeline.sam_regions import with_regions
from rb_jax.errors import InputError
from rb_jax.files import to_json, write_text
from rb_jax.models.types import ENCODERS, Batch, FeatureBatch
from rb_jax.runtime.progress import progress_bar
from rb_jax.sharding.mesh import batch_sharding, compiler_options, make_mesh, shard_batch
from rb_jax.weights.params import Params, cast_params, definition, merge_partial

Encode = Callable[[list[EditExample]], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Job:
    """A split of a data set, cut into shards."""

    folder: Path
    split: str
    examples: int
    shard_examples: int
    made_with: dict[str, Any]  # version, preprocessing, encoders, source: what the values come from

    @property
    def shards(self) -> int:
        return -(-self.examples // self.shard_examples)

    def path(self, shard: int) -> Path:
        return features.shard_path(self.folder, self.split, shard, self.shards)

    def report(self, shard: int) -> Path:
        """Beside an unfinished split's shards: what each is, and what its values come from."""
        return self.folder / f".{self.path(shard).name}.json"

    def numbers(self, shard: int) -> range:
        first = shard * self.shard_examples
        return range(first, min(first + self.shard_examples, self.examples))


def cache_features(
    data: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    split: str = "train",
    *,
    batch_size: int = 16,
    shard_examples: int = 256,
    process_index: int = 0,
    process_count: int = 1,
    progress: bool = True,
) -> FeatureManifest | None:
    """Writes the features of a split; the same command goes on with what is missing.

    ``data`` is a folder of records (``rb-jax data import``) or in the Reason50K layout,
    ``checkpoint`` a whole model's weights. None when other processes still have shards to make.
    Raises InputError when ``out`` holds features of other ingredients, and for examples without a
    target.
    """
    for name, value in (("batch_size", batch_size), ("shard_examples", shard_examples)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not 0 <= process_index < process_count:
        raise InputError(f"process_index={process_index} is not below {process_count=}, from 0")
    config, params = load_weights(checkpoint)
    if config.data.inputs != "pixels" or config.train.task != "edit":
        raise InputError(f"{checkpoint}: has no encoders; give the weights of a whole model")
    config = _pointed_at(config, Path(data), split)
    source = loader.open_source(config.data, split)
    job = Job(
        Path(out),
        split,
        len(source),
        shard_examples,
        {
            "version": VERSION,
            "preprocessing": features.preprocessing(config),
            "encoders": weights_hash(params),
            "source": {"fingerprint": _fingerprint(config), "examples": len(source)},
        },
    )
    if manifest_path(job.folder, split).exists():
        return _finished(job)
    job.folder.mkdir(parents=True, exist_ok=True)
    mine = range(process_index, job.shards, process_count)
    missing = [shard for shard in mine if _made(job, shard) is None]
    if missing:
        _make_shards(job, config, params, source, missing, batch_size, progress)
    return _publish(job)


def _pointed_at(config: Config, data: Path, split: str) -> Config:
    """The configuration, reading this data set."""
    name = "records" if splits_in(data) else "folder"
    given = dataclasses.replace(
        config.data, name=name, path=str(data), mix=(), buckets=(), bucket_count=0, split=split
    )
    return dataclasses.replace(config, data=given)


def _fingerprint(config: Config) -> str:
    """Of the data set's content."""
    if config.data.name == "records":
        return read_manifest(config.data.path, config.data.split).fingerprint
    return folder_hash(config.data.path, config.data.split)


def _finished(job: Job) -> FeatureManifest:
    manifest = features.read_manifest(job.folder, job.split)
    there = {key: getattr(manifest, key) for key in job.made_with}
    _check_same(job, there)
    return manifest


def _check_same(job: Job, there: dict[str, Any]) -> None:
    differing = [key for key, value in job.made_with.items() if there.get(key) != value]
    if differing:
        raise InputError(
            f"{job.folder}: holds features of {job.split} made otherwise ({', '.join(differing)} "
            "differ); choose another folder or delete it"
        )


def _made(job: Job, shard: int) -> dict[str, Any] | None:
    """The report of a finished shard; InputError if it was made from other ingredients."""
    try:
        report = json.loads(job.report(shard).read_text("utf-8"))
        ingredients = report["made_with"]
        size = job.path(shard).stat().st_size
    except (OSError, ValueError, KeyError):
        return None
    _check_same(job, ingredients)
    return report if size == report["shard"]["bytes"] else None


def _make_shards(job, config, params, source, missing, batch_size, progress) -> None:
    encode = encoder(config, params, batch_size)
    total = sum(len(job.numbers(shard)) for shard in missing)
    with progress_bar(total, f"features of {job.split}", "example", enabled=progress) as bar:
        for shard in missing:
            fields: dict[str, list[Any]] = {}

            def batches(shard=shard, fields=fields) -> Iterator[dict[str, np.ndarray]]:
                for examples in _read(source, job.numbers(shard), batch_size):
                    arrays = encode(examples)
                    fields.update({k: [x.dtype.name, list(x.shape[1:])] for k, x in arrays.items()})
                    yield arrays
                    bar.update(len(examples))

            written = dataclasses.asdict(features.write_shard(job.path(shard), batches()))
            report = {"made_with": job.made_with, "fields": fields, "shard": written}
            write_text(job.report(shard), to_json(report))


def _read(source: loader.Source, numbers: range, batch_size: int) -> Iterator[list[EditExample]]:
    """Examples with their targets, decoded ahead by threads."""

    def take(start: int) -> list[EditExample]:
        examples = loader.take(source, range(start, min(start + batch_size, numbers.stop)))
        for example in examples:
            if example.target is None:
                raise InputError(f"example {example.id}: has no target to learn from")
        return examples

    starts = grain.MapDataset.range(numbers.start, numbers.stop, batch_size)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(starts.map(take).to_iter_dataset(options))


def encoder(config: Config, params: Params, batch_size: int) -> Encode:
    """Examples -> the arrays of their features, computed on all local devices."""
    mesh = make_mesh(MeshConfig(data=-1), jax.local_devices())
    graphdef, shapes, _ = definition(config)
    weights = {p: x for p, x in params.items() if p.split("/")[0] in ENCODERS}
    weights = cast_params(config, jax.device_put(weights, jax.local_devices()[0]))
    collate = loader.Collator(config)
    rows = -(-batch_size // mesh.size) * mesh.size
    run = _compiled(config, graphdef, shapes, mesh)
    everywhere = jax.device_put(weights, jax.sharding.NamedSharding(mesh, jax.P()))
    with_sam = config.model.regions.encoder == "sam"
    sam = merge_partial(graphdef, weights, shapes).sam if with_sam else None

    def encode(examples: list[EditExample]) -> dict[str, np.ndarray]:
        if sam is not None:
            examples = [with_regions(sam, e, collate.grid, collate.max_regions) for e in examples]
        count = len(examples)
        padded = examples + [examples[-1]] * (rows - count)
        with jax.set_mesh(mesh):
            computed = jax.device_get(run(everywhere, shard_batch(mesh, collate(padded))))
        return {name: np.asarray(x)[:count] for name, x in computed.items()}

    return encode


def _compiled(config: Config, graphdef: Any, shapes: Params, mesh: Mesh) -> Any:
    def run(weights: Params, batch: Batch) -> dict[str, jax.Array]:
        model = merge_partial(graphdef, weights, shapes)
        target = model.encode_latents(batch.target)
        encoded = FeatureBatch(model.encode(batch), target, batch.category)
        return flatten(encoded)

    return jax.jit(run, out_shardings=batch_sharding(mesh), compiler_options=compiler_options(mesh))


def _publish(job: Job) -> FeatureManifest | None:
    """Writes the manifest once all shards are there; the last process to finish does."""
    if manifest_path(job.folder, job.split).exists():
        return _finished(job)
    reports = [_made(job, shard) for shard in range(job.shards)]
    if not all(reports):
        return None
    finished = [report for report in reports if report]
    manifest = FeatureManifest(
        **job.made_with,
        split=job.split,
        fields=finished[0]["fields"],
        examples=job.examples,
        shards=[Shard(**report["shard"]) for report in finished],
    )
    write_text(manifest_path(job.folder, job.split), to_json(dataclasses.asdict(manifest)))
    for shard in range(job.shards):
        job.report(shard).unlink(missing_ok=True)
    return manifest
