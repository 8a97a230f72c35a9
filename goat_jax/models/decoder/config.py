"""Sizes and settings of a decoder: one network with these settings is every family's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from goat_jax.errors import UserError, nearest
from goat_jax.models.decoder.families import FAMILIES, SIZE_KEYS
from goat_jax.models.decoder.mixture import MixtureConfig
from goat_jax.models.family import label_count
from goat_jax.nn.modules import ACTIVATIONS, NORMS
from goat_jax.nn.rope import Rope
from goat_jax.pretrained.end_tokens import token_ids

_SIZES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_size")
_SIZES += ("intermediate_size", "context")

QK_NORMS = (None, "head", "whole")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and settings of a decoder; `from_hf` reads them from a config.json.

    Attributes:
        family: a key of `FAMILIES`.
        vocab_size: number of tokens in the vocabulary.
        hidden_size: width D of the hidden states.
        num_layers: number of blocks.
        num_heads: number of query heads per block.
        num_kv_heads: number of key and value heads; num_heads / num_kv_heads queries share each.
        head_size: features per head.
        intermediate_size: width of the feed-forward's hidden layer.
        context: number of tokens the model was trained for.
        windows: per layer, the number of tokens that attention reaches back; None for all.
        ropes: per layer, the settings of the rotary positions; None for a layer without positions.
        activation: activation of the feed-forward's gate, a key of `ACTIVATIONS`.
        norm: kind of all norms outside the attention, a key of `NORMS`; those of queries and keys
            are of the same kind.
        norm_eps: constant added to every mean square or variance in a norm.
        norm_before: whether the inputs of attention and feed-forward are normalized.
        norm_after: whether their outputs are normalized.
        parallel: whether the feed-forward reads the attention's input, not its result.
        qkv_bias: whether query, key and value have biases.
        out_bias: whether the attention's output layer has a bias.
        mlp_bias: whether the feed-forward's layers have biases.
        qk_norm: normalization of queries and keys before they are rotated: of each "head", of the
            "whole" projection, or None.
        qkv_clip: bound of the values of queries, keys and values; None for none.
        sinks: whether every head has a further key with a score alone.
        attention_scale: factor of the scores; None is 1 / sqrt(head_size).
        attention_cap: soft cap of the scores; None for none.
        embedding_scale: factor of the embeddings.
        residual_scale: factor of what attention and feed-forward add.
        logit_scale: factor of the logits.
        logit_cap: soft cap of the logits; None for none.
        mixture: settings of feed-forwards that are mixtures of experts; None without any.
        tie_embeddings: whether the output kernel is the embedding table.
        bos_id: the token that begins a text; None if the checkpoint names none.
        eos_ids: the tokens that end a text.
        pad_id: the padding token; None if the checkpoint names none.
        head: "language" for the vocabulary's output kernel; "sequence" for classes of a text,
            "tokens" for classes of every token.
        num_labels: number of classes, 1 for a regression; 0 for a language model.

    Raises:
        UserError: a size below 1, heads that do not divide, an odd number of rotated features, a
            wrong number of windows, ropes or mixtures, an unknown activation or norm.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    intermediate_size: int
    context: int
    windows: tuple[int | None, ...]
    ropes: tuple[Rope | None, ...]
    activation: str = "silu"
    norm: str = "rms"
    norm_eps: float = 1e-6
    norm_before: bool = True
    norm_after: bool = False
    parallel: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str | None = None
    qkv_clip: float | None = None
    sinks: bool = False
    attention_scale: float | None = None
    attention_cap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    mixture: MixtureConfig | None = None
    tie_embeddings: bool = False
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    head: str = "language"
    num_labels: int = 0

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
        for rope in set(self.ropes) - {None}:
            if rope is not None and (turned := rope.rotated(self.head_size)) % 2:
                raise UserError(f"{turned} rotated features are odd: rotary positions need pairs")
        by_layer = {"windows": self.windows, "ropes": self.ropes}
        if self.mixture is not None:
            by_layer["feed-forwards"] = self.mixture.layers
        for name, each in by_layer.items():
            if len(each) != self.num_layers:
                raise UserError(f"{len(each)} {name} for {self.num_layers} layers: give one each")
        if (self.num_labels > 0) != (self.head != "language"):
            raise UserError(
                f"head {self.head!r} with {self.num_labels!r} labels: give both or none"
            )
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            hint = nearest(str(self.activation), ACTIVATIONS)
            raise UserError(f"activation {self.activation!r} is not one of {known}{hint}")
        if self.norm not in NORMS or self.qk_norm not in QK_NORMS:
            raise UserError(
                f"norm {self.norm!r} with qk_norm {self.qk_norm!r}: choose from {', '.join(NORMS)} "
                f"and {', '.join(map(str, QK_NORMS))}"
            )

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
        values: dict[str, Any] = {
            ours: _size(hf, theirs, family.defaults.get(ours)) for ours, theirs in SIZE_KEYS.items()
        }
        heads, width, layers = (values[name] for name in ("num_heads", "hidden_size", "num_layers"))
        usual = family.defaults.get("num_kv_heads")
        values |= {
            "family": hf["model_type"],
            # A missing number is the family's; null is the number of heads.
            "num_kv_heads": hf.get(family.keys["num_kv_heads"], usual) or heads,
            "head_size": family.value(hf, "head_size") or width // max(1, heads),
            "windows": (None,) * layers,
            "eos_ids": token_ids(hf),
        }
        plain = ("context", "activation", "norm_eps", "tie_embeddings", "bos_id", "pad_id")
        values |= {field: family.value(hf, field) for field in plain}
        for setting in family.settings:
            values |= setting.fields(hf, values)
        if overrides.get("head", cls.head) != cls.head:
            values["num_labels"] = label_count(hf)
        return cls(**(values | overrides))

    @property
    def kinds(self) -> tuple[bool, ...]:
        """Per layer, whether its feed-forward is a mixture of experts."""
        return (False,) * self.num_layers if self.mixture is None else self.mixture.layers

    @property
    def unbounded(self) -> bool:
        """True if rotary positions stretch to texts longer than the context."""
        return any(rope is not None and rope.kind == "dynamic" for rope in self.ropes)

    @property
    def rotation_changes_after(self) -> int | None:
        """Number of tokens beyond which longrope rotates every token anew; None for never."""
        kinds = (rope for rope in self.ropes if rope is not None)
        return next((rope.first_context for rope in kinds if rope.kind == "longrope"), None)


def tiny_decoder_config(**changes: Any) -> DecoderConfig:
    """Builds a config small enough for tests and examples.

    >>> tiny_decoder_config(num_layers=3).windows
    (None, None, None)
    """
    layers = changes.get("num_layers", 2)
    values: dict[str, Any] = dict(
        family="llama",
        vocab_size=64,
        hidden_size=32,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_size=8,
        intermediate_size=48,
        context=64,
        windows=(None,) * layers,
        ropes=(Rope(context=64),) * layers,
    )
    return DecoderConfig(**(values | changes))


def _size(hf: Mapping[str, Any], key: str, default: int | None) -> int:
    size = default if hf.get(key) is None else hf[key]
    if size is None:
        raise UserError(f"config.json has no {key}: add it, it is a size of the network")
    return size
