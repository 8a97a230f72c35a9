"""Sizes and settings of a decoder, and the differences between model families.

Llama 2 and 3, SmolLM2, Qwen2, 2.5 and 3, and Mistral are one network with these settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from goat_jax.errors import UserError, nearest
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
from goat_jax.nn.modules import ACTIVATIONS
from goat_jax.nn.rope import Rope
from goat_jax.pretrained.end_tokens import token_ids

_SIZES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_size")
_SIZES += ("intermediate_size", "context")

Windows = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder; `from_hf` reads them from a config.json.

    Attributes:
        vocab_size: number of tokens in the vocabulary.
        hidden_size: width D of the hidden states.
        num_layers: number of blocks.
        num_heads: number of query heads per block.
        num_kv_heads: number of key and value heads; num_heads / num_kv_heads queries share each.
        head_size: features per head; must be even.
        intermediate_size: width of the feed-forward's hidden layer.
        context: number of tokens the model was trained for.
        windows: per layer, the number of tokens that attention reaches back; None for all.
        rope: settings of the rotary position embeddings.
        activation: activation of the feed-forward's gate, a key of `ACTIVATIONS`.
        rms_norm_eps: constant added to every mean square in RMS normalization.
        qkv_bias: whether query, key and value have biases.
        out_bias: whether the attention's output layer has a bias.
        mlp_bias: whether the feed-forward's layers have biases.
        qk_norm: whether every head's query and key are normalized before they are rotated.
        tie_embeddings: whether the output kernel is the embedding table.
        bos_id: the token that begins a text; None if the checkpoint names none.
        eos_ids: the tokens that end a text.
        pad_id: the padding token; None if the checkpoint names none.

    Raises:
        UserError: a size below 1, heads that do not divide, an odd head size, a wrong number of
            windows, an unknown activation.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    context: int
    windows: Windows
    rope: Rope = Rope()
    activation: str = "silu"
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        for name in _SIZES:
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise UserError(f"{name} is {size!r}: it must be a whole number from 1 up")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"{self.num_heads} heads are not divisible by {self.num_kv_heads} key-value heads: "
                "correct one of them"
            )
        if self.head_size % 2:
            raise UserError(f"head size {self.head_size} is odd: rotary positions need an even one")
        if len(self.windows) != self.num_layers:
            raise UserError(
                f"{len(self.windows)} windows for {self.num_layers} layers: give one each"
            )
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            hint = nearest(str(self.activation), ACTIVATIONS)
            raise UserError(f"activation {self.activation!r} is not one of {known}{hint}")

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], **overrides: Any) -> DecoderConfig:
        """Reads a config.json given as a dict; overrides win.

        Raises:
            UserError: a missing size, an unknown override, or a setting that is not supported.

        >>> config = DecoderConfig.from_hf({"model_type": "llama", "vocab_size": 9,
        ...     "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        ...     "intermediate_size": 16})
        >>> config.num_kv_heads, config.head_size, config.windows
        (2, 4, (None, None))
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        for name in overrides:
            if name not in fields:
                raise UserError(f"a decoder has no setting {name!r}{nearest(name, fields)}")
        family = FAMILIES[hf["model_type"]]
        sizes: dict[str, Any] = {ours: _size(hf, theirs) for ours, theirs in _SIZE_KEYS.items()}
        heads, width = sizes["num_heads"], sizes["hidden_size"]
        context = hf.get("max_position_embeddings") or family.context
        values: dict[str, Any] = sizes | {
            "num_kv_heads": hf.get("num_key_value_heads", family.kv_heads) or heads,
            "head_size": hf.get("head_dim") or family.head_size or width // max(1, heads),
            "context": context,
            "windows": (None,) * sizes["num_layers"],
            "rope": Rope.from_hf(hf, theta=10000.0, context=context),
            "activation": hf.get("hidden_act") or "silu",
            "rms_norm_eps": 1e-6 if hf.get("rms_norm_eps") is None else hf["rms_norm_eps"],
            "tie_embeddings": bool(hf.get("tie_word_embeddings", False)),
            "bos_id": hf.get("bos_token_id"),
            "eos_ids": token_ids(hf),
            "pad_id": hf.get("pad_token_id"),
        }
        return cls(**(values | family.fields(hf, sizes["num_layers"]) | overrides))


def tiny_decoder_config(**changes: Any) -> DecoderConfig:
    """Builds a config small enough for tests and examples.

    >>> tiny_decoder_config(num_layers=3).windows
    (None, None, None)
    """
    layers = changes.get("num_layers", 2)
    values: dict[str, Any] = dict(
        vocab_size=64,
        hidden_size=32,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_size=8,
        intermediate_size=48,
        context=64,
        windows=(None,) * layers,
    )
    return DecoderConfig(**(values | changes))


LARGEST_SIZE = 10**7
_SIZE_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}
KEYS = _SIZE_KEYS | {
    "num_kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "context": "max_position_embeddings",
    "activation": "hidden_act",
    "rms_norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "bos_id": "bos_token_id",
    "pad_id": "pad_token_id",
}
"""Field of `DecoderConfig` -> the key of config.json with the same meaning."""


def _size(hf: Mapping[str, Any], key: str) -> int:
    if hf.get(key) is None:
        raise UserError(f"config.json has no {key}: add it, it is a size of the network")
    size = hf[key]
    # Other values are computed from it before the class checks it, such as a window per layer.
    if type(size) is not int or size > LARGEST_SIZE:
        raise UserError(f"{key} is {size!r}: it must be a whole number from 1 to {LARGEST_SIZE}")
    return size


@dataclasses.dataclass(frozen=True)
class Setting:
    """Fields of `DecoderConfig` that only some families have.

    Attributes:
        keys: the keys of config.json that it reads, with their checks.
        fields: function from config.json and the number of layers to the fields.
    """

    keys: Mapping[str, Check]
    fields: Callable[[Mapping[str, Any], int], dict[str, Any]]


def _windows_by_layer(hf: Mapping[str, Any], layers: int) -> dict[str, Any]:
    window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None
    first = 28 if hf.get("max_window_layers") is None else hf["max_window_layers"]
    default = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    kinds = hf.get("layer_types") or default
    return {"windows": tuple(window if kind == "sliding_attention" else None for kind in kinds)}


def _attention_bias(hf: Mapping[str, Any], layers: int) -> dict[str, Any]:
    return dict.fromkeys(("qkv_bias", "out_bias"), bool(hf.get("attention_bias")))


def _layer_types(key: str, value: Any) -> None:
    known = ("full_attention", "sliding_attention")
    if not isinstance(value, list | tuple) or any(kind not in known for kind in value):
        raise UserError(
            f"config.json: {key} is {value!r}: it must be a list of {' and '.join(known)}"
        )


ONE_WINDOW = Setting(
    {"sliding_window": COUNT},
    lambda hf, layers: {"windows": (hf.get("sliding_window", 4096),) * layers},
)
"""The same window in every layer."""

WINDOWS_BY_LAYER = Setting(
    {
        "use_sliding_window": switch,
        "sliding_window": COUNT,
        "max_window_layers": number(at_least=0, whole=True),
        "layer_types": _layer_types,
    },
    _windows_by_layer,
)
"""A window in the layers of `layer_types`, or from layer `max_window_layers` on."""

ATTENTION_BIAS = Setting({"attention_bias": switch}, _attention_bias)
"""Biases of all layers of the attention."""

MLP_BIAS = Setting({"mlp_bias": switch}, lambda hf, layers: {"mlp_bias": bool(hf.get("mlp_bias"))})
"""Biases of all layers of the feed-forward."""

QKV_BIAS = Setting({}, lambda hf, layers: {"qkv_bias": True})
"""Biases of query, key and value, in every checkpoint."""

QK_NORM = Setting({}, lambda hf, layers: {"qk_norm": True})
"""Norms of query and key, in every checkpoint."""

_READ: dict[str, Check] = {
    **SIZES,
    "num_key_value_heads": COUNT,
    "head_dim": COUNT,
    "max_position_embeddings": COUNT,
    "original_max_position_embeddings": COUNT,
    "rms_norm_eps": EPSILON,
    "rope_theta": number(above=0),
    "rope_scaling": table,
    "rope_parameters": table,
    "partial_rotary_factor": anything,
    "tie_word_embeddings": switch,
    "bos_token_id": ids,
    "eos_token_id": ids,
    "pad_token_id": ids,
}
_FIXED: dict[str, tuple[Any, ...]] = {"is_causal": (True,), "attention_chunk_size": (None,)}
# pretraining_tp slices the same products; decoders here have no attention dropout.
_WITHOUT_EFFECT = ("pretraining_tp", "attention_dropout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderFamily(Family):
    """Facts that distinguish one family of decoders.

    Attributes:
        settings: the fields of `DecoderConfig` that not all families have.
        context: context length if config.json has none.
        kv_heads: number of key and value heads if config.json has no such key; None: all heads.
        head_size: features per head if config.json has none; None: the width over the heads.
    """

    settings: tuple[Setting, ...]
    context: int
    kv_heads: int | None = None
    head_size: int | None = None

    def fields(self, hf: Mapping[str, Any], layers: int) -> dict[str, Any]:
        """Returns the fields of `DecoderConfig` that its settings read from a config.json."""
        fields = {}
        for setting in self.settings:
            fields |= setting.fields(hf, layers)
        return fields


def _family(
    class_name: str,
    *settings: Setting,
    fixed: Mapping[str, tuple[Any, ...]] | None = None,
    **defaults: Any,
) -> DecoderFamily:
    read = _READ.copy()
    for setting in settings:
        read |= setting.keys
    return DecoderFamily(
        class_name=class_name,
        config_keys=keys_of_family(read, {**_FIXED, **(fixed or {})}, _WITHOUT_EFFECT),
        ignored=r".*rotary_emb\.inv_freq|lm_head\.weight",  # a file may hold a tied output, too
        settings=settings,
        **defaults,
    )


_QWEN: dict[str, Any] = {"context": 32768, "kv_heads": 32}

FAMILIES: dict[str, DecoderFamily] = {
    # Not part of the network, but transformers' cache would drop tokens outside the window.
    "llama": _family(
        "Llama", ATTENTION_BIAS, MLP_BIAS, context=2048, fixed={"sliding_window": (None,)}
    ),
    "mistral": _family("Mistral", ONE_WINDOW, context=131072, kv_heads=8),
    "qwen2": _family("Qwen2", WINDOWS_BY_LAYER, QKV_BIAS, **_QWEN),
    "qwen3": _family("Qwen3", WINDOWS_BY_LAYER, ATTENTION_BIAS, QK_NORM, head_size=128, **_QWEN),
}
"""model_type of config.json -> its family."""
