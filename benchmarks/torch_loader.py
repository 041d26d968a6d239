"""The PyTorch side of ``benchmarks.loader``: a map-style data set behind a DataLoader."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Generator, Iterator

import numpy as np
from PIL import Image

from rb_jax.config import Config
from rb_jax.data.formats.schema import EditExample
from rb_jax.data.formats.shards import RecordSource
from rb_jax.data.pipeline.collate import ArrayCollator


class Edits:
    """``usual``: pictures as a data set of PyTorch decodes them, with Pillow and in full."""

    def __init__(self, config: Config, usual: bool):
        self.source = RecordSource(config.data.path, "train", config.data.image_size)
        self.size, self.usual = config.data.image_size, usual

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> EditExample:
        if not self.usual:
            return self.source[index]
        record = self.source.records[index]
        return EditExample(
            id=record.id,
            category="",
            instruction=record.instruction,
            objects=record.objects,
            source=self.decode(record.source),
            target=self.decode(record.target or b""),
        )

    def decode(self, picture: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC))


@dataclasses.dataclass
class Collate:
    """To a Batch's arrays, as tensors."""

    arrays: ArrayCollator

    def __call__(self, examples: list[EditExample]) -> dict:
        import torch

        made = self.arrays.arrays(examples)
        for name in ("text", "prompt", "objects"):
            rows = made.pop(name)
            made |= {f"{name}_ids": rows.ids, f"{name}_mask": rows.mask}
        return {name: torch.from_numpy(x) for name, x in made.items()}


@contextlib.contextmanager
def torch_batches(config: Config, usual: bool) -> Iterator[Iterator[int]]:
    """Endless counts of the examples in each batch; the worker processes end with the context."""
    from torch.utils.data import DataLoader

    batches = DataLoader(
        Edits(config, usual),  # pyright: ignore[reportArgumentType]
        batch_size=config.train.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=config.data.workers,
        collate_fn=Collate(ArrayCollator(config)),
        persistent_workers=True,
        multiprocessing_context="spawn",
    )

    def run() -> Generator[int, None, None]:
        while True:
            for batch in batches:
                yield len(batch["source"])

    running = run()
    yield running
    running.close()
    batches._iterator = None  # ends the workers now
