"""Differences between families of decoders, as one table of settings.

Each difference is a field of `goat_jax.models.decoder.config.DecoderConfig` that a `Setting` reads,
a name, or a default; there is no other code per family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from goat_jax.models.config_keys import (
    COUNT,
    EPSILON,
    SIZE,
    SIZES,
    Check,
    activation,
    ids,
    keys_of_family,
    number,
    switch,
)
from goat_jax.models.decoder.settings import (
    ATTENTION_BIAS,
    CLAMPED_GATE,
    EMBEDDING_BY_WIDTH,
    MLP_BIAS,
    NORMS_AROUND,
    QUERY_SCALE,
    SPARSE_LAYERS,
    WINDOW_IF_USED,
    WINDOWS_FROM_A_LAYER_ON,
    WINDOWS_OF_TYPES,
    Setting,
    always,
    but_every,
    cap,
    flag,
    if_given,
    in_windows,
    layer_types,
    layers_with_rope,
    mixture,
    rope,
    ropes_by_type,
    window,
    windows_but_every,
    windows_without_rope,
)
from goat_jax.models.expert_tensors import ExpertTensor
from goat_jax.models.family import Family
from goat_jax.models.fused import Fused
from goat_jax.pretrained.mxfp4 import mxfp4_only


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderFamily(Family):
    """Facts that distinguish one family of decoders.

    Attributes:
        settings: the fields of `DecoderConfig` that not all families have, in the order in which
            they are read.
        block: our name of a block's part -> its torch name.
        keys: field of `DecoderConfig` -> the key of config.json with the same meaning.
        defaults: values of fields whose key config.json leaves out.
        fused: linear layers that are several of ours in one.
        expert_tensors: parameters that hold a layer of all experts of a mixture.
    """

    settings: tuple[Setting, ...]
    block: Mapping[str, str]
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    fused: tuple[Fused, ...]
    expert_tensors: tuple[ExpertTensor, ...]

    def value(self, hf: Mapping[str, Any], field: str) -> Any:
        """Returns a field's value in a config.json, or else the family's default."""
        value = hf.get(self.keys[field])
        return self.defaults.get(field) if value is None else value


SIZE_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}
_KEYS = SIZE_KEYS | {
    "num_kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "context": "max_position_embeddings",
    "activation": "hidden_act",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "bos_id": "bos_token_id",
    "pad_id": "pad_token_id",
}


_READ: dict[str, Check] = {
    **SIZES,
    "num_key_value_heads": SIZE,
    "head_dim": SIZE,
    "max_position_embeddings": COUNT,
    "tie_word_embeddings": switch,
    "bos_token_id": ids,
    "eos_token_id": ids,
    "pad_token_id": ids,
}
_FIXED: dict[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "attention_chunk_size": (None,),
    "token_classification_bias": (True,),
}
_CAUSAL: dict[str, tuple[Any, ...]] = {"use_bidirectional_attention": (False,)}
# pretraining_tp slices the same products; decoders here have no dropout of their own.
_WITHOUT_EFFECT = ("pretraining_tp", "attention_dropout", "resid_pdrop", "embd_pdrop")
_WITHOUT_EFFECT += ("hidden_dropout", "classifier_dropout")

BLOCK = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.o_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "norm": "post_attention_layernorm",
}
_GEMMA_BLOCK = BLOCK | {
    "attention_out_norm": "post_attention_layernorm",
    "norm": "pre_feedforward_layernorm",
    "down_norm": "post_feedforward_layernorm",
}
_GLM_BLOCK = BLOCK | {
    "attention_out_norm": "post_self_attn_layernorm",
    "down_norm": "post_mlp_layernorm",
}


def _mixture(router: str, *experts: str, **tensors: bool) -> dict[str, Any]:
    """Returns the names of a block with a router and gate, up and down of experts."""
    gate, up, down = experts
    names = {
        "mixture.router": router,
        "mixture.experts.gate": gate,
        "mixture.experts.up": up,
        "mixture.experts.down": down,
    }
    return {
        "block": BLOCK | names,
        "expert_tensors": (
            ExpertTensor("mlp.experts.gate_up_proj", (gate, up), **tensors),
            ExpertTensor("mlp.experts.down_proj", (down,), **tensors),
        ),
    }


_EXPERTS = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj")
_MIXTRAL = _mixture(
    "block_sparse_moe.gate",
    *(f"block_sparse_moe.experts.{{}}.{name}" for name in ("w1", "w3", "w2")),
)
_EXPERTS_OF_QWEN = _mixture("mlp.gate", *_EXPERTS)
_GPT_OSS = _mixture("mlp.router", *_EXPERTS, inputs_first=True, interleaved=True, written=True)
_GPT_OSS["block"] |= {"sinks": "self_attn.sinks"}

_QKV = Fused(
    "self_attn.qkv_proj",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    lambda config: (
        config.num_heads * config.head_size,
        config.num_kv_heads * config.head_size,
        config.num_kv_heads * config.head_size,
    ),
)
_GATE_UP = Fused(
    "mlp.gate_up_proj",
    ("mlp.gate_proj", "mlp.up_proj"),
    lambda config: (config.intermediate_size,) * 2,
)


def _family(
    class_name: str,
    *settings: Setting,
    keys: Mapping[str, str] | None = None,
    fixed: Mapping[str, tuple[Any, ...]] | None = None,
    block: Mapping[str, str] = BLOCK,
    fused: tuple[Fused, ...] = (),
    expert_tensors: tuple[ExpertTensor, ...] = (),
    other_classes: Mapping[str, str | None] | None = None,
    **defaults: Any,
) -> DecoderFamily:
    names = _KEYS | dict(keys or {})
    read = _READ | {names["norm_eps"]: EPSILON, names["activation"]: activation}
    if names["activation"] != "hidden_act":
        del read["hidden_act"]
    for setting in settings:
        read |= setting.keys
    return DecoderFamily(
        class_name=class_name,
        config_keys=keys_of_family(read, {**_FIXED, **(fixed or {})}, _WITHOUT_EFFECT),
        ignored=r".*rotary_emb\.inv_freq|lm_head\.weight",  # a file may hold a tied output, too
        settings=settings,
        block=block,
        keys=names,
        defaults={"activation": "silu", "norm_eps": 1e-6, "tie_embeddings": False} | defaults,
        fused=fused,
        expert_tensors=expert_tensors,
        other_classes=other_classes or {},
    )


_TEXTS, _TOKENS = "ForSequenceClassification", "ForTokenClassification"
_MINISTRAL_3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_QWEN: dict[str, Any] = {"context": 32768, "num_kv_heads": 32}
_GEMMA: dict[str, Any] = {
    "activation": "gelu_pytorch_tanh",
    "head_size": 256,
    "num_kv_heads": 4,
    "tie_embeddings": True,
    "fixed": _CAUSAL,
}
_GEMMA_FROM_2: dict[str, Any] = _GEMMA | {
    "keys": {"activation": "hidden_activation"},
    "block": _GEMMA_BLOCK,
}
_GEMMA_1: dict[str, Any] = _GEMMA | {"num_kv_heads": 16}
_GEMMA_3: dict[str, Any] = _GEMMA_FROM_2 | {"fixed": _CAUSAL | {"attn_logit_softcapping": (None,)}}
# Noise in the router's training, which training here does not have.
_JITTER: dict[str, tuple[Any, ...]] = {"router_jitter_noise": (0.0,)}
_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
_GEMMA_NORM = always(norm="rms_from_1")
_GLM: dict[str, Any] = {
    "context": 131072,
    "num_kv_heads": 2,
    "head_size": 128,
    "norm_eps": 1.5625e-7,
    "fused": (_GATE_UP,),
}
_GLM_SETTINGS = (
    flag("attention_bias", "qkv_bias", default=True),
    rope(fraction=0.5, interleaved=True),
)
_OLMO: dict[str, Any] = {
    "block": {name: part for name, part in _GEMMA_BLOCK.items() if name != "norm"},
    "other_classes": {_TOKENS: None},
    "context": 2048,
    "norm_eps": 1e-5,
}
_OLMO_SETTINGS = (
    ATTENTION_BIAS,
    always(norm_before=False, norm_after=True, qk_norm="whole"),
)

FAMILIES: dict[str, DecoderFamily] = {
    # Not part of the network, but transformers' cache would drop tokens outside the window.
    "llama": _family(
        "Llama",
        ATTENTION_BIAS,
        MLP_BIAS,
        rope(),
        context=2048,
        fixed={"sliding_window": (None,)},
    ),
    "mistral": _family("Mistral", window(4096), rope(), context=131072, num_kv_heads=8),
    "ministral": _family("Ministral", WINDOWS_OF_TYPES, rope(), context=131072, num_kv_heads=8),
    "ministral3": _family(
        "Ministral3",
        window(None),
        rope(default=_MINISTRAL_3_ROPE, theta=1e6),
        context=262144,
        num_kv_heads=8,
        head_size=128,
        norm_eps=1e-5,
    ),
    "qwen2": _family("Qwen2", WINDOWS_FROM_A_LAYER_ON, rope(), always(qkv_bias=True), **_QWEN),
    "qwen3": _family(
        "Qwen3",
        WINDOWS_FROM_A_LAYER_ON,
        rope(),
        ATTENTION_BIAS,
        always(qk_norm="head"),
        head_size=128,
        **_QWEN,
    ),
    "gemma": _family(
        "Gemma",
        _GEMMA_NORM,
        ATTENTION_BIAS,
        rope(),
        EMBEDDING_BY_WIDTH,
        # Old files say "gelu" and mean the approximation, as transformers reads them.
        Setting(
            {},
            lambda hf, values: (
                {"activation": "gelu_pytorch_tanh"} if values["activation"] == "gelu" else {}
            ),
        ),
        context=8192,
        **_GEMMA_1,
    ),
    "gemma2": _family(
        "Gemma2",
        _GEMMA_NORM,
        NORMS_AROUND,
        ATTENTION_BIAS,
        windows_but_every(2),
        rope(),
        EMBEDDING_BY_WIDTH,
        QUERY_SCALE,
        cap("attn_logit_softcapping", "attention_cap", 50.0),
        cap("final_logit_softcapping", "logit_cap", 30.0),
        context=8192,
        **_GEMMA_FROM_2,
    ),
    "gemma3_text": _family(
        "Gemma3",
        _GEMMA_NORM,
        NORMS_AROUND,
        ATTENTION_BIAS,
        always(qk_norm="head"),
        windows_but_every(6, key="sliding_window_pattern"),
        ropes_by_type(1e6, 1e4, sliding_key="rope_local_base_freq"),
        EMBEDDING_BY_WIDTH,
        QUERY_SCALE,
        cap("final_logit_softcapping", "logit_cap", None),
        # The published multimodal files leave these out.
        vocab_size=262208,
        num_heads=8,
        context=131072,
        other_classes={_TEXTS: "Gemma3TextForSequenceClassification", _TOKENS: None},
        **_GEMMA_3,
    ),
    "phi3": _family(
        "Phi3",
        window(None),
        rope(fraction=1.0, renamed={"su": "longrope", "yarn": "longrope"}),
        context=4096,
        norm_eps=1e-5,
        fused=(_QKV, _GATE_UP),
    ),
    "olmo2": _family("Olmo2", *_OLMO_SETTINGS, rope(), **_OLMO),
    "olmo3": _family(
        "Olmo3", *_OLMO_SETTINGS, windows_but_every(4), ropes_by_type(5e5, 5e5), **_OLMO
    ),
    "smollm3": _family(
        "SmolLM3",
        ATTENTION_BIAS,
        MLP_BIAS,
        rope(
            but_every,
            {"no_rope_layers": layers_with_rope, "no_rope_layer_interval": COUNT},
            theta=2e6,
        ),
        Setting(
            {"use_sliding_window": switch, "sliding_window": COUNT, "layer_types": layer_types},
            windows_without_rope,
        ),
        context=32768,
        num_kv_heads=4,
        tie_embeddings=True,
    ),
    "granite": _family(
        "Granite",
        ATTENTION_BIAS,
        MLP_BIAS,
        rope(),
        always(attention_scale=1.0),
        if_given("attention_multiplier", "attention_scale", number(above=0)),
        if_given("embedding_multiplier", "embedding_scale", number(above=0)),
        if_given("residual_multiplier", "residual_scale", number(above=0)),
        if_given("logits_scaling", "logit_scale", number(above=0), lambda value: 1.0 / value),
        context=2048,
        other_classes={_TEXTS: None, _TOKENS: None},
    ),
    "cohere2": _family(
        "Cohere2",
        always(norm="layer_without_bias", parallel=True, logit_scale=0.0625),
        ATTENTION_BIAS,
        windows_but_every(4, key="sliding_window_pattern"),
        rope(in_windows, interleaved=True),
        if_given("logit_scale", "logit_scale", number(above=0)),
        keys={"norm_eps": "layer_norm_eps"},
        context=8192,
        other_classes={_TEXTS: None, _TOKENS: None},
        norm_eps=1e-5,
        tie_embeddings=True,
    ),
    "glm": _family("Glm", *_GLM_SETTINGS, **_GLM),
    "glm4": _family("Glm4", *_GLM_SETTINGS, NORMS_AROUND, block=_GLM_BLOCK, **_GLM),
    "mixtral": _family(
        "Mixtral",
        window(None),
        rope(theta=1e6),
        mixture(8, 2, normalize=True),
        **_MIXTRAL,
        fixed=_JITTER,
        context=131072,
        num_kv_heads=8,
        norm_eps=1e-5,
    ),
    "qwen3_moe": _family(
        "Qwen3Moe",
        WINDOW_IF_USED,
        rope(),
        ATTENTION_BIAS,
        always(qk_norm="head"),
        mixture(128, 8, width="moe_intermediate_size", default_width=768, **SPARSE_LAYERS),
        **_EXPERTS_OF_QWEN,
        context=32768,
        num_kv_heads=4,
    ),
    "olmoe": _family(
        "Olmoe",
        rope(),
        ATTENTION_BIAS,
        always(qk_norm="whole"),
        if_given("clip_qkv", "qkv_clip", number(above=0)),
        mixture(64, 8, balance_weight=0.01),
        **_EXPERTS_OF_QWEN,
        fixed={"sliding_window": (None,)},
        context=4096,
        norm_eps=1e-5,
        other_classes={_TEXTS: None, _TOKENS: None},
    ),
    "gpt_oss": _family(
        "GptOss",
        windows_but_every(2, 128),
        Setting({"quantization_config": mxfp4_only}, lambda hf, values: {}),  # read dequantized
        rope(default=_GPT_OSS_ROPE, theta=150000.0),
        flag("attention_bias", "qkv_bias", "out_bias", default=True),
        always(sinks=True),
        mixture(128, 4, normalize=True, router_bias=True, bias=True, **CLAMPED_GATE),
        **_GPT_OSS,
        context=131072,
        num_kv_heads=8,
        head_size=64,
        norm_eps=1e-5,
    ),
    "stablelm": _family(
        "StableLm",
        always(norm="layer"),
        flag("use_qkv_bias", "qkv_bias"),
        flag("use_parallel_residual", "parallel"),
        rope(fraction=0.25),
        keys={"norm_eps": "layer_norm_eps"},
        fixed={"qk_layernorm": (False,)},
        context=4096,
        num_kv_heads=32,
        norm_eps=1e-5,
    ),
}
"""model_type of config.json -> its family."""
