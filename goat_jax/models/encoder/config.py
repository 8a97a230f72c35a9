"""Sizes and settings of an encoder, read from a config.json or given directly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from goat_jax.errors import UserError, nearest
from goat_jax.models.encoder.families import FAMILIES
from goat_jax.nn.dropout import Rates, rates_of
from goat_jax.nn.modules import ACTIVATIONS, POOLING

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
        type_vocab_size: number of token types; DistilBERT has none.
        activation: the feed-forward's activation, a key of `ACTIVATIONS`.
        layer_norm_eps: constant added to every variance in layer normalization.
        pad_token_id: id of the padding token; RoBERTa counts positions from it, the other families
            ignore it.
        num_labels: number of outputs of the head; 1 means regression.
        pooling: input of the head: the first token ("cls", as in torch) or the mean of the real
            tokens ("mean", as sentence encoders such as MiniLM are trained).
        dropout: dropout rates in training, by the places of `EncoderFamily.dropout`. `from_hf`
            takes one rate for all places, or "checkpoint" for the rates in config.json; default:
            none.

    Raises:
        UserError: a size below 1, heads that do not divide the width, an unknown activation or
            pooling.
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
    num_labels: int = 2
    pooling: str = "cls"
    dropout: Rates = ()

    def __post_init__(self) -> None:
        for name in _SIZES:
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise UserError(f"{name} is {size!r}: it must be a whole number from 1 up")
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"hidden size {self.hidden_size} is not divisible by {self.num_heads} heads: "
                "correct one of them"
            )
        for what, chosen, known in (
            ("activation", self.activation, ACTIVATIONS),
            ("pooling", self.pooling, POOLING),
        ):
            if not isinstance(chosen, str) or chosen not in known:
                hint = nearest(str(chosen), known)
                raise UserError(f"{what} {chosen!r} is not one of {', '.join(known)}{hint}")

    @property
    def max_tokens(self) -> int:
        """Length of the longest sequence that has a position for every token."""
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
        values = {**family.defaults, "num_labels": label_count(hf)}
        overrides["dropout"] = rates_of(family.dropout, overrides.get("dropout", 0.0), hf)
        read = {field: hf[key] for field, key in family.keys.items() if hf.get(key) is not None}
        values |= read | {"family": hf["model_type"]} | overrides
        for field, key in family.keys.items():
            if field not in values:
                raise UserError(f"config.json has no {key}: add it, it is a size of the network")
        return cls(**values)


def label_count(hf: Mapping[str, Any]) -> int:
    """Returns the number of label names, or else `num_labels`, as transformers does; default 2.

    >>> label_count({"id2label": {"0": "cat", "1": "dog", "2": "eel"}, "num_labels": 2})
    3
    """
    names = hf.get("id2label")
    return len(names) if names is not None else hf.get("num_labels", 2)


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
    overrides["dropout"] = rates_of(FAMILIES[family].dropout, overrides.get("dropout", 0.0), {})
    return EncoderConfig(**{**FAMILIES[family].defaults, **sizes, **overrides})
