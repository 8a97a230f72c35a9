"""Differences between families of decoders, as one table of settings.

Each difference is a field of `goat_jax.models.decoder.config.DecoderConfig` that a `Setting` reads,
a name, or a default; there is no other code per family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from goat_jax.errors import UserError
from goat_jax.models.config_keys import (
    COUNT,
    EPSILON,
    SIZES,
    Check,
    anything,
    ids,
    keys_of_family,
    number,
    switch,
    table,
)
from goat_jax.models.family import Family
from goat_jax.models.fused import Fused
from goat_jax.nn.rope import Rope

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Fields of `DecoderConfig` that only some families have.

    Attributes:
        keys: the keys of config.json that it reads, with their checks.
        fields: function from config.json and the fields so far to its fields.
    """

    keys: Mapping[str, Check]
    fields: Callable[[Mapping[str, Any], Fields], Fields]


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
    """

    settings: tuple[Setting, ...]
    block: Mapping[str, str]
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    fused: tuple[Fused, ...]

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


def always(**fields: Any) -> Setting:
    """Returns the setting of fields that have the same values in every checkpoint."""
    return Setting({}, lambda hf, values: dict(fields))


def _flag(key: str, *fields: str, default: bool = False) -> Setting:
    def read(hf: Mapping[str, Any], values: Fields) -> Fields:
        given = hf.get(key)
        return dict.fromkeys(fields, default if given is None else given)

    return Setting({key: switch}, read)


def _number(key: str, field: str, check: Check, convert: Callable[[Any], Any] = float) -> Setting:
    """Returns the setting of a field that keeps its default if config.json has no such key."""

    def read(hf: Mapping[str, Any], values: Fields) -> Fields:
        return {} if hf.get(key) is None else {field: convert(hf[key])}

    return Setting({key: check}, read)


def _cap(key: str, field: str, default: float | None) -> Setting:
    """Returns the setting of a soft cap; null means none."""
    return Setting({key: number(above=0)}, lambda hf, values: {field: hf.get(key, default)})


def _layer_types(key: str, value: Any) -> None:
    known = ("full_attention", "sliding_attention")
    if not isinstance(value, list | tuple) or any(kind not in known for kind in value):
        raise UserError(
            f"config.json: {key} is {value!r}: it must be a list of {' and '.join(known)}"
        )


def _by_type(hf: Mapping[str, Any], window: int | None, sliding: list[bool]) -> Fields:
    kinds = hf.get("layer_types")
    if kinds is not None:
        sliding = [kind == "sliding_attention" for kind in kinds]
    return {"windows": tuple(window if slides else None for slides in sliding)}


def _windows_from_a_layer_on(hf: Mapping[str, Any], values: Fields) -> Fields:
    window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None
    first = 28 if hf.get("max_window_layers") is None else hf["max_window_layers"]
    return _by_type(hf, window, [layer >= first for layer in range(values["num_layers"])])


def _windows_but_every(pattern: int) -> Setting:
    """Returns the setting of a window in all layers but every `pattern`-th."""

    def read(hf: Mapping[str, Any], values: Fields) -> Fields:
        every = hf.get("sliding_window_pattern") or pattern
        sliding = [bool((layer + 1) % every) for layer in range(values["num_layers"])]
        return _by_type(hf, hf.get("sliding_window", 4096), sliding)

    return Setting(
        {"sliding_window": COUNT, "sliding_window_pattern": COUNT, "layer_types": _layer_types},
        read,
    )


def _window(default: int | None) -> Setting:
    """Returns the setting of the same window in every layer."""
    return Setting(
        {"sliding_window": COUNT},
        lambda hf, values: {"windows": (hf.get("sliding_window", default),) * values["num_layers"]},
    )


_WINDOWS_FROM_A_LAYER_ON = Setting(
    {
        "use_sliding_window": switch,
        "sliding_window": COUNT,
        "max_window_layers": number(at_least=0, whole=True),
        "layer_types": _layer_types,
    },
    _windows_from_a_layer_on,
)

_WINDOWS_OF_TYPES = Setting(
    {"sliding_window": COUNT, "layer_types": _layer_types},
    lambda hf, values: _by_type(hf, hf.get("sliding_window", 4096), [True] * values["num_layers"]),
)

_ROPE_KEYS: dict[str, Check] = {
    "rope_theta": number(above=0),
    "rope_scaling": table,
    "rope_parameters": table,
    "partial_rotary_factor": anything,
    "original_max_position_embeddings": COUNT,
}

Ropes = tuple[Rope | None, ...]


def _rope(
    place: Callable[[Rope, Mapping[str, Any], Fields], Ropes] | None = None,
    keys: Mapping[str, Check] | None = None,
    default: Mapping[str, Any] | None = None,
    **options: Any,
) -> Setting:
    """Returns the setting of rotary positions.

    Args:
        place: (settings, config.json, fields so far) -> those of each layer; None for the same in
            all.
        keys: further keys of config.json that `place` reads.
        default: ``rope_parameters`` of a config.json without them.
        options: arguments of `Rope.from_hf`.
    """

    def read(hf: Mapping[str, Any], values: Fields) -> Fields:
        if default and not (hf.get("rope_parameters") or hf.get("rope_scaling")):
            hf = {**hf, "rope_parameters": default}
        rope = Rope.from_hf(hf, **({"theta": 10000.0, "context": values["context"]} | options))
        layers = values["num_layers"]
        return {"ropes": (rope,) * layers if place is None else place(rope, hf, values)}

    return Setting(_ROPE_KEYS | dict(keys or {}), read)


def _in_windows(rope: Rope, hf: Mapping[str, Any], values: Fields) -> Ropes:
    return tuple(None if window is None else rope for window in values["windows"])


def _layers_with_rope(key: str, value: Any) -> None:
    if not isinstance(value, list | tuple) or any(each not in (0, 1) for each in value):
        raise UserError(f"config.json: {key} is {value!r}: it must be a list of 0 and 1")


def _but_every(rope: Rope, hf: Mapping[str, Any], values: Fields) -> Ropes:
    every = hf.get("no_rope_layer_interval") or 4
    usual = [(layer + 1) % every for layer in range(values["num_layers"])]
    chosen = hf.get("no_rope_layers")
    return tuple(rope if rotates else None for rotates in (usual if chosen is None else chosen))


def _windows_without_rope(hf: Mapping[str, Any], values: Fields) -> Fields:
    """Reads windows, which by default are in the layers that rotate nothing."""
    window = hf.get("sliding_window") if hf.get("use_sliding_window") else None
    return _by_type(hf, window, [rope is None for rope in values["ropes"]])


def _ropes_by_type(hf: Mapping[str, Any], values: Fields) -> Fields:
    """Reads one set of rotary positions for layers with a window, and one for the others."""
    given = hf.get("rope_parameters") or {}
    nested = {name: given.get(name) or {} for name in ("full_attention", "sliding_attention")}
    rest = {name: value for name, value in given.items() if name not in nested}
    scaling = hf.get("rope_scaling") or rest
    full = {"rope_theta": hf.get("rope_theta")} | scaling | nested["full_attention"]
    local = {"rope_theta": hf.get("rope_local_base_freq")} | nested["sliding_attention"]
    read = partial(Rope.from_hf, context=values["context"])
    everywhere = read({"rope_parameters": full}, theta=1e6)
    within = read({"rope_parameters": local}, theta=1e4)
    windows = values["windows"]
    return {"ropes": tuple(everywhere if window is None else within for window in windows)}


_ROPES_BY_TYPE = Setting(
    {
        "rope_theta": number(above=0),
        "rope_local_base_freq": number(above=0),
        "rope_scaling": table,
        "rope_parameters": table,
    },
    _ropes_by_type,
)

_ATTENTION_BIAS = _flag("attention_bias", "qkv_bias", "out_bias")
_MLP_BIAS = _flag("mlp_bias", "mlp_bias")
_QUERY_SCALE = Setting(
    {"query_pre_attn_scalar": number(above=0)},
    lambda hf, values: {"attention_scale": float(hf.get("query_pre_attn_scalar") or 256) ** -0.5},
)
_EMBEDDING_BY_WIDTH = Setting(
    {}, lambda hf, values: {"embedding_scale": float(values["hidden_size"]) ** 0.5}
)
_NORMS_AROUND = always(norm_after=True)

_READ: dict[str, Check] = {
    **SIZES,
    "num_key_value_heads": COUNT,
    "head_dim": COUNT,
    "max_position_embeddings": COUNT,
    "tie_word_embeddings": switch,
    "bos_token_id": ids,
    "eos_token_id": ids,
    "pad_token_id": ids,
}
_FIXED: dict[str, tuple[Any, ...]] = {"is_causal": (True,), "attention_chunk_size": (None,)}
_CAUSAL: dict[str, tuple[Any, ...]] = {"use_bidirectional_attention": (False,)}
# pretraining_tp slices the same products; decoders here have no dropout of their own.
_WITHOUT_EFFECT = ("pretraining_tp", "attention_dropout", "resid_pdrop", "embd_pdrop")
_WITHOUT_EFFECT += ("hidden_dropout",)

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
    **defaults: Any,
) -> DecoderFamily:
    names = _KEYS | dict(keys or {})
    read = _READ | {names["norm_eps"]: EPSILON, names["activation"]: anything}
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
    )


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
_GEMMA_NORM = always(norm="rms_from_1")
_GLM: dict[str, Any] = {
    "context": 131072,
    "num_kv_heads": 2,
    "head_size": 128,
    "norm_eps": 1.5625e-7,
    "fused": (_GATE_UP,),
}
_GLM_SETTINGS = (
    _flag("attention_bias", "qkv_bias", default=True),
    _rope(fraction=0.5, interleaved=True),
)

FAMILIES: dict[str, DecoderFamily] = {
    # Not part of the network, but transformers' cache would drop tokens outside the window.
    "llama": _family(
        "Llama",
        _ATTENTION_BIAS,
        _MLP_BIAS,
        _rope(),
        context=2048,
        fixed={"sliding_window": (None,)},
    ),
    "mistral": _family("Mistral", _window(4096), _rope(), context=131072, num_kv_heads=8),
    "ministral": _family("Ministral", _WINDOWS_OF_TYPES, _rope(), context=131072, num_kv_heads=8),
    "ministral3": _family(
        "Ministral3",
        _window(None),
        _rope(default=_MINISTRAL_3_ROPE, theta=1e6),
        context=262144,
        num_kv_heads=8,
        head_size=128,
        norm_eps=1e-5,
    ),
    "qwen2": _family("Qwen2", _WINDOWS_FROM_A_LAYER_ON, _rope(), always(qkv_bias=True), **_QWEN),
    "qwen3": _family(
        "Qwen3",
        _WINDOWS_FROM_A_LAYER_ON,
        _rope(),
        _ATTENTION_BIAS,
        always(qk_norm="head"),
        head_size=128,
        **_QWEN,
    ),
    "gemma": _family(
        "Gemma",
        _GEMMA_NORM,
        _ATTENTION_BIAS,
        _rope(),
        _EMBEDDING_BY_WIDTH,
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
        _NORMS_AROUND,
        _ATTENTION_BIAS,
        _windows_but_every(2),
        _rope(),
        _EMBEDDING_BY_WIDTH,
        _QUERY_SCALE,
        _cap("attn_logit_softcapping", "attention_cap", 50.0),
        _cap("final_logit_softcapping", "logit_cap", 30.0),
        context=8192,
        **_GEMMA_FROM_2,
    ),
    "gemma3_text": _family(
        "Gemma3",
        _GEMMA_NORM,
        _NORMS_AROUND,
        _ATTENTION_BIAS,
        always(qk_norm="head"),
        _windows_but_every(6),
        _ROPES_BY_TYPE,
        _EMBEDDING_BY_WIDTH,
        _QUERY_SCALE,
        _cap("final_logit_softcapping", "logit_cap", None),
        # The published multimodal files leave these out.
        vocab_size=262208,
        num_heads=8,
        context=131072,
        **_GEMMA_3,
    ),
    "phi3": _family(
        "Phi3",
        _window(None),
        _rope(fraction=1.0, renamed={"su": "longrope", "yarn": "longrope"}),
        context=4096,
        norm_eps=1e-5,
        fused=(_QKV, _GATE_UP),
    ),
    "olmo2": _family(
        "Olmo2",
        _ATTENTION_BIAS,
        _rope(),
        always(norm_before=False, norm_after=True, qk_norm="whole"),
        block={name: part for name, part in _GEMMA_BLOCK.items() if name != "norm"},
        context=2048,
        norm_eps=1e-5,
    ),
    "smollm3": _family(
        "SmolLM3",
        _ATTENTION_BIAS,
        _MLP_BIAS,
        _rope(
            _but_every,
            {"no_rope_layers": _layers_with_rope, "no_rope_layer_interval": COUNT},
            theta=2e6,
        ),
        Setting(
            {"use_sliding_window": switch, "sliding_window": COUNT, "layer_types": _layer_types},
            _windows_without_rope,
        ),
        context=32768,
        num_kv_heads=4,
        tie_embeddings=True,
    ),
    "granite": _family(
        "Granite",
        _ATTENTION_BIAS,
        _MLP_BIAS,
        _rope(),
        always(attention_scale=1.0),
        _number("attention_multiplier", "attention_scale", number(above=0)),
        _number("embedding_multiplier", "embedding_scale", number(above=0)),
        _number("residual_multiplier", "residual_scale", number(above=0)),
        _number("logits_scaling", "logit_scale", number(above=0), lambda value: 1.0 / value),
        context=2048,
    ),
    "cohere2": _family(
        "Cohere2",
        always(norm="layer_without_bias", parallel=True, logit_scale=0.0625),
        _ATTENTION_BIAS,
        _windows_but_every(4),
        _rope(_in_windows, interleaved=True),
        _number("logit_scale", "logit_scale", number(above=0)),
        keys={"norm_eps": "layer_norm_eps"},
        context=8192,
        norm_eps=1e-5,
        tie_embeddings=True,
    ),
    "glm": _family("Glm", *_GLM_SETTINGS, **_GLM),
    "glm4": _family("Glm4", *_GLM_SETTINGS, _NORMS_AROUND, block=_GLM_BLOCK, **_GLM),
    "stablelm": _family(
        "StableLm",
        always(norm="layer"),
        _flag("use_qkv_bias", "qkv_bias"),
        _flag("use_parallel_residual", "parallel"),
        _rope(fraction=0.25),
        keys={"norm_eps": "layer_norm_eps"},
        fixed={"qk_layernorm": (False,)},
        context=4096,
        num_kv_heads=32,
        norm_eps=1e-5,
    ),
}
"""model_type of config.json -> its family."""
