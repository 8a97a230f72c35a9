"""Beam search finds the answers that transformers' beam search finds."""

from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest

from decoder_parity import CASES, write_torch
from goat_jax.errors import UserError
from goat_jax.evaluation.beams import BeamSearch
from goat_jax.evaluation.sampler import Generator, Sampling
from goat_jax.models.decoder.model import Decoder
from goat_jax.models.load import load_model
from kinds import expect

torch = pytest.importorskip("torch")
NEW_TOKENS = 7
ENDS = (None, 12, 24, 54)


@pytest.mark.slow
def test_answers_are_torchs(tmp_path):
    """Prompts of two lengths; with some end tokens an answer ends early, with others never."""
    name, settings = CASES["llama3"]
    ids = np.random.default_rng(0).integers(3, 60, (3, 6))
    prompts = [ids[0].tolist(), ids[1, 2:].tolist(), ids[2].tolist()]
    mask = np.ones_like(ids)
    mask[1, :2] = 0
    theirs = write_torch(tmp_path, name, settings | {"eos_token_id": None})
    model = expect(Decoder, load_model(tmp_path, key=jax.random.key(0)).model)
    tokenizer = cast(Any, SimpleNamespace(eos_token_id=None))
    generator, ends = Generator(model, tokenizer, multiple=4), []
    for end in ENDS:
        whole = theirs.generate(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            max_new_tokens=NEW_TOKENS,
            num_beams=3,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=63,
        )[:, 6:].tolist()
        generator.end_ids = () if end is None else (end,)
        with jax.default_matmul_precision("highest"):
            own = generator.search(prompts, Sampling(max_new_tokens=NEW_TOKENS, beams=3))
        for answer, expected in zip(own, whole, strict=True):
            assert answer == [token for token in expected if token != 63]
        ends += [len(answer) for answer in own]
    assert min(ends) < NEW_TOKENS == max(ends)


def test_a_search_ends_when_no_better_answer_is_possible():
    search = BeamSearch(2, end_ids=[9], longest=10)
    search.advance([-0.5, -1.0, -1.5, -2.0], [0, 0, 0, 0], [9, 7, 8, 6])
    assert search.open and search.finished == [(-0.5, [9])]  # one of two
    search.advance([-1.2, -3.0, -4.0, -5.0], [0, 0, 1, 1], [9, 5, 4, 9])
    assert search.finished == [(-0.5, [9]), (-0.6, [7, 9])] and not search.open
    assert search.answer == [9]
    search.advance([-3.1, -3.2, -4.0, -5.0], [0, 1, 1, 1], [9, 5, 4, 8])
    assert len(search.finished) == 2  # closed: others of the batch go on


def test_a_beam_search_draws_nothing():
    with pytest.raises(UserError, match=r"temperature 0\.5 with 4 beams"):
        Sampling(temperature=0.5, beams=4)
