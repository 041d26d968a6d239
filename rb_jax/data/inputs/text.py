"""Text to token ids, and the command that trains the shipped tokenizer.

The shipped tokenizer is a small byte-level BPE over lower-cased, NFKC-normalised text, so any
sentence in any script has tokens and decodes to itself. Tokenizer files of other models work too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from rb_jax.errors import InputError
from rb_jax.files import whole_file

SPECIAL = ("<pad>", "<bos>", "<eos>")
SHIPPED_VOCAB_SIZE = 1024
ENGLISH_WEIGHT = 12
# What other models call the same three tokens, ours first, then LLaMA's and CLIP's. A file
# without a padding token is padded with its end token; the mask tells them apart.
_NAMES = {
    "bos": ("<bos>", "<s>", "<|startoftext|>"),
    "eos": ("<eos>", "</s>", "<|endoftext|>"),
    "pad": ("<pad>", "<unk>", "</s>", "<|endoftext|>"),
}


class Rows(NamedTuple):
    """Token ids and their mask, both [N, length]; a row's padding comes last."""

    ids: np.ndarray
    mask: np.ndarray


class Tokenizer:
    """A tokenizer file with one way of framing: ``<bos> tokens <eos>``, then padding."""

    def __init__(self, data: bytes, name: str):
        """``data`` is the content of a ``tokenizer.json``; InputError if it is not one."""
        try:
            self._backend = Backend.from_str(data.decode("utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{name}: not a tokenizer.json of the tokenizers library") from error
        # Someone who types "<eos>" means these five characters.
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.fingerprint = hashlib.sha256(data).hexdigest()
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.pad, self.bos, self.eos = (
            _special_id(vocabulary, kind, name) for kind in ("pad", "bos", "eos")
        )
        # Ids may have gaps, and an embedding table must hold the largest.
        self.vocab_size = max(vocabulary.values()) + 1

    @classmethod
    def load(cls, path: str | os.PathLike[str] = "") -> Tokenizer:
        """Reads a tokenizer file; the empty path means the one shipped with the package."""
        if not str(path):
            shipped = resources.files("rb_jax") / "assets" / "tokenizer.json"
            return cls(shipped.read_bytes(), "rb_jax/assets/tokenizer.json")
        try:
            return cls(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"{path}: cannot read the tokenizer ({error.strerror})") from error

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Bare token ids of each text, without <bos> and <eos>; InputError if it is not text."""
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"a text is needed, got {type(text).__name__}: {text!r:.60}")
        try:
            encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeError) as error:  # half of a surrogate pair
            raise InputError("the text holds characters that are not valid Unicode") from error
        return [encoding.ids for encoding in encodings]

    def encode(self, texts: Sequence[str], length: int, truncate: bool = False) -> Rows:
        """Texts to [N, length] ids and mask.

        ``truncate=False`` is for instructions: an empty one, or one that does not fit, raises
        InputError. ``truncate=True`` is for names: they are cut, and may be empty.
        """
        tokens = self.tokenize(texts)
        if not truncate:
            for text, ids in zip(texts, tokens, strict=True):
                check_instruction(text, len(ids), length)
        return self.pack(tokens, length)

    def pack(self, tokens: Sequence[Sequence[int]], length: int) -> Rows:
        """Frames and pads bare ids to [N, length], cutting what does not fit."""
        if length < 2:
            raise ValueError(f"length must be at least 2 for <bos> and <eos>, got {length}")
        ids = np.full((len(tokens), length), self.pad, np.int32)
        mask = np.zeros((len(tokens), length), bool)
        for row, content in enumerate(tokens):
            framed = [self.bos, *content[: length - 2], self.eos]
            ids[row, : len(framed)] = framed
            mask[row, : len(framed)] = True
        return Rows(ids, mask)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out."""
        special = {self.pad, self.bos, self.eos}
        return self._backend.decode([int(i) for i in ids if int(i) not in special])

    def to_json(self) -> str:
        """The content of the tokenizer's file."""
        return self._backend.to_str()

    def normalize(self, text: str) -> str:
        """What ``decode`` gives back for a text: lower-cased and in Unicode's NFKC form."""
        normalizer = self._backend.normalizer
        return normalizer.normalize_str(text) if normalizer is not None else text


def check_instruction(text: str, tokens: int, length: int) -> None:
    """InputError if an instruction is empty or its tokens and their frame exceed ``length``."""
    if not text.strip():
        raise InputError(EMPTY_INSTRUCTION)
    if tokens + 2 > length:
        raise InputError(too_long(tokens, length))


EMPTY_INSTRUCTION = "the instruction is empty; say what should happen to the picture"


def too_long(tokens: int, length: int) -> str:
    """What is wrong with an instruction that does not fit with its frame of two tokens."""
    return f"the instruction has {tokens} tokens and the limit is {length - 2}"


def _special_id(vocabulary: dict[str, int], kind: str, name: str) -> int:
    for token in _NAMES[kind]:
        if token in vocabulary:
            return vocabulary[token]
    raise InputError(f"{name}: no {kind} token; it needs one of {' '.join(_NAMES[kind])}")


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, out: str | os.PathLike[str]
) -> Tokenizer:
    """Trains the byte-level BPE on texts and writes it to ``out``; the same texts, the same bytes.

    The vocabulary has exactly ``vocab_size`` entries: <pad> 0, <bos> 1, <eos> 2, the 256 bytes,
    merges, and unused entries if the texts have fewer merges to give.
    """
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        min_frequency=2,
        show_progress=False,
    )
    backend.train_from_iterator(sorted(texts), trainer)
    description = json.loads(backend.to_str())
    vocabulary = description["model"]["vocab"]
    if len(vocabulary) > vocab_size:
        raise ValueError(f"vocab_size must be at least {len(vocabulary)}, got {vocab_size}")
    for index in range(len(vocabulary), vocab_size):
        vocabulary[f"<unused{index}>"] = index
    data = (json.dumps(description, ensure_ascii=False, indent=1) + "\n").encode()
    out = Path(out)
    with whole_file(out) as partial:
        partial.write_bytes(data)
    return Tokenizer(data, str(out))


def training_texts(count: int) -> list[str]:
    """Sentences of ReasonWorld's train split and common English."""
    from rb_jax.data.reasonworld import ReasonWorld

    world = ReasonWorld("train", seed=0, size=32)
    texts = []
    for index in range(count):
        example = world[index]
        texts += [example.instruction, example.source_caption, example.target_caption]
        texts += example.objects
    # Each English line counts several times, or ReasonWorld's own words would leave no room.
    return texts + ENGLISH_WEIGHT * english()


def english() -> list[str]:
    """Everyday words and phrases, so that sentences from outside ReasonWorld stay short too."""
    listed = resources.files("rb_jax") / "assets" / "english.txt"
    return listed.read_text("utf-8").splitlines()


def main(arguments: Sequence[str] | None = None) -> None:
    """python -m rb_jax.data.inputs.text --out=tokenizer.json"""
    parser = argparse.ArgumentParser(description=(main.__doc__ or "").strip())
    parser.add_argument("--out", required=True, help="the file to write")
    parser.add_argument("--count", type=int, default=4096, help="ReasonWorld examples to read")
    options = parser.parse_args(arguments)
    texts = training_texts(options.count)
    tokenizer = train_tokenizer(texts, SHIPPED_VOCAB_SIZE, options.out)
    lengths = [len(ids) for ids in tokenizer.tokenize(texts)]
    print(f"{options.out}: {len(set(texts))} texts, longest {max(lengths)} tokens")


if __name__ == "__main__":
    main()
