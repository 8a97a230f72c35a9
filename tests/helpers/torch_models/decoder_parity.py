"""Tiny random decoders of transformers, and the largest difference of our logits from theirs.

Run as a program, it prints the table of docs/models.md:

    PYTHONPATH=tests/helpers python tests/helpers/torch_models/decoder_parity.py
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from goat_jax.models.load import load_model
from parity_table import print_table
from random_torch import randomized

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
    "olmo3": (
        "Olmo3",
        {"sliding_window": 3, "num_hidden_layers": 5, "num_key_value_heads": 4}
        | {"rms_norm_eps": 0.01, "pad_token_id": 0, "rope_parameters": TWO_ROPES},
    ),
    "olmo3 layer types, yarn, biases": (
        "Olmo3",
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}
        | {"rope_scaling": YARN, "rope_theta": 700.0, "sliding_window": 4}
        | {"attention_bias": True, "tie_word_embeddings": True, "pad_token_id": 0},
    ),
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
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral window, one of three": (
        "Mixtral",
        {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 4, "head_dim": 12}
        | {"tie_word_embeddings": True, "hidden_act": "gelu"},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "head_dim": 12}
        | {"attention_bias": True},
    ),
    "qwen3_moe some layers, normalized, window": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": 12}
        | {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
        | {"norm_topk_prob": True, "use_sliding_window": True, "sliding_window": 5},
    ),
    "olmoe": ("Olmoe", {"num_experts": 7, "num_experts_per_tok": 3, "pad_token_id": 0}),
    "olmoe normalized, clipped": (
        "Olmoe",
        {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True, "clip_qkv": 0.4}
        | {"attention_bias": True, "rms_norm_eps": 0.1, "pad_token_id": 0},
    ),
    "gpt_oss": (
        "GptOss",
        {"num_local_experts": 5, "num_experts_per_tok": 3, "head_dim": 8, "sliding_window": 4}
        | {"swiglu_limit": 0.3},
    ),
    "gpt_oss layer types, no biases": (
        "GptOss",
        {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 12, "sliding_window": 3}
        | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
        | {"attention_bias": False, "swiglu_alpha": 1.1, "tie_word_embeddings": True},
    ),
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
"""Name of a case -> the beginning of its class in transformers, and its settings."""


def write(folder: Path, case: str, seed: int = 0):
    """Saves a model, every number in it random, and returns it."""
    name, settings = CASES[case]
    return write_torch(folder, name, settings, seed)


def write_torch(folder: Path, name: str, settings: dict, seed: int = 0):
    """Saves a model of the class that begins with `name`."""
    config = getattr(transformers, name + "Config")(**{**SIZES, **settings})
    make = getattr(transformers, name.removesuffix("Text") + "ForCausalLM")
    model = randomized(lambda: make(config), seed)
    model.save_pretrained(folder)
    return model


def batch() -> dict[str, np.ndarray]:
    """Four rows of 14 tokens: full, padded on the right, on the left, and very short."""
    ids = np.random.default_rng(1).integers(3, 60, (4, 14)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, 9:], mask[2, :6], mask[3, :12] = 0, 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def torch_logits(model, inputs, **more) -> np.ndarray:
    """The logits of a torch model."""
    tensors = {name: torch.from_numpy(array).long() for name, array in inputs.items()}
    with torch.no_grad():
        return model(**tensors, **more).logits.numpy()


@partial(jax.jit, static_argnums=(0, 1))
def _call(method, graph, state, *args):
    return getattr(nnx.merge(graph, state), method)(*args)


def ours(model, method: str, *args):
    """Calls a method of our model in the highest precision."""
    with jax.default_matmul_precision("highest"):
        return _call(method, *nnx.split(model), *args)


def difference(folder: Path, model) -> float:
    """Largest difference of our logits of real tokens from torch's, over the largest logit."""
    inputs = batch()
    loaded = load_model(folder, key=jax.random.key(0))
    assert loaded.fresh == ()
    logits = np.asarray(ours(loaded.model, "__call__", *inputs.values()))
    assert np.isfinite(logits).all()
    theirs, real = torch_logits(model, inputs), inputs["attention_mask"] != 0
    largest = np.abs(theirs).max()
    assert largest > 0.5
    return float(np.abs(logits - theirs)[real].max() / largest)


def family_of(case: str) -> str:
    """The model_type of a case."""
    return getattr(transformers, CASES[case][0] + "Config").model_type


if __name__ == "__main__":
    print_table(CASES, family_of, lambda case, folder: difference(folder, write(folder, case)))
