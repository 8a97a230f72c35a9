"""Decoders against torch: logits of tiny random models with every setting that is easy to miss."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from goat_jax.models.decoder.model import Decoder, segment_positions, tiny_decoder_config
from goat_jax.models.load import load_model
from kinds import expect
from tiers import each

TOLERANCE = 1e-5
"""Largest difference of a logit, over the largest logit."""
SIZES = dict(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=5e5,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=16)
YARN_ALL = YARN | dict(beta_fast=8.0, beta_slow=2.0, truncate=False, attention_factor=1.3)
GROWING = YARN | {"llama_4_scaling_beta": 0.7, "original_max_position_embeddings": 4}
LONG = dict(
    rope_type="longrope",
    rope_theta=1e4,
    short_factor=[1.0, 1.2, 1.5, 2.0],
    long_factor=[1.5, 3.0, 7.0, 11.0],
)
PART_LONG = LONG | {"partial_rotary_factor": 0.5, "attention_factor": 1.2}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5e4, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
CASES = {
    "llama": ("Llama", {}),
    "llama2 many heads": ("Llama", {"num_key_value_heads": 4, "rms_norm_eps": 0.1}),
    "llama tied, biases": (
        "Llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama head size, theta": (
        "Llama",
        {"head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "dynamic": (
        "Llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "factor": 3.0},
            "max_position_embeddings": 8,
        },
    ),
    "yarn": ("Llama", {"rope_parameters": YARN}),
    "yarn, all": ("Llama", {"rope_parameters": YARN_ALL}),
    "yarn, mscale": ("Llama", {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2}}),
    "gelu": ("Llama", {"hidden_act": "gelu"}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2 windows": ("Qwen2", WINDOWS),
    "qwen3": ("Qwen3", {"head_dim": 12, "rms_norm_eps": 0.1, "tie_word_embeddings": True}),
    "qwen3 windows, biases": ("Qwen3", WINDOWS | {"attention_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 16}),
    "mistral, no window": ("Mistral", {"sliding_window": None}),
    "ministral": ("Ministral", {"sliding_window": 5, "head_dim": 16}),
    "ministral layer types": (
        "Ministral",
        {"sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"] * 2}
        | {"num_hidden_layers": 4, "head_dim": 6},
    ),
    "ministral3": ("Ministral3", {"rope_parameters": GROWING, "head_dim": 12}),
    "ministral3 defaults": ("Ministral3", {"head_dim": 128, "sliding_window": 6}),
    "gemma": ("Gemma", {"head_dim": 12}),
    "gemma old activation, biases": (
        "Gemma",
        {"head_dim": 8, "hidden_act": "gelu", "attention_bias": True, "tie_word_embeddings": False},
    ),
    "gemma2": (
        "Gemma2",
        {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 20}
        | {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
    ),
    "gemma2, no caps": (
        "Gemma2",
        {"head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 20}
        | {"sliding_window_pattern": 2, "rope_parameters": TWO_ROPES},
    ),
    "gemma3, capped": (
        "Gemma3Text",
        {"head_dim": 8, "sliding_window": 3, "final_logit_softcapping": 3.0}
        | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    ),
    "phi3": ("Phi3", {"sliding_window": 5, "pad_token_id": 0}),
    "phi3 longrope, short": (
        "Phi3",
        {"rope_parameters": LONG, "original_max_position_embeddings": 16, "pad_token_id": 0},
    ),
    "phi3 longrope, long": (
        "Phi3",
        {"rope_parameters": LONG | {"partial_rotary_factor": 1.0}, "pad_token_id": 0}
        | {"original_max_position_embeddings": 8},
    ),
    "phi4 part of a head": (
        "Phi3",
        {"rope_parameters": PART_LONG, "hidden_size": 64, "pad_token_id": 0}
        | {"original_max_position_embeddings": 8},
    ),
    "olmo2": ("Olmo2", {"attention_bias": True, "rms_norm_eps": 0.01}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2, "pad_token_id": 0}),
    "smollm3 windows": (
        "SmolLM3",
        {"no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 4}
        | {"mlp_bias": True, "tie_word_embeddings": False, "pad_token_id": 0},
    ),
    "granite": (
        "Granite",
        {"embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.2}
        | {"logits_scaling": 0.7, "mlp_bias": True},
    ),
    "cohere2": ("Cohere2", {"sliding_window": 4, "layer_norm_eps": 0.01, "logit_scale": 0.5}),
    "cohere2 layer types, biases": (
        "Cohere2",
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
        | {"sliding_window": 3, "logit_scale": 2.0, "attention_bias": True},
    ),
    "glm": ("Glm", {"head_dim": 12, "pad_token_id": 0}),
    "glm4": ("Glm4", {"head_dim": 16, "attention_bias": False, "pad_token_id": 0}),
    "stablelm": (
        "StableLm",
        {"use_qkv_bias": True, "rope_parameters": {"rope_type": "default"}, "hidden_size": 64},
    ),
    "stablelm parallel": (
        "StableLm",
        {"use_parallel_residual": True, "layer_norm_eps": 0.1}
        | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
}


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    def save(name: str, settings: dict, seed: int = 0, **options):
        config = getattr(transformers, name + "Config")(**{**SIZES, **settings})
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            class_name = name.removesuffix("Text") + "ForCausalLM"
            model = getattr(transformers, class_name)(config).eval()
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder, **options)
        return folder, model

    return save


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Four rows of 14 tokens: full, padded on the right, on the left, and very short."""
    ids = np.random.default_rng(1).integers(3, 60, (4, 14)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, 9:], mask[2, :6], mask[3, :12] = 0, 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def _torch_logits(model, batch, **more) -> np.ndarray:
    inputs = {name: torch.from_numpy(array).long() for name, array in batch.items()}
    with torch.no_grad():
        return model(**inputs, **more).logits.numpy()


@partial(jax.jit, static_argnums=(0, 1))
def _call(method, graph, state, *args):
    return getattr(nnx.merge(graph, state), method)(*args)


def _ours(model, method: str, *args):
    with jax.default_matmul_precision("highest"):
        return _call(method, *nnx.split(model), *args)


@pytest.mark.parametrize("case", each(CASES, ["llama", "qwen2", "qwen3", "mistral"]))
def test_logits_are_torchs(case, save, batch):
    folder, model = save(*CASES[case])
    loaded = load_model(folder, key=jax.random.key(0))
    assert loaded.fresh == ()
    ours = np.asarray(_ours(loaded.model, "__call__", *batch.values()))
    theirs = _torch_logits(model, batch)
    real = batch["attention_mask"] != 0
    largest = np.abs(theirs).max()
    assert largest > 0.5
    np.testing.assert_allclose(ours[real], theirs[real], rtol=0, atol=TOLERANCE * largest)
    assert np.isfinite(ours).all()


# longrope is not among them: a cache keeps the rotation that a short text had.
CACHED = ["llama3", "qwen2 windows", "qwen3", "mistral", "llama tied, biases", "gemma2", "gemma3"]
CACHED += ["ministral3", "olmo2", "smollm3 windows", "granite", "cohere2", "glm4", "stablelm"]


@pytest.mark.slow
@pytest.mark.parametrize("case", each(CACHED, ["mistral"]))
def test_a_cache_gives_torchs_logits(case, save, batch):
    """Prefill of five tokens, then one at a time; the positions of a padded row begin at its text,
    as in transformers' generation."""
    folder, torch_model = save(*CASES[case])
    model = load_model(folder, key=jax.random.key(0)).model
    rows = {name: array[[0, 2]] for name, array in batch.items()}
    places = np.maximum(rows["attention_mask"].cumsum(1) - 1, 0)
    theirs = _torch_logits(torch_model, rows, position_ids=torch.from_numpy(places))
    ids, mask = (jnp.asarray(array) for array in rows.values())
    cache = expect(Decoder, model).empty_cache(2, 16)
    parts = []
    for start, stop in [(0, 5), *((i, i + 1) for i in range(5, 14))]:
        hidden, cache = _ours(model, "extend", ids[:, start:stop], mask[:, start:stop], cache)
        parts.append(_ours(model, "logits", hidden))
    assert int(cache.length) == 14
    real = np.asarray(mask) != 0
    close = TOLERANCE * np.abs(theirs).max()
    ours = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(ours[real], theirs[real], rtol=0, atol=close)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama3", "mistral", "ministral3", "gemma3"])
def test_packed_texts_do_not_see_each_other(case, save):
    folder, _ = save(*CASES[case])
    model = load_model(folder, key=jax.random.key(0)).model
    ids = jnp.asarray(np.random.default_rng(2).integers(3, 60, (1, 12)).astype(np.int32))
    segments = jnp.array([[1] * 5 + [2] * 6 + [0]])
    packed = _ours(model, "__call__", ids, None, segments)
    for start, stop in [(0, 5), (5, 11)]:
        alone = _ours(model, "__call__", ids[:, start:stop])
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
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.AutoModelForImageTextToText.from_config(config).eval()
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", each(MULTIMODAL, ["gemma3"]))
def test_the_language_model_of_a_multimodal_checkpoint(kind, tmp_path, batch):
    model = save_multimodal(tmp_path, kind)
    loaded = load_model(tmp_path, key=jax.random.key(0))
    (note,) = loaded.notes
    assert "its language model alone, without" in note and "vision_tower" in note
    ours = np.asarray(_ours(loaded.model, "__call__", *batch.values()))
    theirs = _torch_logits(model, batch)
    real = batch["attention_mask"] != 0
    close = TOLERANCE * np.abs(theirs).max()
    np.testing.assert_allclose(ours[real], theirs[real], rtol=0, atol=close)


def test_positions_start_again_in_every_segment():
    found = segment_positions(jnp.array([[0, 0, 3, 3, 1, 1, 1, 0], [2, 2, 2, 2, 2, 2, 2, 2]]))
    assert found.tolist() == [[0, 1, 0, 1, 0, 1, 2, 0], list(range(8))]


@pytest.mark.parametrize("scaling", [LLAMA3, YARN, {"rope_type": "linear", "factor": 3.0}])
def test_both_spellings_of_rope_are_read(scaling, save, batch):
    """transformers 4 wrote rope_theta beside rope_scaling, whose kind was once called `type`."""
    theta = {"rope_theta": 700.0}
    folder, model = save("Llama", {"rope_parameters": scaling | theta})
    config = json.loads((folder / "config.json").read_text())
    old = {k: v for k, v in config.pop("rope_parameters").items() if k != "rope_theta"}
    old["type"] = old.pop("rope_type")
    (folder / "config.json").write_text(json.dumps(config | theta | {"rope_scaling": old}))
    ours = _ours(load_model(folder, key=jax.random.key(0)).model, "__call__", *batch.values())
    real = batch["attention_mask"] != 0
    theirs = _torch_logits(model, batch)
    close = TOLERANCE * np.abs(theirs).max()
    np.testing.assert_allclose(np.asarray(ours)[real], theirs[real], rtol=0, atol=close)


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
