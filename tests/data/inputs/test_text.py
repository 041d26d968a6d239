"""The tokenizer: reversible, framed, and clear about what does not fit."""

import numpy as np
import pytest

from rb_jax.data.inputs.text import SHIPPED_VOCAB_SIZE, Tokenizer, english, train_tokenizer
from rb_jax.errors import InputError

ODD = [
    "What would happen if this ice cube were left in the sun?",
    "  leading, trailing and   double spaces ",
    "Straße İstanbul ΣΊΣΥΦΟΣ ﬁne Ⅷ ½ ①",
    "日本の猫が寝る 고양이 กาแฟ עברית العربية",
    "👩‍👩‍👧‍👦🏳️‍🌈 z̷̢̛a͝l̵g̶o̸",
    "tab\tnew\nline\r\x00\x1b[0m \ufeff\u200b\u202e",
    "<pad><bos><eos> <unused1000> </s>",
    "e\u0301 vs \u00e9",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load()


@pytest.mark.parametrize("text", ODD)
def test_reversible(tokenizer, text):
    (ids,) = tokenizer.tokenize([text])
    assert tokenizer.decode(ids) == tokenizer.normalize(text)
    assert all(2 < i < SHIPPED_VOCAB_SIZE for i in ids)


def test_shipped_ids(tokenizer):
    assert tokenizer.vocab_size == SHIPPED_VOCAB_SIZE
    assert (tokenizer.pad, tokenizer.bos, tokenizer.eos) == (0, 1, 2)


def test_frame_and_padding(tokenizer):
    text = tokenizer.encode(["the cat", "a"], 12)
    assert text.ids.shape == text.mask.shape == (2, 12)
    assert text.ids.dtype == np.int32 and text.mask.dtype == bool
    for ids, mask in zip(text.ids, text.mask, strict=True):
        length = int(mask.sum())
        assert mask[:length].all() and not mask[length:].any()
        assert ids[0] == 1 and ids[length - 1] == 2 and (ids[length:] == 0).all()


@pytest.mark.parametrize("text", ["", "   ", "\n\t\u3000"])
def test_empty_instruction(tokenizer, text):
    with pytest.raises(InputError, match="empty"):
        tokenizer.encode([text], 16)


def test_length_limit_is_exact(tokenizer):
    text = "what would the cat do?"
    count = len(tokenizer.tokenize([text])[0])
    assert tokenizer.encode([text], count + 2).mask.all()
    with pytest.raises(InputError, match=f"has {count} tokens and the limit is {count - 1}"):
        tokenizer.encode([text], count + 1)


def test_names_are_cut_and_may_be_empty(tokenizer):
    text = tokenizer.encode(["a very long name of one object", ""], 5, truncate=True)
    assert text.mask.sum(axis=1).tolist() == [5, 2]
    assert text.ids[0, -1] == 2 and text.ids[1, :3].tolist() == [1, 2, 0]


def test_invalid_unicode(tokenizer):
    with pytest.raises(InputError, match="Unicode"):
        tokenizer.encode(["half a pair \ud800"], 32)


def test_training_is_deterministic_and_pads_the_vocabulary(tmp_path):
    texts = 2 * english()[:20]
    a = train_tokenizer(texts, 2000, tmp_path / "a.json")
    train_tokenizer(list(reversed(texts)), 2000, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert a.vocab_size == 2000
    again = Tokenizer.load(tmp_path / "a.json")
    assert again.tokenize(texts) == a.tokenize(texts) and again.fingerprint == a.fingerprint
    assert all(
        again.decode(ids) == text for ids, text in zip(again.tokenize(texts), texts, strict=True)
    )


def test_vocabulary_smaller_than_the_bytes(tmp_path):
    with pytest.raises(ValueError, match="at least 259"):
        train_tokenizer(["a"], 100, tmp_path / "a.json")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[1, 2]"])
def test_not_a_tokenizer(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: not a tokenizer"):
        Tokenizer.load(tmp_path / "a.json")


def test_missing_tokenizer(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="cannot read the tokenizer"):
            Tokenizer.load(path)


def test_tokenizers_of_other_models(tmp_path):
    data = Tokenizer.load().to_json().replace("<bos>", "<s>").replace("<eos>", "</s>")
    (tmp_path / "llama.json").write_text(data.replace("<pad>", "<unk>"), encoding="utf-8")
    llama = Tokenizer.load(tmp_path / "llama.json")
    assert (llama.pad, llama.bos, llama.eos) == (0, 1, 2)
    (tmp_path / "none.json").write_text(data.replace("</s>", "<stop>"), encoding="utf-8")
    with pytest.raises(InputError, match="no eos token"):
        Tokenizer.load(tmp_path / "none.json")
