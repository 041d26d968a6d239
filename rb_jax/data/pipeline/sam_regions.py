"""Regions of examples from SAM's automatic masks, where no file brings any."""

from __future__ import annotations

import dataclasses

from rb_jax.data.formats.schema import EditExample
from rb_jax.models.encoders.sam import SAM
from rb_jax.models.encoders.sam.automatic import automatic_masks, regions


def with_regions(sam: SAM, example: EditExample, grid: int, max_regions: int) -> EditExample:
    """The example with the largest automatic masks as its regions, unless it has some."""
    if example.regions is not None:
        return example
    masks = automatic_masks(sam, example.source)
    return dataclasses.replace(example, regions=regions(masks.masks, grid, max_regions))
