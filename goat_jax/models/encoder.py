"""Encoders with post-normalised blocks: BERT (MiniLM too), RoBERTa, DistilBERT; one block for all.

The families differ in their names, in how positions are counted, in token types and in the
classification head. Each difference is a field of `Family`; there is no other code per family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.errors import UserError, nearest
from goat_jax.layers import Dense
from goat_jax.models.common import ACTIVATIONS, Embedding, LayerNorm
from goat_jax.stack import Stack
from goat_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class Family:
    """What tells one family of encoders from another.

    Attributes:
        prefix: the encoder's name inside a model with a head.
        embeddings: our name of an embedding part -> theirs, under ``prefix.embeddings``.
        layer: name of the list of layers, under the prefix.
        block: our name of a block's part -> theirs.
        head: names of the head's two dense layers.
        head_activation: what stands between them.
        config: our field -> the key of their config.json, where it is not the BERT key.
        positions_after_pad: count positions from pad + 1, over real tokens only (RoBERTa).
    """

    prefix: str
    embeddings: Mapping[str, str]
    layer: str
    block: Mapping[str, str]
    head: tuple[str, str]
    head_activation: str
    config: Mapping[str, str]
    positions_after_pad: bool = False


_BERT_EMBEDDINGS = {
    "words": "word_embeddings",
    "positions": "position_embeddings",
    "types": "token_type_embeddings",
    "norm": "LayerNorm",
}
_BERT_BLOCK = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}
_DISTIL_BLOCK = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm": "output_layer_norm",
}
_DISTIL_CONFIG = {
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "activation": "activation",
}
_BERT_CONFIG = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "activation": "hidden_act",
}
FAMILIES: dict[str, Family] = {
    "bert": Family(
        prefix="bert",
        embeddings=_BERT_EMBEDDINGS,
        layer="encoder.layer",
        block=_BERT_BLOCK,
        head=("bert.pooler.dense", "classifier"),
        head_activation="tanh",
        config=_BERT_CONFIG,
    ),
    "roberta": Family(
        prefix="roberta",
        embeddings=_BERT_EMBEDDINGS,
        layer="encoder.layer",
        block=_BERT_BLOCK,
        head=("classifier.dense", "classifier.out_proj"),
        head_activation="tanh",
        config=_BERT_CONFIG,
        positions_after_pad=True,
    ),
    "distilbert": Family(
        prefix="distilbert",
        embeddings={k: v for k, v in _BERT_EMBEDDINGS.items() if k != "types"},
        layer="transformer.layer",
        block=_DISTIL_BLOCK,
        head=("pre_classifier", "classifier"),
        head_activation="relu",
        config=_DISTIL_CONFIG,
    ),
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder with a classification head; `from_hf` reads them from a config.json.

    Attributes:
        family: key of `FAMILIES`.
        num_labels: outputs of the head; 1 is a regression.
        pooling: what the head sees: the first token ("cls", as in torch) or the mean of the real
            tokens ("mean", how sentence encoders such as MiniLM are trained).
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    num_labels: int = 2
    pooling: str = "cls"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"hidden size {self.hidden_size} is not divisible by {self.num_heads} heads"
            )
        if self.activation not in ACTIVATIONS:
            hint = nearest(self.activation, ACTIVATIONS)
            raise UserError(f"activation {self.activation!r} is not known{hint}")
        if self.pooling not in POOLING:
            raise UserError(f"pooling {self.pooling!r} is not one of {', '.join(POOLING)}")

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], **overrides: Any) -> EncoderConfig:
        """Reads a config.json given as a dict; overrides win.

        >>> EncoderConfig.from_hf({"model_type": "distilbert", "vocab_size": 9, "dim": 8,
        ...     "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "activation": "gelu"}).num_layers
        2
        """
        family = FAMILIES[hf["model_type"]]
        values = {}
        for field in dataclasses.fields(cls):
            key = family.config.get(field.name, field.name)
            if key in hf and hf[key] is not None:
                values[field.name] = hf[key]
        if "id2label" in hf and "num_labels" not in hf:
            values["num_labels"] = len(hf["id2label"])
        _refuse_unsupported(hf)
        return cls(**{**values, "family": hf["model_type"], **overrides})


def _refuse_unsupported(hf: Mapping[str, Any]) -> None:
    """Settings that would silently give other numbers."""
    kind = hf.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        raise UserError(f"position_embedding_type {kind!r} is not supported, only 'absolute'")
    if hf.get("is_decoder") or hf.get("add_cross_attention"):
        raise UserError("this config is a decoder (is_decoder or add_cross_attention is true)")


class EncoderBlock(nnx.Module):
    """Self-attention and feed-forward, each followed by the sum with its input and a layer norm."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        self.query = Dense(width, width, rngs=rngs)
        self.key = Dense(width, width, rngs=rngs)
        self.value = Dense(width, width, rngs=rngs)
        self.attention_out = Dense(width, width, rngs=rngs)
        self.attention_norm = LayerNorm(width, config.layer_norm_eps)
        self.up = Dense(width, inner, rngs=rngs)
        self.down = Dense(inner, width, rngs=rngs)
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.heads = config.num_heads
        self.activation = config.activation

    def __call__(self, x: Array, ctx: Context, keep: Array) -> Array:
        """x (B, T, D); keep (B, 1, 1, T) is true where a token may be attended to."""
        split = (*x.shape[:-1], self.heads, -1)
        attended = jax.nn.dot_product_attention(
            self.query(x, ctx).reshape(split),
            self.key(x, ctx).reshape(split),
            self.value(x, ctx).reshape(split),
            mask=keep,
        ).reshape(x.shape)
        x = self.attention_norm(x + self.attention_out(attended, ctx))
        inner = ACTIVATIONS[self.activation](self.up(x, ctx))
        return self.norm(x + self.down(inner, ctx))


class Embeddings(nnx.Module):
    """Sum of word, position and token-type vectors, normalised."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.words = Embedding(config.vocab_size, width, rngs=rngs)
        self.positions = Embedding(config.max_position_embeddings, width, rngs=rngs)
        if "types" in FAMILIES[config.family].embeddings:
            self.types = Embedding(config.type_vocab_size, width, rngs=rngs)
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.config = config

    def position_ids(self, input_ids: Array) -> Array:
        """(B, T): 0, 1, ... or, in RoBERTa, pad + 1, pad + 2, ... over what is not padding."""
        if not FAMILIES[self.config.family].positions_after_pad:
            return jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        real = (input_ids != self.config.pad_token_id).astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + self.config.pad_token_id

    def __call__(self, input_ids: Array, token_type_ids: Array | None) -> Array:
        x = self.words(input_ids) + self.positions(self.position_ids(input_ids))
        if hasattr(self, "types"):
            x = x + self.types(
                jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            )
        return self.norm(x)


def _first_token(x: Array, mask: Array) -> Array:
    del mask
    return x[:, 0]


def _mean_of_tokens(x: Array, mask: Array) -> Array:
    weight = mask[..., None].astype(jnp.float32)
    total = (x.astype(jnp.float32) * weight).sum(1)
    return (total / jnp.maximum(weight.sum(1), 1.0)).astype(x.dtype)


POOLING = {"cls": _first_token, "mean": _mean_of_tokens}


class Encoder(nnx.Module):
    """An encoder and its sequence-classification head.

    >>> model = Encoder(tiny_config(), rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 5), jnp.int32), jnp.ones((2, 5), jnp.int32)).shape
    (2, 2)
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.layers = Stack(lambda r: EncoderBlock(config, rngs=r), config.num_layers, rngs=rngs)
        self.head_dense = Dense(config.hidden_size, config.hidden_size, rngs=rngs)
        self.head_out = Dense(config.hidden_size, config.num_labels, rngs=rngs)
        self.config = config

    def hf_names(self) -> dict[str, str]:
        """Our path -> the torch name of the module (see `goat_jax.sites`)."""
        family = FAMILIES[self.config.family]
        embeddings = {
            f"embeddings.{ours}": f"{family.prefix}.embeddings.{theirs}"
            for ours, theirs in family.embeddings.items()
        }
        block = {
            f"layers.{ours}": f"{family.prefix}.{family.layer}.{{}}.{theirs}"
            for ours, theirs in family.block.items()
        }
        return embeddings | block | {"head_dense": family.head[0], "head_out": family.head[1]}

    def encode(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array | None = None,
        ctx: Context = EVAL,
    ) -> Array:
        """Last hidden states (B, T, D)."""
        keep = (attention_mask != 0)[:, None, None, :]
        return self.layers(self.embeddings(input_ids, token_type_ids), ctx, keep)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array | None = None,
        ctx: Context = EVAL,
    ) -> Array:
        """Logits (B, num_labels), float32.

        Args:
            input_ids, attention_mask, token_type_ids: (B, T) integers.
            ctx: dropout key and the mask the balance loss uses.
        """
        x = self.encode(input_ids, attention_mask, token_type_ids, ctx)
        pooled = POOLING[self.config.pooling](x, attention_mask)
        ctx = ctx.unmasked()
        activation = ACTIVATIONS[FAMILIES[self.config.family].head_activation]
        return self.head_out(activation(self.head_dense(pooled, ctx)), ctx).astype(jnp.float32)


def tiny_config(family: str = "bert", **overrides: Any) -> EncoderConfig:
    """A config small enough for tests and examples."""
    types = 2 if "types" in FAMILIES[family].embeddings else 0
    return EncoderConfig(
        **{
            "family": family,
            "vocab_size": 100,
            "hidden_size": 32,
            "num_layers": 3,
            "num_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 40,
            "type_vocab_size": types,
            **overrides,
        }
    )
