"""Tiny random checkpoints of every family of decoders, saved by transformers with a tokenizer."""

import transformers

import tiny_language
from random_torch import randomized

SETTINGS = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "ministral": {"sliding_window": 5, "head_dim": 8},
    "ministral3": {"head_dim": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 12},
    "gemma": {"head_dim": 12},
    "gemma2": {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 20},
    "gemma3_text": {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 20},
    "phi3": {"sliding_window": 5},
    "olmo2": {},
    "olmo3": {"sliding_window": 4},
    "smollm3": {"no_rope_layer_interval": 2},
    "granite": {"residual_multiplier": 0.5, "attention_multiplier": 0.3},
    "cohere2": {"sliding_window": 4, "logit_scale": 0.5},
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "stablelm": {"hidden_size": 64},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
    | {"sliding_window": 4},
}
"""model_type -> settings beside the sizes that all of them have."""


def write_decoder(folder, model_type, **settings):
    """Saves a tiny model whose tokens are those of `tiny_language`, and returns it."""
    tiny_language.write_model(folder)
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    sizes = dict(
        vocab_size=len(tiny_language.WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    config = transformers.AutoConfig.for_model(
        model_type, **sizes | SETTINGS[model_type] | settings
    )
    model = randomized(lambda: transformers.AutoModelForCausalLM.from_config(config))
    model.save_pretrained(folder)
    return model
