"""Configs of well-known decoders: those of the published config.json files.

Settings that a file leaves out, or that equal the family's default, are left out here, too.
"""

from __future__ import annotations

from typing import Any

_Config = dict[str, Any]


def _decoder(
    model_type: str,
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    inner: int,
    vocabulary: int,
    **rest: Any,
) -> _Config:
    return {
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        **rest,
    }


_LLAMA: _Config = {"rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA_2 = _LLAMA | {"max_position_embeddings": 4096}
_LLAMA_3 = _LLAMA | {
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def _llama_3_from_1(factor: float) -> _Config:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return _LLAMA_3 | {"max_position_embeddings": 131072, "rope_scaling": scaling}


_TIED: _Config = {"tie_word_embeddings": True}
_LLAMA_3_1, _LLAMA_3_2 = _llama_3_from_1(8.0), _llama_3_from_1(32.0) | _TIED
_SMOLLM2 = _LLAMA | _TIED | {"max_position_embeddings": 8192, "rope_theta": 100000.0}
_MISTRAL = _LLAMA | {"head_dim": 128, "sliding_window": None}
_QWEN_2: _Config = {"max_position_embeddings": 32768, "rope_theta": 1e6}
_QWEN_3 = _QWEN_2 | {"max_position_embeddings": 40960, "head_dim": 128}
_GEMMA_3_27B: _Config = {"head_dim": 128, "query_pre_attn_scalar": 168}
_GEMMA_3_ROPE: _Config = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
_OLMO_2: _Config = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "max_position_embeddings": 4096,
    "eos_token_id": 100257,
}
_OLMO_3: _Config = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
    "max_position_embeddings": 65536,
    "eos_token_id": 100257,
}
_QWEN_3_EXPERTS = _QWEN_3 | {
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
}
_GPT_OSS: _Config = {
    "head_dim": 64,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 131072,
    "eos_token_id": 200002,
    "pad_token_id": 199999,
}
_QWEN_3_2507 = _QWEN_3 | {"max_position_embeddings": 262144, "rope_theta": 5e6}
_QWEN_3_EXPERTS_2507 = _QWEN_3_EXPERTS | {"max_position_embeddings": 262144, "rope_theta": 1e7}
_QWEN_2_LONG = _QWEN_2 | {"max_position_embeddings": 131072}
_PHI_4: _Config = {"max_position_embeddings": 16384, "rope_theta": 250000.0}
_GRANITE: _Config = _TIED | {
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e7,
    "max_position_embeddings": 131072,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "eos_token_id": 0,
}

KNOWN_DECODERS: dict[str, _Config] = {
    "llama-2-7b": _decoder("llama", 4096, 32, 32, 32, 11008, 32000, **_LLAMA_2),
    "llama-2-13b": _decoder("llama", 5120, 40, 40, 40, 13824, 32000, **_LLAMA_2),
    "llama-2-70b": _decoder("llama", 8192, 80, 64, 8, 28672, 32000, **_LLAMA_2),
    "llama-3-8b": _decoder("llama", 4096, 32, 32, 8, 14336, 128256, **_LLAMA_3),
    "llama-3-70b": _decoder("llama", 8192, 80, 64, 8, 28672, 128256, **_LLAMA_3),
    "llama-3.1-8b": _decoder("llama", 4096, 32, 32, 8, 14336, 128256, **_LLAMA_3_1),
    "llama-3.1-70b": _decoder("llama", 8192, 80, 64, 8, 28672, 128256, **_LLAMA_3_1),
    "llama-3.3-70b": _decoder("llama", 8192, 80, 64, 8, 28672, 128256, **_LLAMA_3_1),
    "deepseek-r1-distill-llama-8b": _decoder("llama", 4096, 32, 32, 8, 14336, 128256, **_LLAMA_3_1),
    "deepseek-r1-distill-llama-70b": _decoder(
        "llama", 8192, 80, 64, 8, 28672, 128256, **_LLAMA_3_1
    ),
    "tinyllama-1.1b-chat-v1.0": _decoder("llama", 2048, 22, 32, 4, 5632, 32000, **_LLAMA),
    "llama-3.2-1b": _decoder("llama", 2048, 16, 32, 8, 8192, 128256, **_LLAMA_3_2),
    "llama-3.2-3b": _decoder("llama", 3072, 28, 24, 8, 8192, 128256, **_LLAMA_3_2),
    "smollm2-135m": _decoder("llama", 576, 30, 9, 3, 1536, 49152, **_SMOLLM2),
    "smollm2-360m": _decoder("llama", 960, 32, 15, 5, 2560, 49152, **_SMOLLM2),
    "smollm2-1.7b": _decoder(
        "llama", 2048, 24, 32, 32, 8192, 49152, **_SMOLLM2 | {"rope_theta": 130000.0}
    ),
    "smollm3-3b": _decoder(
        "smollm3", 2048, 36, 16, 4, 11008, 128256, max_position_embeddings=65536, rope_theta=5e6
    ),
    "mistral-7b-v0.1": _decoder("mistral", 4096, 32, 32, 8, 14336, 32000, **_LLAMA),
    "mistral-7b-v0.2": _decoder(
        "mistral", 4096, 32, 32, 8, 14336, 32000, rope_theta=1e6, **_MISTRAL
    ),
    "mistral-7b-v0.3": _decoder(
        "mistral", 4096, 32, 32, 8, 14336, 32768, rope_theta=1e6, **_MISTRAL
    ),
    "mistral-nemo-base-2407": _decoder(
        "mistral", 5120, 40, 32, 8, 14336, 131072, rope_theta=1e6, **_MISTRAL
    ),
    "mistral-small-24b-base-2501": _decoder(
        "mistral", 5120, 40, 32, 8, 32768, 131072, rope_theta=1e8, **_MISTRAL
    ),
    "ministral-8b-instruct-2410": _decoder(
        "mistral",
        *(4096, 36, 32, 8, 12288, 131072),
        rope_theta=1e8,
        max_position_embeddings=32768,
        **_MISTRAL | {"sliding_window": 32768},
    ),
    "qwen2-0.5b": _decoder("qwen2", 896, 24, 14, 2, 4864, 151936, **_QWEN_2_LONG, **_TIED),
    "qwen2-1.5b": _decoder("qwen2", 1536, 28, 12, 2, 8960, 151936, **_QWEN_2_LONG, **_TIED),
    "qwen2-7b": _decoder("qwen2", 3584, 28, 28, 4, 18944, 152064, **_QWEN_2_LONG),
    "qwen2-72b": _decoder("qwen2", 8192, 80, 64, 8, 29568, 152064, **_QWEN_2_LONG),
    "deepseek-r1-distill-qwen-1.5b": _decoder(
        "qwen2", 1536, 28, 12, 2, 8960, 151936, **_QWEN_2_LONG | {"rope_theta": 10000.0}
    ),
    "deepseek-r1-distill-qwen-7b": _decoder(
        "qwen2", 3584, 28, 28, 4, 18944, 152064, **_QWEN_2_LONG | {"rope_theta": 10000.0}
    ),
    "deepseek-r1-distill-qwen-14b": _decoder(
        "qwen2", 5120, 48, 40, 8, 13824, 152064, **_QWEN_2_LONG
    ),
    "deepseek-r1-distill-qwen-32b": _decoder(
        "qwen2", 5120, 64, 40, 8, 27648, 152064, **_QWEN_2_LONG
    ),
    "qwen2.5-0.5b": _decoder("qwen2", 896, 24, 14, 2, 4864, 151936, **_QWEN_2, **_TIED),
    "qwen2.5-1.5b": _decoder("qwen2", 1536, 28, 12, 2, 8960, 151936, **_QWEN_2, **_TIED),
    "qwen2.5-3b": _decoder("qwen2", 2048, 36, 16, 2, 11008, 151936, **_QWEN_2, **_TIED),
    "qwen2.5-7b": _decoder("qwen2", 3584, 28, 28, 4, 18944, 152064, **_QWEN_2),
    "qwen2.5-14b": _decoder("qwen2", 5120, 48, 40, 8, 13824, 152064, **_QWEN_2),
    "qwen2.5-32b": _decoder("qwen2", 5120, 64, 40, 8, 27648, 152064, **_QWEN_2),
    "qwen2.5-72b": _decoder("qwen2", 8192, 80, 64, 8, 29568, 152064, **_QWEN_2),
    "qwen3-0.6b": _decoder("qwen3", 1024, 28, 16, 8, 3072, 151936, **_QWEN_3, **_TIED),
    "qwen3-1.7b": _decoder("qwen3", 2048, 28, 16, 8, 6144, 151936, **_QWEN_3, **_TIED),
    "qwen3-4b": _decoder("qwen3", 2560, 36, 32, 8, 9728, 151936, **_QWEN_3, **_TIED),
    "qwen3-4b-instruct-2507": _decoder(
        "qwen3", 2560, 36, 32, 8, 9728, 151936, **_QWEN_3_2507, **_TIED
    ),
    "qwen3-8b": _decoder("qwen3", 4096, 36, 32, 8, 12288, 151936, **_QWEN_3),
    "qwen3-14b": _decoder("qwen3", 5120, 40, 40, 8, 17408, 151936, **_QWEN_3),
    "qwen3-32b": _decoder("qwen3", 5120, 64, 64, 8, 25600, 151936, **_QWEN_3),
    "qwen3-30b-a3b": _decoder(
        "qwen3_moe", 2048, 48, 32, 4, 6144, 151936, moe_intermediate_size=768, **_QWEN_3_EXPERTS
    ),
    "qwen3-30b-a3b-instruct-2507": _decoder(
        "qwen3_moe",
        2048,
        48,
        32,
        4,
        6144,
        151936,
        moe_intermediate_size=768,
        **_QWEN_3_EXPERTS_2507,
    ),
    "qwen3-coder-30b-a3b-instruct": _decoder(
        "qwen3_moe",
        2048,
        48,
        32,
        4,
        5472,
        151936,
        moe_intermediate_size=768,
        **_QWEN_3_EXPERTS_2507,
    ),
    "qwen3-235b-a22b": _decoder(
        "qwen3_moe", 4096, 94, 64, 4, 12288, 151936, moe_intermediate_size=1536, **_QWEN_3_EXPERTS
    ),
    "mixtral-8x7b-v0.1": _decoder(
        "mixtral", 4096, 32, 32, 8, 14336, 32000, max_position_embeddings=32768, **_LLAMA
    ),
    "mixtral-8x22b-v0.1": _decoder(
        "mixtral", 6144, 56, 48, 8, 16384, 32000, max_position_embeddings=65536, **_LLAMA
    ),
    "olmoe-1b-7b-0924": _decoder("olmoe", 2048, 16, 16, 16, 1024, 50304, eos_token_id=50279),
    "olmoe-1b-7b-0125": _decoder("olmoe", 2048, 16, 16, 16, 1024, 50304, eos_token_id=50279),
    "gpt-oss-20b": _decoder(
        "gpt_oss", 2880, 24, 64, 8, 2880, 201088, num_local_experts=32, **_GPT_OSS
    ),
    "gpt-oss-120b": _decoder(
        "gpt_oss", 2880, 36, 64, 8, 2880, 201088, num_local_experts=128, **_GPT_OSS
    ),
    "gemma-2b": _decoder("gemma", 2048, 18, 8, 1, 16384, 256000),
    "gemma-7b": _decoder("gemma", 3072, 28, 16, 16, 24576, 256000),
    "gemma-2-2b": _decoder("gemma2", 2304, 26, 8, 4, 9216, 256000),
    "gemma-2-9b": _decoder("gemma2", 3584, 42, 16, 8, 14336, 256000),
    "gemma-2-27b": _decoder(
        "gemma2", 4608, 46, 32, 16, 36864, 256000, head_dim=128, query_pre_attn_scalar=144
    ),
    "gemma-3-270m": _decoder("gemma3_text", 640, 18, 4, 1, 2048, 262144, sliding_window=512),
    "gemma-3-1b-pt": _decoder("gemma3_text", 1152, 26, 4, 1, 6912, 262144, sliding_window=512),
    "gemma-3-4b-pt": _decoder(
        "gemma3_text", 2560, 34, 8, 4, 10240, 262208, sliding_window=1024, **_GEMMA_3_ROPE
    ),
    "gemma-3-12b-pt": _decoder(
        "gemma3_text", 3840, 48, 16, 8, 15360, 262208, sliding_window=1024, **_GEMMA_3_ROPE
    ),
    "gemma-3-27b-pt": _decoder(
        "gemma3_text",
        *(5376, 62, 32, 16, 21504, 262208),
        sliding_window=1024,
        **_GEMMA_3_ROPE,
        **_GEMMA_3_27B,
    ),
    "phi-3-mini-4k-instruct": _decoder(
        "phi3", 3072, 32, 32, 32, 8192, 32064, sliding_window=2047, eos_token_id=32000
    ),
    "phi-3-medium-4k-instruct": _decoder(
        "phi3", 5120, 40, 40, 10, 17920, 32064, sliding_window=2047, eos_token_id=32000
    ),
    "phi-4": _decoder("phi3", 5120, 40, 40, 10, 17920, 100352, eos_token_id=100265, **_PHI_4),
    "olmo-2-0425-1b": _decoder("olmo2", 2048, 16, 16, 16, 8192, 100352, **_OLMO_2),
    "olmo-2-1124-7b": _decoder("olmo2", 4096, 32, 32, 32, 11008, 100352, **_OLMO_2),
    "olmo-2-1124-13b": _decoder("olmo2", 5120, 40, 40, 40, 13824, 100352, **_OLMO_2),
    "olmo-2-0325-32b": _decoder("olmo2", 5120, 64, 40, 8, 27648, 100352, **_OLMO_2),
    "olmo-3-1025-7b": _decoder("olmo3", 4096, 32, 32, 32, 11008, 100278, **_OLMO_3),
    "olmo-3-1125-32b": _decoder("olmo3", 5120, 64, 40, 8, 27648, 100278, **_OLMO_3),
    "olmo-3-7b-instruct": _decoder("olmo3", 4096, 32, 32, 32, 11008, 100278, **_OLMO_3),
    "granite-3.3-2b-base": _decoder(
        "granite",
        *(2048, 40, 32, 8, 8192, 49159),
        attention_multiplier=0.015625,
        logits_scaling=8.0,
        **_GRANITE,
    ),
    "granite-3.3-8b-base": _decoder(
        "granite",
        *(4096, 40, 32, 8, 12800, 49159),
        attention_multiplier=0.0078125,
        logits_scaling=16.0,
        **_GRANITE,
    ),
    "c4ai-command-r7b-12-2024": _decoder(
        "cohere2", 4096, 32, 32, 8, 14336, 256000, logit_scale=0.25, rope_theta=50000.0
    ),
    "glm-4-9b": _decoder("glm", 4096, 40, 32, 2, 13696, 151552),
    "glm-4-9b-0414": _decoder("glm4", 4096, 40, 32, 2, 13696, 151552, rms_norm_eps=1e-5),
    "stablelm-3b-4e1t": _decoder("stablelm", 2560, 32, 32, 32, 6912, 50304),
    "stablelm-2-1_6b": _decoder(
        "stablelm", 2048, 24, 32, 32, 5632, 100352, use_qkv_bias=True, eos_token_id=100257
    ),
}
"""Short name of a decoder -> the sizes and settings of its config.json."""
