"""Sizes and settings of a decoder, and the differences between model families.

Llama 2 and 3, SmolLM2, Qwen2 and 2.5, and Mistral are one network with these settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from goat_jax.errors import UserError, nearest
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
                f"{self.num_heads} heads are not divisible by {self.num_kv_heads} heads of keys: "
                "correct one of them"
            )
        if self.head_size % 2:
            raise UserError(f"head size {self.head_size} is odd: positions turn pairs of features")
        if len(self.windows) != self.num_layers:
            raise UserError(f"{len(self.windows)} windows for {self.num_layers} layers: one each")
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
        heads = sizes["num_heads"]
        context = hf.get("max_position_embeddings") or family.context
        values: dict[str, Any] = sizes | {
            "num_kv_heads": hf.get("num_key_value_heads") or family.kv_heads or heads,
            "head_size": hf.get("head_dim") or sizes["hidden_size"] // max(1, heads),
            "context": context,
            "windows": family.windows(hf, sizes["num_layers"]),
            "rope": Rope.from_hf(hf, theta=10000.0, context=context),
            "activation": hf.get("hidden_act") or "silu",
            "rms_norm_eps": 1e-6 if hf.get("rms_norm_eps") is None else hf["rms_norm_eps"],
            "tie_embeddings": bool(hf.get("tie_word_embeddings", False)),
            "bos_id": hf.get("bos_token_id"),
            "eos_ids": token_ids(hf),
            "pad_id": hf.get("pad_token_id"),
        }
        return cls(**(values | family.biases(hf) | overrides))


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
class Family:
    """Settings that distinguish one family of decoders.

    Attributes:
        windows: function from config.json and the number of layers to the window of every layer.
        biases: function from config.json to the fields qkv_bias, out_bias and mlp_bias.
        kv_heads: number of key and value heads if config.json has none; None: as many as heads.
        context: context length if config.json has none.
    """

    windows: Callable[[Mapping[str, Any], int], Windows]
    biases: Callable[[Mapping[str, Any]], dict[str, Any]]
    kv_heads: int | None
    context: int


def _no_windows(hf: Mapping[str, Any], layers: int) -> Windows:
    del hf
    return (None,) * layers


def _same_windows(hf: Mapping[str, Any], layers: int) -> Windows:
    return (hf.get("sliding_window", 4096),) * layers


def _windows_by_layer(hf: Mapping[str, Any], layers: int) -> Windows:
    """Returns Qwen2's windows: by `layer_types`, or from layer `max_window_layers` on; or none."""
    window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None
    first = 28 if hf.get("max_window_layers") is None else hf["max_window_layers"]
    default = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    kinds = hf.get("layer_types") or default
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _llama_biases(hf: Mapping[str, Any]) -> dict[str, Any]:
    attention, mlp = bool(hf.get("attention_bias")), bool(hf.get("mlp_bias"))
    return {"qkv_bias": attention, "out_bias": attention, "mlp_bias": mlp}


FAMILIES: dict[str, Family] = {
    "llama": Family(_no_windows, _llama_biases, None, 2048),
    "mistral": Family(_same_windows, lambda hf: {}, 8, 131072),
    "qwen2": Family(_windows_by_layer, lambda hf: {"qkv_bias": True}, 32, 32768),
}
"""model_type of config.json -> its family."""
