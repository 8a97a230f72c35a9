"""Tokenising with a tokenizer made here: ids, pairs, cutting, and its errors."""

import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from goat_jax.data.pipeline.tokenize import encode, load_tokenizer
from goat_jax.data.tasks.text import Examples
from goat_jax.errors import UserError
from kinds import expect

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT tokenizer with eight words, stored as Hugging Face stores one."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary, model_max_length=64)
    tokenizer.save_pretrained(str(path))
    return path


def single(*texts):
    return Examples((texts,), np.arange(len(texts), dtype=np.int32))


def test_single_sentences_are_ragged_and_unpadded(folder):
    encoded = encode(load_tokenizer(folder), single("a b", "c"), max_length=16)
    assert [ids.tolist() for ids in encoded.input_ids] == [[2, 4, 5, 3], [2, 6, 3]]
    assert encoded.input_ids[0].dtype == encoded.lengths.dtype == np.int32
    assert encoded.lengths.tolist() == [4, 3] and encoded.labels.tolist() == [0, 1]
    assert encoded.token_type_ids is None and encoded.pad_id == 0 and encoded.truncated == 0
    assert len(encoded) == 2


def test_pairs_have_token_types(folder):
    examples = Examples((("a b",), ("c",)), np.zeros(1, np.int32))
    encoded = encode(load_tokenizer(folder), examples, max_length=16)
    assert encoded.input_ids[0].tolist() == [2, 4, 5, 3, 6, 3]
    assert encoded.token_type_ids is not None
    assert encoded.token_type_ids[0].tolist() == [0, 0, 0, 0, 1, 1]


def test_long_rows_are_cut_and_counted(folder):
    encoded = encode(load_tokenizer(folder), single("a b c d", "a b", "a"), max_length=4)
    assert [ids.tolist() for ids in encoded.input_ids] == [[2, 4, 5, 3], [2, 4, 5, 3], [2, 4, 3]]
    assert encoded.truncated == 1  # the second fits exactly


def test_a_pair_loses_the_end_of_its_longer_text(folder):
    examples = Examples((("a b c d",), ("d",)), np.zeros(1, np.int32))
    encoded = encode(load_tokenizer(folder), examples, max_length=6)
    assert encoded.input_ids[0].tolist() == [2, 4, 5, 3, 7, 3] and encoded.truncated == 1


@pytest.mark.parametrize("max_length", [0, 2, 65])
def test_a_max_length_that_does_not_fit(folder, max_length):
    with pytest.raises(UserError, match=f"max_length {max_length} .* choose 3 to 64"):
        encode(load_tokenizer(folder), single("a"), max_length)


def test_a_pair_needs_more_room(folder):
    examples = Examples((("a",), ("b",)), np.zeros(1, np.int32))
    assert encode(load_tokenizer(folder), examples, max_length=5).lengths.tolist() == [5]
    with pytest.raises(UserError, match=r"max_length 4 .* choose 5 to 64"):
        encode(load_tokenizer(folder), examples, max_length=4)


def test_without_a_pad_token_any_id_serves(folder):
    tokenizer = load_tokenizer(folder)
    changed = expect(PreTrainedTokenizerFast, tokenizer)
    changed.pad_token, changed.eos_token = None, "[SEP]"
    assert encode(tokenizer, single("a"), 8).pad_id == 3


def test_folders_that_hold_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no such tokenizer folder"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"has no tokenizer: it needs one of tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(UserError, match="the tokenizer cannot be loaded") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
