"""Decoders, those of all families as one network.

Weights and the embedding table set the dtype of the hidden states; norms, rotations, the softmax of
the attention and the logits compute in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.core.attention import Visible, capped
from goat_jax.core.cross_entropy import Output
from goat_jax.models.decoder.config import DecoderConfig, tiny_decoder_config
from goat_jax.models.decoder.families import FAMILIES
from goat_jax.models.decoder.mixture import MixtureConfig
from goat_jax.nn.attention_need import Need
from goat_jax.nn.dense import Dense
from goat_jax.nn.mixture import Mixture
from goat_jax.nn.model import Model
from goat_jax.nn.modules import ACTIVATIONS, NORMS, LearnedArray, Norm
from goat_jax.nn.per_layer import PerLayer, stacked, tree_of, way_of
from goat_jax.nn.rope import Rope
from goat_jax.nn.rotation import Rotation
from goat_jax.nn.stack import Stack
from goat_jax.nn.vocabulary import TokenTable, VocabularyOutput, placed
from goat_jax.typing import Array, DTypeLike, PyTree

__all__ = ["Cache", "Decoder", "DecoderBlock", "DecoderConfig", "tiny_decoder_config"]


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far, for generation.

    Attributes:
        keys: (L, B, S, G, H) with S slots; rotary embeddings are already applied.
        values: (L, B, S, G, H).
        mask: (B, S) bool, true in slots that hold a real token.
        length: number of slots in use, an int32 scalar.
    """

    keys: Array
    values: Array
    mask: Array
    length: Array


def _gated(
    layers: Any, x: Array, ctx: Context, activation: str, clamp: tuple[float, float] | None = None
) -> Array:
    """Computes a gated feed-forward (..., D) by the layers `gate`, `up` and `down`."""
    gate, up = layers.gate(x, ctx), layers.up(x, ctx)
    if clamp is None:
        return layers.down(ACTIVATIONS[activation](gate) * up, ctx)
    factor, limit = clamp
    gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return layers.down(gate * jax.nn.sigmoid(factor * gate) * (up + 1), ctx)


class Expert(nnx.Module):
    """A gated feed-forward, one of a mixture's."""

    def __init__(self, config: DecoderConfig, mixture: MixtureConfig, *, rngs: nnx.Rngs):
        width, inner, bias = config.hidden_size, mixture.inner_size, mixture.bias
        self.gate = Dense(width, inner, use_bias=bias, rngs=rngs)
        self.up = Dense(width, inner, use_bias=bias, rngs=rngs)
        self.down = Dense(inner, width, use_bias=bias, rngs=rngs)
        self.activation = config.activation
        self.clamp = mixture.clamp

    def __call__(self, x: Array, ctx: Context) -> Array:
        return _gated(self, x, ctx, self.activation, self.clamp)


class DecoderBlock(nnx.Module):
    """Self-attention and a feed-forward, each normalized and added to its input.

    The feed-forward is gated, or a mixture of such if `sparse`.
    """

    def __init__(self, config: DecoderConfig, sparse: bool, *, rngs: nnx.Rngs):
        width, inner, size = config.hidden_size, config.intermediate_size, config.head_size
        heads, groups = config.num_heads * size, config.num_kv_heads * size

        def norm(features: int, wanted: bool = True) -> Norm | None:
            return NORMS[config.norm](features, config.norm_eps) if wanted else None

        self.attention_norm = norm(width, config.norm_before)
        self.query = Dense(width, heads, use_bias=config.qkv_bias, rngs=rngs)
        self.key = Dense(width, groups, use_bias=config.qkv_bias, rngs=rngs)
        self.value = Dense(width, groups, use_bias=config.qkv_bias, rngs=rngs)
        self.attention_out = Dense(heads, width, use_bias=config.out_bias, rngs=rngs)
        whole, normed = config.qk_norm == "whole", config.qk_norm is not None
        self.query_norm = norm(heads if whole else size, normed)
        self.key_norm = norm(groups if whole else size, normed)
        self.attention_out_norm = norm(width, config.norm_after)
        self.norm = norm(width, config.norm_before and not config.parallel)
        self.sinks = LearnedArray((config.num_heads,), rngs=rngs) if config.sinks else None
        self.mixture = self._mixture(config, rngs) if sparse else None
        if not sparse:
            self.gate = Dense(width, inner, use_bias=config.mlp_bias, rngs=rngs)
            self.up = Dense(width, inner, use_bias=config.mlp_bias, rngs=rngs)
            self.down = Dense(inner, width, use_bias=config.mlp_bias, rngs=rngs)
        self.down_norm = norm(width, config.norm_after)
        self.config = config

    @staticmethod
    def _mixture(config: DecoderConfig, rngs: nnx.Rngs) -> Mixture:
        mixture = config.mixture
        assert mixture is not None
        return Mixture(
            lambda r: Expert(config, mixture, rngs=r),
            config.hidden_size,
            mixture.num_experts,
            mixture.per_token,
            normalize=mixture.normalize,
            router_bias=mixture.router_bias,
            balance_weight=mixture.balance_weight,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Array,
        ctx: Context,
        rotation: Rotation | None,
        attend: Callable[..., Array],
        past: tuple[Array, Array, Array] | None = None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """Returns x (B, T, D) after the block, and keys and values of all slots if given `past`.

        Args:
            x: (B, T, D).
            ctx: context passed to every linear layer.
            rotation: the rotation at the tokens' positions; None for no positions.
            attend: attention of queries, keys and values (`AttentionPlan.attend`).
            past: keys and values (B, S, G, H), and the first slot that these tokens take.
        """
        normal = _normalized(self.attention_norm, x)
        attended, kept = self._attention(normal, ctx, rotation, attend, past)
        after = x + self._scaled(_normalized(self.attention_out_norm, attended))
        if not self.config.parallel:
            normal = _normalized(self.norm, after)
        if self.mixture is None:
            fed = _gated(self, normal, ctx, self.config.activation)
        else:
            fed = self.mixture(normal, ctx)
        return after + self._scaled(_normalized(self.down_norm, fed)), kept

    def _attention(
        self,
        x: Array,
        ctx: Context,
        rotation: Rotation | None,
        attend: Callable[..., Array],
        past: tuple[Array, Array, Array] | None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        query = self._heads(self.query(x, ctx), self.query_norm)
        key = self._heads(self.key(x, ctx), self.key_norm)
        value = self._heads(self.value(x, ctx), None)
        if rotation is not None:
            query, key = rotation.queries(query), rotation.keys(key)
        kept = None
        if past is not None:
            keys, values, start = past
            key = jax.lax.dynamic_update_slice_in_dim(keys, key.astype(keys.dtype), start, 1)
            value = jax.lax.dynamic_update_slice_in_dim(values, value.astype(keys.dtype), start, 1)
            kept = (key, value)
            key, value = key.astype(query.dtype), value.astype(query.dtype)
        sinks = () if self.sinks is None else (self.sinks(),)
        attended = attend(query, key, value, *sinks).reshape(*x.shape[:-1], -1)
        return self.attention_out(attended, ctx), kept

    def _heads(self, x: Array, norm: Norm | None) -> Array:
        """Splits a projection (B, T, N * H) into heads (B, T, N, H), after its norm, if any."""
        if norm is not None:  # of one head or of all of them
            x = norm(x.reshape(*x.shape[:-1], -1, norm.scale.shape[-1]))
        if (most := self.config.qkv_clip) is not None:
            x = jnp.clip(x, -most, most)
        return x.reshape(*x.shape[:2], -1, self.config.head_size)

    def _scaled(self, x: Array) -> Array:
        scale = self.config.residual_scale
        return x if scale == 1.0 else (x.astype(jnp.float32) * scale).astype(x.dtype)


def _normalized(norm: Norm | None, x: Array) -> Array:
    return x if norm is None else norm(x)


class DecoderTrunk(Model):
    """The network of a decoder up to the normalized hidden states, without a head."""

    config: DecoderConfig

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.embeddings = TokenTable(config.vocab_size, width, rngs=rngs)
        self.layers = Stack(
            lambda r, sparse: DecoderBlock(config, sparse, rngs=r),
            config.num_layers,
            kinds=config.kinds,
            rngs=rngs,
        )
        self.norm = NORMS[config.norm](width, config.norm_eps)
        self.config = config

    def hf_names(self) -> dict[str, str]:
        """Maps our path to the torch name of the module (see `goat_jax.nn.named_modules`)."""
        parts = FAMILIES[self.config.family].block
        block = {f"layers.{ours}": "model.layers.{}." + theirs for ours, theirs in parts.items()}
        return block | {"embeddings": "model.embed_tokens", "norm": "model.norm"}

    def attention_need(self, tokens: int, dtype: str) -> Need:
        config = self.config
        return Need(
            tokens,
            tokens,
            config.head_size,
            dtype,
            causal=True,
            windows=tuple(dict.fromkeys(config.windows)),
            soft_cap=config.attention_cap is not None,
            heads=config.num_heads,
            groups=config.num_kv_heads,
            sinks=config.sinks,
        )

    def hidden(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        segments: Array | None = None,
        ctx: Context = EVAL,
    ) -> Array:
        """Returns the normalized hidden states (B, T, D), which a head turns into logits.

        Args:
            input_ids: (B, T) integers.
            attention_mask: (B, T), non-zero where a token is real; padding on either side.
            segments: (B, T) integers; tokens see only their segment, whose positions start at 0.
                For packed rows, in place of `attention_mask`.
            ctx: dropout key and the mask that the balance loss uses.
        """
        visible, positions = Visible(causal=True), jnp.arange(input_ids.shape[1])[None]
        if segments is not None:
            visible = Visible(causal=True, segments=segments)
            positions = segment_positions(segments)
        elif attention_mask is not None:
            visible = Visible(causal=True, real=attention_mask != 0)
        x, _ = self._run(input_ids, ctx, positions, visible, None)
        return self._final(x)

    def _final(self, x: Array) -> Array:
        """Normalizes the last hidden states."""
        return self.norm(x)

    def empty_cache(self, batch: int, slots: int, dtype: DTypeLike | None = None) -> Cache:
        """Allocates a cache of `slots` tokens a row; the dtype defaults to the hidden states'."""
        config = self.config
        shape = (config.num_layers, batch, slots, config.num_kv_heads, config.head_size)
        dtype = dtype or self.embeddings.dtype
        keys, values = jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
        return Cache(keys, values, jnp.zeros((batch, slots), bool), jnp.zeros((), jnp.int32))

    def extend(
        self, input_ids: Array, attention_mask: Array, cache: Cache, ctx: Context = EVAL
    ) -> tuple[Array, Cache]:
        """Continues from a cache with new tokens.

        Args:
            input_ids: (B, T) integers.
            attention_mask: (B, T), non-zero where a token is real; rows of different lengths are
                padded on the left, so that all rows continue at the same slot.
            cache: a cache with at least T free slots; with fewer the results are wrong.
            ctx: dropout key and the mask that the balance loss uses.

        Returns:
            Hidden states (B, T, D) of the new tokens, and the cache with these tokens added.
        """
        tokens = input_ids.shape[1]
        mask = jax.lax.dynamic_update_slice_in_dim(
            cache.mask, attention_mask != 0, cache.length, axis=1
        )
        visible = Visible(causal=True, real=mask, start=cache.length)
        # A row's text begins at its first real token, wherever the padding ends.
        places = jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0)
        positions = jax.lax.dynamic_slice_in_dim(places, cache.length, tokens, axis=1)
        x, (keys, values) = self._run(input_ids, ctx, positions, visible, cache)
        return self._final(x), Cache(keys, values, mask, cache.length + tokens)

    def _rotations(self, positions: Array, ropes: tuple[Rope | None, ...]) -> list[Rotation | None]:
        """Returns the rotation of each kind of layer; those of one model have one shape."""
        size = self.config.head_size
        found = [None if rope is None else rope.rotation(positions, size) for rope in ropes]
        turning = next((each for each in found if each is not None), None)
        if turning is None:
            return found
        return [turning.still() if each is None else each for each in found]

    def _embedded(self, input_ids: Array, ctx: Context) -> Array:
        x, scale = self.embeddings(input_ids, ctx), self.config.embedding_scale
        return x if scale == 1.0 else x * jnp.asarray(scale, x.dtype)

    def _run(
        self,
        input_ids: Array,
        ctx: Context,
        positions: Array,
        visible: Visible,
        cache: Cache | None,
    ) -> tuple[Array, Any]:
        """Runs all blocks; `visible` are the slots that each token may attend to in all of them."""
        config, tokens = self.config, input_ids.shape[1]
        slots = tokens if cache is None else cache.mask.shape[1]
        windows, ropes = PerLayer.of(config.windows), PerLayer.of(config.ropes)
        options = {"scale": config.attention_scale, "soft_cap": config.attention_cap}
        ways = [
            partial(
                self.attention.attend(dataclasses.replace(visible, window=window), tokens, slots),
                **options,
            )
            for window in windows.values
        ]
        rotations = stacked(self._rotations(positions, ropes.values))
        each: dict[str, Any] = {"window": windows.numbers, "rope": ropes.numbers}
        if cache is not None:
            each["past"] = (cache.keys, cache.values)

        def call(block: DecoderBlock, x: Array, ctx: Context, each: PyTree) -> tuple[Array, PyTree]:
            attend, rotation = way_of(ways, each["window"]), tree_of(rotations, each["rope"])
            past = None if cache is None else (*each["past"], cache.length)
            return block(x, ctx, rotation, attend, past)

        return self.layers.scan(call, self._embedded(input_ids, ctx), ctx, each)


class Decoder(DecoderTrunk):
    """Causal language model.

    >>> model = Decoder(tiny_decoder_config(), rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 5), jnp.int32)).shape
    (2, 5, 64)
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        if not config.tie_embeddings:
            self.output = VocabularyOutput(config.hidden_size, config.vocab_size, rngs=rngs)

    @property
    def output_shape(self) -> tuple[int, int]:
        """Shape (D, V) of the output kernel."""
        return self.config.hidden_size, self.config.vocab_size

    def hf_names(self) -> dict[str, str]:
        return super().hf_names() | {"output": "lm_head"}

    def _final(self, x: Array) -> Array:
        """Normalizes the last hidden states, with the factor of the logits."""
        x, scale = super()._final(x), self.config.logit_scale
        return x if scale == 1.0 else (x.astype(jnp.float32) * scale).astype(x.dtype)

    def logits(self, hidden: Array, ctx: Context = EVAL) -> Array:
        """Returns logits (..., V), float32, of hidden states (..., D)."""
        return capped(self.vocabulary_output(hidden, ctx).logits(), self.config.logit_cap)

    def vocabulary_output(self, hidden: Array, ctx: Context = EVAL) -> Output:
        """Returns the output layer at hidden states: the embedding table if the two are tied."""
        if not self.config.tie_embeddings:
            return self.output.output(hidden, ctx, self.output_sharding)
        table, rows = self.embeddings.table[...], self.embeddings.rows
        kernel = placed(table.T, self.output_sharding)
        return Output((hidden,), (kernel,), *(() if rows is None else rows.columns()))

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        segments: Array | None = None,
        ctx: Context = EVAL,
    ) -> Array:
        """Returns logits (B, T, V), float32; arguments as for `hidden`."""
        return self.logits(self.hidden(input_ids, attention_mask, segments, ctx), ctx)


def segment_positions(segments: Array) -> Array:
    """Returns each token's position (B, T) in its segment; segments must be contiguous.

    >>> segment_positions(jnp.array([[1, 1, 2, 2, 2, 0]]))
    Array([[0, 1, 0, 1, 2, 0]], dtype=int32)
    """
    slots = jnp.broadcast_to(jnp.arange(segments.shape[1], dtype=jnp.int32), segments.shape)
    before = jnp.concatenate([segments[:, :1], segments[:, :-1]], axis=1)
    first = jnp.where(segments != before, slots, 0)
    return slots - jax.lax.cummax(first, axis=1)
