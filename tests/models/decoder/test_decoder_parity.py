"""Decoders against torch: logits of tiny random models with every setting that is easy to miss."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from decoder_parity import (
    CASES,
    GROWING,
    LLAMA3,
    SIZES,
    TOLERANCE,
    TWO_ROPES,
    YARN,
    batch,
    difference,
    family_of,
    ours,
    torch_logits,
    write,
    write_torch,
)
from goat_jax.evaluation.sampler import Generator, Sampling
from goat_jax.models.decoder.families import FAMILIES
from goat_jax.models.decoder.model import Decoder, segment_positions, tiny_decoder_config
from goat_jax.models.load import load_model
from kinds import expect
from parity_table import exports
from random_torch import randomized
from tiers import each, first_of_each

MUTATED = ["llama", "qwen2", "qwen3", "mistral", "llama3"]


@pytest.mark.parametrize("case", first_of_each(CASES, lambda case: [family_of(case)], MUTATED))
def test_logits_are_torchs(case, tmp_path):
    assert difference(tmp_path, write(tmp_path, case)) < TOLERANCE


def test_every_family_is_compared_and_listed():
    assert {family_of(case) for case in CASES} == set(FAMILIES)
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text("utf-8")
    for name, count in Counter(map(family_of, CASES)).items():
        (row,) = re.findall(rf"`{name}` \| .+ \| (\d+) \| (\S+) \| (.+) \|", page)
        assert int(row[0]) == count and float(row[1]) < TOLERANCE and row[2] == exports(name)


# longrope is not among them: its cache is computed anew by the one who generates (below).
CACHED = ["llama3", "qwen2 windows", "qwen3", "mistral", "llama tied, biases", "gemma2", "gemma3"]
CACHED += [
    "ministral3",
    "olmo2",
    "olmo3",
    "smollm3 windows",
    "granite",
    "cohere2",
    "glm4",
    "stablelm",
]
CACHED += ["mixtral", "qwen3_moe some layers, normalized, window", "olmoe", "gpt_oss"]

IN_CI = ["mistral", "llama tied, biases", "gemma3", "smollm3 windows", "gpt_oss"]
"""A window, a cache alone, ropes and windows by layer, sinks and experts."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=() if name in IN_CI else pytest.mark.nightly) for name in CACHED],
)
def test_a_cache_gives_torchs_logits(case, tmp_path):
    """Prefill of five tokens, then one at a time; the positions of a padded row begin at its text,
    as in transformers' generation."""
    torch_model = write(tmp_path, case)
    model = load_model(tmp_path, key=jax.random.key(0)).model
    rows = {name: array[[0, 2]] for name, array in batch().items()}
    places = np.maximum(rows["attention_mask"].cumsum(1) - 1, 0)
    theirs = torch_logits(torch_model, rows, position_ids=torch.from_numpy(places))
    ids, mask = (jnp.asarray(array) for array in rows.values())
    cache = expect(Decoder, model).empty_cache(2, 16)
    parts = []
    for start, stop in [(0, 5), *((i, i + 1) for i in range(5, 14))]:
        hidden, cache = ours(model, "extend", ids[:, start:stop], mask[:, start:stop], cache)
        parts.append(ours(model, "logits", hidden))
    assert int(cache.length) == 14
    real = np.asarray(mask) != 0
    close = TOLERANCE * np.abs(theirs).max()
    found = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(found[real], theirs[real], rtol=0, atol=close)


@pytest.mark.slow
def test_a_text_that_outgrows_longropes_short_factors_is_continued_as_in_torch(tmp_path):
    """Prompts of 6 and 4 tokens grow beyond the original context, 8, after two steps."""
    name, settings = CASES["phi3 longrope, long"]
    torch_model = write_torch(tmp_path, name, settings | {"eos_token_id": None})
    model = expect(Decoder, load_model(tmp_path, key=jax.random.key(0)).model)
    ids = batch()["input_ids"][:2, :6]
    prompts, mask = [ids[0].tolist(), ids[1, 2:].tolist()], np.ones_like(ids)
    mask[1, :2] = 0
    theirs = torch_model.generate(
        input_ids=torch.from_numpy(ids).long(),
        attention_mask=torch.from_numpy(mask).long(),
        max_new_tokens=12,
        do_sample=False,
    )
    generator = Generator(model, cast(Any, SimpleNamespace(eos_token_id=None)), multiple=4)
    with jax.default_matmul_precision("highest"):
        found = np.stack(list(generator.tokens(prompts, Sampling(max_new_tokens=12))), axis=1)
    np.testing.assert_array_equal(found, theirs[:, 6:])


@pytest.mark.slow
@pytest.mark.parametrize(
    # Gemma 3 has Mistral's window in some layers.
    "case",
    ["llama3", pytest.param("mistral", marks=pytest.mark.nightly), "ministral3", "gemma3"],
)
def test_packed_texts_do_not_see_each_other(case, tmp_path):
    write(tmp_path, case)
    model = load_model(tmp_path, key=jax.random.key(0)).model
    ids = jnp.asarray(np.random.default_rng(2).integers(3, 60, (1, 12)).astype(np.int32))
    segments = jnp.array([[1] * 5 + [2] * 6 + [0]])
    packed = ours(model, "__call__", ids, None, segments)
    for start, stop in [(0, 5), (5, 11)]:
        alone = ours(model, "__call__", ids[:, start:stop])
        np.testing.assert_allclose(packed[:, start:stop], alone, rtol=0, atol=1e-5)


MULTIMODAL = {
    "gemma3": {
        "text_config": {"head_dim": 12, "rope_parameters": TWO_ROPES, "sliding_window": 4},
        "vision_config": {"image_size": 16, "patch_size": 8},
    },
    "mistral3": {
        "text_config": {"model_type": "ministral3", "head_dim": 12, "rope_parameters": GROWING},
        "vision_config": {"image_size": 16, "patch_size": 8, "head_dim": 8},
    },
}


def save_multimodal(folder: Path, kind: str) -> Any:
    """Saves a tiny multimodal checkpoint and returns its torch model."""
    settings = MULTIMODAL[kind]
    tower = dict(hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4)
    config = transformers.AutoConfig.for_model(
        kind,
        text_config=SIZES | settings["text_config"],
        vision_config=tower | settings["vision_config"],
    )
    model = randomized(lambda: transformers.AutoModelForImageTextToText.from_config(config))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", each(MULTIMODAL, ["gemma3"]))
def test_the_language_model_of_a_multimodal_checkpoint(kind, tmp_path):
    model = save_multimodal(tmp_path, kind)
    assert difference(tmp_path, model) < TOLERANCE
    (note,) = load_model(tmp_path, key=jax.random.key(0)).notes
    assert "its language model alone, without" in note and "vision_tower" in note


def test_positions_start_again_in_every_segment():
    found = segment_positions(jnp.array([[0, 0, 3, 3, 1, 1, 1, 0], [2, 2, 2, 2, 2, 2, 2, 2]]))
    assert found.tolist() == [[0, 1, 0, 1, 0, 1, 2, 0], list(range(8))]


@pytest.mark.parametrize("scaling", [LLAMA3, YARN, {"rope_type": "linear", "factor": 3.0}])
def test_both_spellings_of_rope_are_read(scaling, tmp_path):
    """transformers 4 wrote rope_theta beside rope_scaling, whose kind was once called `type`."""
    theta = {"rope_theta": 700.0}
    model = write_torch(tmp_path, "Llama", {"rope_parameters": scaling | theta})
    config = json.loads((tmp_path / "config.json").read_text())
    old = {k: v for k, v in config.pop("rope_parameters").items() if k != "rope_theta"}
    old["type"] = old.pop("rope_type")
    (tmp_path / "config.json").write_text(json.dumps(config | theta | {"rope_scaling": old}))
    assert difference(tmp_path, model) < TOLERANCE


def test_the_program_does_not_grow_with_depth():
    """The exact measure behind a compile time that depth does not change."""

    def lines(layers):
        model = nnx.eval_shape(
            lambda: Decoder(tiny_decoder_config(num_layers=layers), rngs=nnx.Rngs(0))
        )
        graph, state = nnx.split(model)
        ids = jax.ShapeDtypeStruct((2, 8), jnp.int32)
        lowered = jax.jit(lambda state, ids: nnx.merge(graph, state)(ids)).lower(state, ids)
        return len(lowered.as_text().splitlines())

    assert lines(4) == lines(32)
