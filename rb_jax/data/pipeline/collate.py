"""From examples to the arrays of a batch: tokens, object names, regions.

Needs no JAX (``ArrayCollator.arrays``): the PyTorch side reads its inputs through the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rb_jax.config import Config
from rb_jax.data.formats.schema import EditExample, Regions, category_number
from rb_jax.data.formats.untrusted import Offenders
from rb_jax.data.inputs.objects import extract_objects
from rb_jax.data.inputs.regions import segment
from rb_jax.data.inputs.text import EMPTY_INSTRUCTION, Rows, Tokenizer, too_long
from rb_jax.errors import InputError

OBJECT_TOKENS = 8  # K: tokens of one object's name, <bos> and <eos> included


class ArrayCollator:
    """Tokenizers and sizes of a configuration, applied to examples."""

    def __init__(self, config: Config):
        model, data = config.model, config.data
        # An autoencoder learns from pictures: what is written about them is not looked at.
        self.pictures_only = config.train.task == "autoencoder"
        self.text_tokenizer = Tokenizer.load(data.text_tokenizer)
        self.prompt_tokenizer = Tokenizer.load(data.prompt_tokenizer)
        self.text_length = model.text.max_length
        self.prompt_length = model.mllm.max_length
        self.max_objects = model.frce.max_objects
        self.max_regions = model.regions.max_regions
        self.image_size = data.image_size
        self.grid = model.region_grid(data.image_size)  # of a picture of that size
        for key, size, tokenizer in [
            ("model.text.vocab_size", model.text.vocab_size, self.text_tokenizer),
            ("model.mllm.vocab_size", model.mllm.vocab_size, self.prompt_tokenizer),
        ]:
            if size < tokenizer.vocab_size:
                raise InputError(
                    f"config.{key}: {size} is less than the tokenizer's {tokenizer.vocab_size}"
                )

    def arrays(self, examples: Sequence[EditExample]) -> dict[str, Any]:
        """The fields of a Batch, texts as Rows; ``target`` is None when no example has one.

        Raises InputError, naming the example, if an instruction is empty or too long.
        """
        text, prompt = self._instructions(examples)
        objects, object_mask = self._objects(examples)
        regions = [self.segment(example) for example in examples]
        targets = [e.target for e in examples if e.target is not None]
        if targets and len(targets) != len(examples):
            raise ValueError("either all examples of a batch have a target, or none has")
        return {
            "text": text,
            "prompt": prompt,
            "objects": objects,
            "object_mask": object_mask,
            "category": np.array([category_number(e.category) for e in examples], np.int32),
            "source": np.stack([e.source for e in examples]),
            "target": np.stack(targets) if targets else None,
            "regions": np.stack([masks for masks, _ in regions]),
            "region_mask": np.stack([valid for _, valid in regions]),
        }

    def segment(self, example: EditExample) -> Regions:
        """The regions of its source: those that it comes with, else the grid's."""
        if self.pictures_only:
            shape = (self.max_regions, self.grid, self.grid)
            return np.zeros(shape, bool), np.zeros(self.max_regions, bool)
        grid = self.grid * example.source.shape[0] // self.image_size
        return example.regions or segment(example.source, grid, self.max_regions)

    def _names(self, example: EditExample) -> Sequence[str]:
        """Of the objects that the instruction names."""
        return example.objects or extract_objects(example.instruction, self.max_objects)

    def check_texts(self, texts: Iterable[tuple[str, str]]) -> None:
        """InputError naming every instruction that is empty or too long, and the keys to raise.

        ``texts`` are (place, instruction) of each. Nothing is asked when only pictures are used.
        """
        if self.pictures_only:
            return
        places, sentences = zip(*texts, strict=True)
        self._check(places, sentences, *self._tokens(sentences))

    def _tokens(self, sentences: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """For the text tower, and for the language model."""
        same = self.text_tokenizer.fingerprint == self.prompt_tokenizer.fingerprint
        text = self.text_tokenizer.tokenize(sentences)
        return text, text if same else self.prompt_tokenizer.tokenize(sentences)

    def _check(self, places: Sequence[str], sentences: Sequence[str], *tokens: list) -> None:
        """InputError naming all offenders of these instructions."""
        limits = (
            ("config.model.text.max_length", self.text_length),
            ("config.model.mllm.max_length", self.prompt_length),
        )
        wrong, keys = Offenders(), {}
        for place, sentence, *lists in zip(places, sentences, *tokens, strict=True):
            where = f"{place}: " if place else ""
            if not sentence.strip():
                wrong.add(f"{where}{EMPTY_INSTRUCTION}")
            over = [(len(ids), *limit) for ids, limit in zip(lists, limits, strict=True)]
            over = [(n, key, length) for n, key, length in over if n + 2 > length]
            if over:
                count, _, length = max(over, key=lambda each: each[0] - each[2])
                wrong.add(f"{where}{too_long(count, length)}")
                keys |= {f"{key}={length}": None for _, key, length in over}
        advice = f"shorten them, or train with more than {' and '.join(keys)}"
        wrong.check(advice if keys and places[0] else "")

    def _instructions(self, examples: Sequence[EditExample]) -> tuple[Rows, Rows]:
        """The instructions for the text tower [B T] and for the language model [B L]."""
        sentences = ["" if self.pictures_only else e.instruction for e in examples]
        text, prompt = self._tokens(sentences)
        if not self.pictures_only:
            places = [e.place or (f"example {e.id}" if e.id else "") for e in examples]
            self._check(places, sentences, text, prompt)
        return (
            self.text_tokenizer.pack(text, self.text_length),
            self.prompt_tokenizer.pack(prompt, self.prompt_length),
        )

    def _objects(self, examples: Sequence[EditExample]) -> tuple[Rows, np.ndarray]:
        """[B, O, K] tokens of the objects' names; an absent object is <bos> <eos>, unmasked."""
        names, mask = [], np.zeros((len(examples), self.max_objects), bool)
        for row, example in enumerate(examples):
            objects = () if self.pictures_only else self._names(example)
            objects = objects[: self.max_objects]
            mask[row, : len(objects)] = True
            names += [*objects, *[""] * (self.max_objects - len(objects))]
        flat = self.text_tokenizer.encode(names, OBJECT_TOKENS, truncate=True)
        shape = (len(examples), self.max_objects, OBJECT_TOKENS)
        return Rows(flat.ids.reshape(shape), flat.mask.reshape(shape)), mask
