"""GGUF files of every family, written as llama.cpp's converter writes them: the same network."""

import contextlib
import json
import math
import re

import gguf
import numpy as np
import pytest
import transformers

from decoder_parity import write_torch
from goat_jax.models.expert_tensors import split_experts
from goat_jax.models.registry import ARCHITECTURES
from goat_jax.pretrained.gguf import architectures
from goat_jax.pretrained.gguf.weights import open_gguf
from goat_jax.pretrained.resolve import open_checkpoint

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.25, 1.5],
    "long_factor": [1.5, 3.0, 7.0],
    "partial_rotary_factor": 0.75,
    "attention_factor": 1.2247449,  # as the file has it, from 64 and 16 tokens
    "original_max_position_embeddings": 16,
}
NO_PAD = {"pad_token_id": 0}
CASES = {
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "qwen3moe": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "head_dim": 12}
        | {"norm_topk_prob": True},
    ),
    "olmoe": ("Olmoe", {"num_experts": 3, "num_experts_per_tok": 2, **NO_PAD}),
    "llama": ("Mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "gemma": ("Gemma", {"head_dim": 12}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 12}
        | {"attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
    ),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 12, "num_hidden_layers": 7}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    "phi3": (
        "Phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16, **NO_PAD},
    ),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, "no_rope_layer_interval": 4, **NO_PAD}),
    "granite": (
        "Granite",
        {"embedding_multiplier": 6.0, "residual_multiplier": 0.25, "attention_multiplier": 0.125}
        | {"logits_scaling": 8.0},
    ),
    "cohere2": ("Cohere2", {"sliding_window": 4, "logit_scale": 0.25, "num_hidden_layers": 5}),
    "glm4": ("Glm4", {"head_dim": 16, "attention_bias": True, "eos_token_id": 2, **NO_PAD}),
    "stablelm": (
        "StableLm",
        {"use_qkv_bias": True, "rope_parameters": {"partial_rotary_factor": 0.5}},
    ),
    "stablelm parallel": (
        "StableLm",
        {"use_parallel_residual": True, "rope_parameters": {"partial_rotary_factor": 0.25}},
    ),
}
"""Architecture, and a word -> the beginning of the class's name, and its settings."""

PERMUTED = {"llama", "smollm3", "granite"}
FROM_1 = {"gemma", "gemma2", "gemma3"}
OPTIONAL = {
    "rms_norm_eps": "add_layer_norm_rms_eps",
    "layer_norm_eps": "add_layer_norm_eps",
    "sliding_window": "add_sliding_window",
    "attn_logit_softcapping": "add_attn_logit_softcapping",
    "final_logit_softcapping": "add_final_logit_softcapping",
    "attention_multiplier": "add_attention_scale",
    "embedding_multiplier": "add_embedding_scale",
    "residual_multiplier": "add_residual_scale",
    "logits_scaling": "add_logit_scale",
    "logit_scale": "add_logit_scale",
    "num_experts_per_tok": "add_expert_used_count",
    "moe_intermediate_size": "add_expert_feed_forward_length",
    "original_max_position_embeddings": "add_rope_scaling_orig_ctx_len",
}
"""Key of config.json -> the writer's method."""


def test_every_row_has_a_case():
    assert set(architectures.ARCHITECTURES) - {"qwen2"} == {case.split()[0] for case in CASES}


IN_TRANSFORMERS = ["gemma2", "gemma3", "stablelm", "stablelm parallel"]
"""Cases whose sizes transformers reads from GGUF files, too."""


def stacked(name, tensors):
    """The tensors of all experts of a layer as one, for the name of the first; else the tensor."""
    if ".experts." not in name:
        return tensors[name]
    names = [name.replace("experts.0.", f"experts.{expert}.") for expert in range(9)]
    return np.stack([tensors[each] for each in names if each in tensors])


def write_gguf(path, architecture, config, tensors):
    """A file with the settings and tensors of a checkpoint, by the converter's rules."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    groups, width = config["num_key_value_heads"], config["hidden_size"]
    size = config.get("head_dim") or width // heads
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope.get("rope_theta", 1e4))
    for key, add in OPTIONAL.items():
        if config.get(key) is not None:
            getattr(writer, add)(config[key])
    if experts := config.get("num_experts") or config.get("num_local_experts"):
        writer.add_expert_count(experts)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "longrope":
        scale, original = config["max_position_embeddings"] / 16, 16
        factor = math.sqrt(1 + math.log(scale) / math.log(original))
        writer.add_rope_scaling_attn_factors(factor)
        for name in ("long", "short"):
            factors = np.array(rope[f"{name}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", factors)
    for name in ("bos", "eos", "pad"):
        if config.get(f"{name}_token_id") is not None:
            getattr(writer, f"add_{name}_token_id")(config[f"{name}_token_id"])
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(arch, layers)
    for name in tensors:
        if re.search(r"experts\.[1-9]", name):
            continue
        tensor, (module, _, parameter) = stacked(name, tensors), name.rpartition(".")
        # The converter joins the experts under a name of its own.
        module = module.replace("block_sparse_moe.experts.0", "feed_forward.experts")
        module = module.replace("model.layers", "layers") if "feed_forward" in module else module
        found = known.get_name(module.replace("experts.0", "experts"))
        assert found, name
        rotated = re.search(r"attn_([qk])$", found)
        if rotated and architecture in PERMUTED:
            each = tensor.reshape(heads if rotated[1] == "q" else groups, 2, -1, *tensor.shape[1:])
            tensor = each.swapaxes(1, 2).reshape(tensor.shape)
        if architecture in FROM_1 and name.endswith("norm.weight"):
            tensor = tensor + 1
        writer.add_tensor(f"{found}.{parameter}", np.ascontiguousarray(tensor, np.float32))
    with contextlib.closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def write_both(folder, case):
    """A checkpoint and a GGUF file of it; returns the torch model."""
    name, settings = CASES[case]
    model = write_torch(folder / "hf", name, settings)
    _, weights = open_checkpoint(folder / "hf")
    raw = json.loads((folder / "hf" / "config.json").read_text())
    tensors = {name: weights[name] for name in weights}
    write_gguf(folder / "a.gguf", case.split()[0], raw, tensors)
    return model


@pytest.mark.parametrize("case", CASES)
def test_settings_and_tensors_are_the_checkpoints(case, tmp_path):
    write_both(tmp_path, case)
    hf, weights = open_checkpoint(tmp_path / "hf")
    config, found = open_gguf(tmp_path / "a.gguf")
    family = ARCHITECTURES[config["model_type"]]
    assert family.config_of(config) == family.config_of(hf)
    found = split_experts(found, family.expert_tensors)
    assert set(found) == set(weights)
    shifted = case.split()[0] in FROM_1
    for name in weights:
        atol = 1e-6 if shifted and name.endswith("norm.weight") else 0
        np.testing.assert_allclose(found[name], weights[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.nightly
@pytest.mark.parametrize("case", IN_TRANSFORMERS)
def test_files_written_here_are_those_that_transformers_reads(case, tmp_path):
    model = write_both(tmp_path, case)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf")
    expected, found = model.state_dict(), read.state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), atol=1e-6, err_msg=name)
