"""Post-norm encoders: BERT (MiniLM too), RoBERTa and DistilBERT, built from one block.

Weights and the embedding tables set the dtype of the hidden states; norms, the softmax of the
attention and the head compute in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.core.attention import Visible
from goat_jax.errors import UserError
from goat_jax.models.encoder.config import EncoderConfig, tiny_config
from goat_jax.models.encoder.families import FAMILIES
from goat_jax.nn.attention_need import Need
from goat_jax.nn.dense import Dense
from goat_jax.nn.dropout import drop, dropper
from goat_jax.nn.model import Model
from goat_jax.nn.modules import ACTIVATIONS, POOLING, Embedding, LayerNorm
from goat_jax.nn.stack import Stack
from goat_jax.typing import Array

__all__ = ["Embeddings", "Encoder", "EncoderBlock", "EncoderConfig", "tiny_config"]


class EncoderBlock(nnx.Module):
    """Self-attention and feed-forward, each added to its input and followed by a layer norm."""

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
        self.dropout = config.dropout

    def __call__(self, x: Array, ctx: Context, attend: Callable[..., Array]) -> Array:
        """Returns x (B, T, D) after the block.

        Args:
            x: (B, T, D).
            ctx: context passed to every linear layer.
            attend: attention of queries, keys and values (`AttentionPlan.attend`).
        """
        split = (*x.shape[:-1], self.heads, -1)
        projections = (self.query, self.key, self.value)
        query, key, value = (part(x, ctx).reshape(split) for part in projections)
        rates = self.dropout
        attended = attend(query, key, value, dropped=dropper("attention", rates, ctx))
        out = self.attention_out(attended.reshape(x.shape), ctx)
        x = self.attention_norm(x + drop(out, "attention_out", rates, ctx))
        inner = ACTIVATIONS[self.activation](self.up(x, ctx))
        return self.norm(x + drop(self.down(inner, ctx), "down", rates, ctx))


class Embeddings(nnx.Module):
    """Normalized sum of word, position and token-type vectors.

    Families without token types ignore `token_type_ids`.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.words = Embedding(config.vocab_size, width, rngs=rngs)
        self.positions = Embedding(config.max_position_embeddings, width, rngs=rngs)
        if "types" in FAMILIES[config.family].embeddings:
            self.types = Embedding(config.type_vocab_size, width, rngs=rngs)
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.config = config

    def position_ids(self, input_ids: Array) -> Array:
        """Returns positions (B, T): 0, 1, ..., or in RoBERTa pad + 1, ... over the real tokens."""
        if not FAMILIES[self.config.family].positions_after_pad:
            return jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        real = (input_ids != self.config.pad_token_id).astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + self.config.pad_token_id

    def __call__(self, input_ids: Array, token_type_ids: Array | None) -> Array:
        """Embeds integers (B, T) as (B, T, D).

        Raises:
            UserError: more tokens than there are positions.
        """
        tokens, most = input_ids.shape[1], self.config.max_tokens
        if tokens > most:
            raise UserError(
                f"{tokens} tokens are more than the model's {most} positions: "
                f"truncate the texts to {most} tokens"
            )
        x = self.words(input_ids) + self.positions(self.position_ids(input_ids))
        if hasattr(self, "types"):
            x = x + self.types(
                jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            )
        return self.norm(x)


class Encoder(Model):
    """Text encoder with a sequence-classification head.

    >>> model = Encoder(tiny_config(), rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 5), jnp.int32), jnp.ones((2, 5), jnp.int32)).shape
    (2, 2)
    """

    config: EncoderConfig

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.layers = Stack(lambda r: EncoderBlock(config, rngs=r), config.num_layers, rngs=rngs)
        self.head_dense = Dense(config.hidden_size, config.hidden_size, rngs=rngs)
        self.head_out = Dense(config.hidden_size, config.num_labels, rngs=rngs)
        self.config = config

    def hf_names(self) -> dict[str, str]:
        """Maps our path to the torch name of the module (see `goat_jax.nn.named_modules`)."""
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

    def attention_need(self, tokens: int, dtype: str) -> Need:
        config = self.config
        size, dropout = config.hidden_size // config.num_heads, dict(config.dropout)
        return Need(tokens, tokens, size, dtype, causal=False, dropout="attention" in dropout)

    def encode(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array | None = None,
        ctx: Context = EVAL,
    ) -> Array:
        """Returns the last hidden states (B, T, D), in the dtype of the embedding tables."""
        tokens = input_ids.shape[1]
        attend = self.attention.attend(Visible(real=attention_mask != 0), tokens, tokens)
        x = self.embeddings(input_ids, token_type_ids)
        return self.layers(drop(x, "embeddings", self.config.dropout, ctx), ctx, attend)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array | None = None,
        ctx: Context = EVAL,
    ) -> Array:
        """Returns logits (B, num_labels), float32.

        Args:
            input_ids: (B, T) integers.
            attention_mask: (B, T) integers, non-zero where a token is real.
            token_type_ids: (B, T) integers; None means all zero.
            ctx: dropout key and the mask that the balance loss uses.

        Raises:
            UserError: more tokens than there are positions.
        """
        hidden = self.encode(input_ids, attention_mask, token_type_ids, ctx)
        return self.classify(hidden, attention_mask, ctx)

    def classify(self, hidden: Array, attention_mask: Array, ctx: Context = EVAL) -> Array:
        """Returns logits (B, num_labels), float32, of hidden states (B, T, D) from `encode`."""
        # float32: the head costs almost nothing, and bfloat16 has only three digits for logits.
        pooled = POOLING[self.config.pooling](hidden, attention_mask).astype(jnp.float32)
        ctx, rates = ctx.unmasked(), self.config.dropout
        activation = ACTIVATIONS[FAMILIES[self.config.family].head_activation]
        inner = activation(self.head_dense(drop(pooled, "head_dense", rates, ctx), ctx))
        return self.head_out(drop(inner, "head_out", rates, ctx), ctx)
