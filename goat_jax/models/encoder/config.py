"""Sizes and settings of an encoder, read from a config.json or given directly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from goat_jax.errors import UserError, nearest
from goat_jax.models.encoder.families import FAMILIES
from goat_jax.models.encoder.relative import Disentangled
from goat_jax.models.family import label_count
from goat_jax.nn.dropout import Rates, rates_of
from goat_jax.nn.modules import ACTIVATIONS, POOLING
from goat_jax.nn.rope import Rope

_SIZES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size")
_SIZES += ("max_position_embeddings", "num_labels")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder with a classification head; `from_hf` reads them from a config.json.

    Attributes:
        family: a key of `FAMILIES`.
        vocab_size: number of tokens in the vocabulary.
        hidden_size: width D of the hidden states.
        num_layers: number of blocks.
        num_heads: attention heads per block; must divide `hidden_size`.
        intermediate_size: width of the feed-forward's hidden layer.
        max_position_embeddings: number of rows of the position table.
        type_vocab_size: number of token types; 0 for none.
        activation: the feed-forward's activation, a key of `ACTIVATIONS`.
        layer_norm_eps: constant added to every variance in layer normalization.
        pad_token_id: id of the padding token; the families with `positions_after_pad` count
            positions from it, the others ignore it.
        head: "sequence" for classes of a text, "tokens" for classes of every token.
        num_labels: number of outputs of the head; 1 means regression.
        pooling: input of the head: the first token ("cls", as in torch) or the mean of the real
            tokens ("mean", as sentence encoders such as MiniLM are trained).
        dropout: dropout rates in training, by the places of `EncoderFamily.dropout`. `from_hf`
            takes one rate for all places, or "checkpoint" for the rates in config.json; default:
            none.
        head_activation: activation between the head's layers, a key of `ACTIVATIONS`.
        head_bias: whether the head's first layer has a bias.
        head_norm: whether its output is normalized after the activation.
        embedding_size: width of the embedding tables; None is `hidden_size`.
        projected: whether a linear layer maps the embeddings to the hidden states.
        position_table: whether every position has a learned vector.
        num_groups: number of different layers if several calls share one: the calls are split into
            so many equal groups. None for a layer of its own in every call.
        norm_before: whether attention and feed-forward normalize their input (except for the first
            attention, whose input is normalized already) and a last norm follows; otherwise their
            sum with it is normalized.
        norm_bias: whether norms have biases.
        attention_bias: whether the attention's linear layers have biases.
        mlp_bias: whether the feed-forward's linear layers have biases.
        gated: whether the feed-forward multiplies its activations by a second linear map.
        windows: per layer, the number of tokens that attention reaches in either direction, the
            token included; None for all. Empty for None everywhere.
        ropes: per layer, the settings of the rotary positions. Empty for no such positions.
        attention_scale: factor of the scores; None is 1 / sqrt(head size).
        relative_buckets: number of rows of a table of biases of the scores by distance; 0 for none.
        disentangled: attention to relative positions by vectors; None for none.
        convolution: tokens that a convolution after the first layer covers; 0 for none.
        convolution_groups: groups of features that it convolves apart.
        convolution_activation: activation of its output, a key of `ACTIVATIONS`.

    Raises:
        UserError: a size below 1, heads that do not divide the width, an unknown activation or
            pooling, a wrong number of windows or ropes.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    activation: str
    layer_norm_eps: float
    pad_token_id: int
    head: str = "sequence"
    num_labels: int = 2
    pooling: str = "cls"
    dropout: Rates = ()
    head_activation: str = "tanh"
    head_bias: bool = True
    head_norm: bool = False
    embedding_size: int | None = None
    projected: bool = False
    position_table: bool = True
    num_groups: int | None = None
    norm_before: bool = False
    norm_bias: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True
    gated: bool = False
    windows: tuple[int | None, ...] = ()
    ropes: tuple[Rope, ...] = ()
    attention_scale: float | None = None
    relative_buckets: int = 0
    disentangled: Disentangled | None = None
    convolution: int = 0
    convolution_groups: int = 1
    convolution_activation: str = "tanh"

    def __post_init__(self) -> None:
        _check_sizes(vars(self))
        for what, chosen, known in (
            ("activation", self.activation, ACTIVATIONS),
            ("head_activation", self.head_activation, ACTIVATIONS),
            ("convolution_activation", self.convolution_activation, ACTIVATIONS),
            ("pooling", self.pooling, POOLING),
            ("head", self.head, FAMILIES[self.family].heads),
        ):
            if not isinstance(chosen, str) or chosen not in known:
                hint = nearest(str(chosen), known)
                raise UserError(f"{what} {chosen!r} is not one of {', '.join(known)}{hint}")
        self._check_layers()

    def _check_layers(self) -> None:
        layers = self.num_layers
        for name in ("windows", "ropes"):
            count = len(getattr(self, name))
            if count not in (0, layers):
                raise UserError(f"{count} {name} for {layers} layers: give one each, or none")
        for rope in set(self.ropes):
            if (turned := rope.rotated(self.head_size)) % 2:
                raise UserError(f"{turned} rotated features are odd: rotary positions need pairs")
        if self.num_groups is not None and not 1 <= self.num_groups <= layers:
            raise UserError(f"{self.num_groups} groups of {layers} layers: give at most {layers}")
        if self.hidden_size % self.convolution_groups:
            raise UserError(
                f"hidden size {self.hidden_size} is not divisible by the convolution's "
                f"{self.convolution_groups} groups (conv_groups): correct one of them"
            )

    @property
    def head_size(self) -> int:
        """Features of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def table_width(self) -> int:
        """Width of the embedding tables."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def calls(self) -> tuple[int, ...]:
        """The layer of each call of a layer."""
        groups = self.num_layers if self.num_groups is None else self.num_groups
        return tuple(int(call / (self.num_layers / groups)) for call in range(self.num_layers))

    @property
    def max_tokens(self) -> int | None:
        """Length of the longest text that has a position for every token; None for any length."""
        if not self.position_table and not self.ropes:
            return None
        after_pad = FAMILIES[self.family].positions_after_pad
        return self.max_position_embeddings - (self.pad_token_id + 1 if after_pad else 0)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], **overrides: Any) -> EncoderConfig:
        """Reads a config.json given as a dict; overrides win.

        Settings that the config leaves out take transformers' defaults, except for the sizes of the
        network, which are required.

        Raises:
            UserError: a missing size, an unknown override, or a setting that is not supported.

        >>> EncoderConfig.from_hf({"model_type": "distilbert", "vocab_size": 9, "dim": 8,
        ...     "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "activation": "gelu"}).num_layers
        2
        """
        family = FAMILIES[hf["model_type"]]
        fields = [field.name for field in dataclasses.fields(cls)]
        for name in overrides:
            if name not in fields:
                raise UserError(f"an encoder has no setting {name!r}{nearest(name, fields)}")
        values: dict[str, Any] = {**family.defaults, "num_labels": label_count(hf)}
        overrides["dropout"] = rates_of(family.dropout, overrides.get("dropout", 0.0), hf)
        read = {field: hf[key] for field, key in family.keys.items() if hf.get(key) is not None}
        values |= read | {"family": hf["model_type"]} | overrides
        for field, key in family.keys.items():
            if field not in values:
                raise UserError(f"config.json has no {key}: add it, it is a size of the network")
        _check_sizes(values)  # others are computed from them, such as a window per layer
        for setting in family.settings:
            values |= setting.fields(hf, values)
        return cls(**(values | overrides))


def _check_sizes(values: Mapping[str, Any]) -> None:
    for name in _SIZES:
        size = values[name]
        if type(size) is not int or size < 1:
            raise UserError(f"{name} is {size!r}: it must be a whole number from 1 up")
    width, heads = values["hidden_size"], values["num_heads"]
    if width % heads:
        raise UserError(
            f"hidden size {width} is not divisible by {heads} heads: correct one of them"
        )


def tiny_config(family: str = "bert", /, **overrides: Any) -> EncoderConfig:
    """Builds a config small enough for tests and examples.

    >>> tiny_config("roberta").pad_token_id
    1
    """
    sizes: dict[str, Any] = {
        "family": family,
        "vocab_size": 100,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
    }
    chosen = FAMILIES[family]
    overrides["dropout"] = rates_of(chosen.dropout, overrides.get("dropout", 0.0), {})
    values = {**chosen.defaults, **sizes, **overrides}
    for setting in chosen.settings:
        values |= setting.fields({}, values)
    return EncoderConfig(**(values | overrides))
