"""A tiny stand-in for ReasonWorld and a configuration over a folder written from it."""

import dataclasses

import numpy as np

from rb_jax.config import Config, DataConfig
from rb_jax.data.formats.reason50k import write_dataset
from rb_jax.data.formats.schema import CATEGORIES, EditExample

SIZE = 32


class FakeWorld:
    """Coloured squares; every example's source differs."""

    def __getitem__(self, index: int) -> EditExample:
        source = np.full((SIZE, SIZE, 3), (index * 37 % 256, index % 256, 90), np.uint8)
        source[4:20, 4:20] = 200
        return EditExample(
            id=f"fake-{index}",
            category=CATEGORIES[index % 4],
            instruction=f"What if the ball {index} fell?",
            objects=("ball",) * (index % 3 > 0) + ("floor",) * (index % 3 > 1),
            source=source,
            target=255 - source,
            target_caption=f"ball {index} on the floor" if index % 2 else None,
        )


def folder_config(root, count: int, batch_size: int = 4, split: str = "train") -> Config:
    """Writes ``count`` fake examples and returns a configuration that reads them."""
    write_dataset(FakeWorld(), count, root, split, progress=False)
    config = Config()
    return dataclasses.replace(
        config,
        data=DataConfig(name="folder", path=str(root), image_size=SIZE),
        train=dataclasses.replace(config.train, batch_size=batch_size),
    )
