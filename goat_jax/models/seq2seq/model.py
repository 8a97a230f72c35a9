"""Encoder-decoders: T5 and Flan-T5.

A row holds a prompt and its answer one after the other, as segments 2n - 1 and 2n; several pairs
may share a row. The encoder sees the tokens of odd segments, the decoder those of even ones and, in
attention across, the segment before. Positions are relative, so places in a row do not matter.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.core.attention import plain_attention
from goat_jax.errors import UserError
from goat_jax.models.decoder.model import Decoder
from goat_jax.models.seq2seq.config import Seq2SeqConfig, tiny_seq2seq_config
from goat_jax.nn.attention_need import Need
from goat_jax.nn.dense import Dense
from goat_jax.nn.modules import ACTIVATIONS, Embedding, RMSNorm
from goat_jax.nn.stack import Stack
from goat_jax.nn.vocabulary import TokenTable, VocabularyOutput
from goat_jax.typing import Array, DTypeLike

__all__ = ["Seq2Seq", "Seq2SeqCache", "Seq2SeqConfig", "tiny_seq2seq_config"]


class Seq2SeqCache(NamedTuple):
    """Keys and values of a prompt, computed once, and of the answer so far.

    Attributes:
        prompts: keys and values (L, B, S, N, H) of the prompt's tokens for attention across.
        prompt_mask: (B, S) bool, true in slots of a real token of the prompt.
        answers: keys and values (L, B, S, N, H) of the answer's tokens.
        mask: (B, S) bool, true in slots of a token of the answer.
        length: number of slots in use, an int32 scalar.
    """

    prompts: tuple[Array, Array]
    prompt_mask: Array
    answers: tuple[Array, Array]
    mask: Array
    length: Array


class Attention(nnx.Module):
    """Attention without biases and without a scale of the scores."""

    def __init__(self, config: Seq2SeqConfig, *, rngs: nnx.Rngs):
        width, heads = config.hidden_size, config.num_heads * config.head_size
        self.query = Dense(width, heads, use_bias=False, rngs=rngs)
        self.key = Dense(width, heads, use_bias=False, rngs=rngs)
        self.value = Dense(width, heads, use_bias=False, rngs=rngs)
        self.attention_out = Dense(heads, width, use_bias=False, rngs=rngs)
        self.config = config

    def keys(self, x: Array, ctx: Context) -> tuple[Array, Array]:
        """Returns keys and values (B, S, N, H) of tokens x (B, S, D)."""
        return self._heads(self.key(x, ctx)), self._heads(self.value(x, ctx))

    def __call__(
        self, x: Array, kept: tuple[Array, Array], ctx: Context, mask: Array, bias: Array | None
    ) -> Array:
        """Returns what the tokens x (B, T, D) find among keys and values (B, S, N, H)."""
        query = self._heads(self.query(x, ctx))
        key, value = (array.astype(query.dtype) for array in kept)
        found = plain_attention(query, key, value, mask, scale=1.0, bias=bias)
        return self.attention_out(found.reshape(*x.shape[:2], -1), ctx)

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:2], -1, self.config.head_size)


class Block(nnx.Module):
    """Self-attention, attention across in a decoder, and feed-forward, normalized and added."""

    def __init__(self, config: Seq2SeqConfig, across: bool, *, rngs: nnx.Rngs):
        width, inner, eps = config.hidden_size, config.intermediate_size, config.norm_eps
        self.self_norm = RMSNorm(width, eps)
        self.self_attention = Attention(config, rngs=rngs)
        if across:
            self.cross_norm = RMSNorm(width, eps)
            self.cross_attention = Attention(config, rngs=rngs)
        self.norm = RMSNorm(width, eps)
        if config.gated:
            self.gate = Dense(width, inner, use_bias=False, rngs=rngs)
        self.up = Dense(width, inner, use_bias=False, rngs=rngs)
        self.down = Dense(inner, width, use_bias=False, rngs=rngs)
        self.config = config

    def feed_forward(self, x: Array, ctx: Context) -> Array:
        """Returns x (B, T, D) after the feed-forward."""
        activate, normal = ACTIVATIONS[self.config.activation], self.norm(x)
        if self.config.gated:
            inner = activate(self.gate(normal, ctx)) * self.up(normal, ctx)
        else:
            inner = activate(self.up(normal, ctx))
        return x + self.down(inner, ctx)


class Tower(nnx.Module):
    """A stack of blocks with the bias by distance that they share, and the last norm."""

    def __init__(self, config: Seq2SeqConfig, layers: int, across: bool, *, rngs: nnx.Rngs):
        self.bias = Embedding(config.buckets, config.num_heads, rngs=rngs)
        self.layers = Stack(lambda r: Block(config, across, rngs=r), layers, rngs=rngs)
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.directed, self.config = across, config

    def scores(self, queries: int, keys: int, start: Array | int = 0) -> Array:
        """Returns the bias (1, N, T, S) of the scores; `start` is the first query's slot."""
        config = self.config
        buckets = distance_buckets(keys, config.buckets, config.reach, both=not self.directed)
        at = start + jnp.arange(queries)[:, None]
        index = jnp.arange(keys)[None] - at + keys - 1
        by_distance = self.bias.table[...].astype(jnp.float32)[jnp.asarray(buckets)]
        return by_distance[index].transpose(2, 0, 1)[None]


def distance_buckets(tokens: int, buckets: int, reach: int, both: bool) -> np.ndarray:
    """Returns the bucket of every distance (2 * tokens - 1,) of a key from its query.

    Distances are counted from 1 - tokens, of keys before the query, to tokens - 1.

    Args:
        tokens: the number of keys.
        buckets: the number of buckets.
        reach: the distance from which all share the last bucket.
        both: whether keys after the query have buckets of their own, half of all.

    >>> distance_buckets(4, 8, 12, both=True).tolist()
    [2, 2, 1, 0, 5, 6, 6]
    """
    distances = np.arange(1 - tokens, tokens)
    side = buckets // 2 if both else buckets
    far = np.abs(distances) if both else np.maximum(-distances, 0)
    exact = side // 2
    with np.errstate(divide="ignore"):
        log = np.log(far.astype(np.float32) / np.float32(max(exact, 1)))
    steps = log / np.float32(math.log(reach / exact)) * np.float32(side - exact)
    wide = np.minimum(exact + np.where(far < exact, 0, steps).astype(np.int64), side - 1)
    found = np.where(far < exact, far, wide)
    return found + (side * (distances > 0) if both else 0)


class Seq2Seq(Decoder):
    """Encoder-decoder with the interface of a decoder.

    >>> def logits(ids, segments):
    ...     model = Seq2Seq(tiny_seq2seq_config(), rngs=nnx.Rngs(0))
    ...     return model(ids, segments=segments)
    >>> ids, segments = jnp.ones((1, 6), jnp.int32), jnp.array([[1, 1, 1, 2, 2, 0]])
    >>> jax.eval_shape(logits, ids, segments).shape
    (1, 6, 64)
    """

    config: Seq2SeqConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: Seq2SeqConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.embeddings = TokenTable(config.vocab_size, width, rngs=rngs)
        self.encoder = Tower(config, config.encoder_layers, False, rngs=rngs)
        self.decoder = Tower(config, config.num_layers, True, rngs=rngs)
        if not config.tie_embeddings:
            self.output = VocabularyOutput(width, config.vocab_size, rngs=rngs)
        self.config = config  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def layers(self) -> Stack:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The decoder's layers."""
        return self.decoder.layers

    @property
    def norm(self) -> RMSNorm:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The norm after the last layer."""
        return self.decoder.norm

    def hf_names(self) -> dict[str, str]:
        """Maps our path to the torch name of the module (see `goat_jax.nn.named_modules`)."""
        names = {"embeddings": "shared", "output": "lm_head"}
        up = "wi_1" if self.config.gated else "wi"
        linear = {"query": "q", "key": "k", "value": "v", "attention_out": "o"}
        parts = {"encoder": ["self"], "decoder": ["self", "cross"]}
        theirs = {"self": "SelfAttention", "cross": "EncDecAttention"}
        for tower, kinds in parts.items():
            block = f"{tower}.block.{{}}.layer"
            for place, kind in enumerate(kinds):
                own = f"{tower}.layers.{kind}"
                names[f"{own}_norm"] = f"{block}.{place}.layer_norm"
                for ours, short in linear.items():
                    names[f"{own}_attention.{ours}"] = f"{block}.{place}.{theirs[kind]}.{short}"
            last = f"{block}.{len(kinds)}"
            names[f"{tower}.layers.norm"] = f"{last}.layer_norm"
            for ours, short in {"gate": "wi_0", "up": up, "down": "wo"}.items():
                names[f"{tower}.layers.{ours}"] = f"{last}.DenseReluDense.{short}"
            first = f"{tower}.block.0.layer.0.SelfAttention"
            names[f"{tower}.bias"] = f"{first}.relative_attention_bias"
            names[f"{tower}.norm"] = f"{tower}.final_layer_norm"
        return names

    def attention_need(self, tokens: int, dtype: str) -> Need:
        return Need(tokens, tokens, self.config.head_size, dtype, causal=True, bias=True)

    def hidden(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        segments: Array | None = None,
        ctx: Context = EVAL,
    ) -> Array:
        """Returns the decoder's normalized hidden states (B, T, D); those of prompts mean nothing.

        Args:
            input_ids: (B, T) integers: pairs of a prompt and an answer, each with its end token; an
                answer begins with its start token.
            attention_mask: not used: `segments` say which tokens are real.
            segments: (B, T) integers: 2n - 1 for the n-th prompt, 2n for its answer, 0 for padding.
            ctx: dropout key and the mask that the balance loss uses.

        Raises:
            UserError: no segments.
        """
        if segments is None:
            raise UserError(
                "an encoder-decoder needs to know which tokens are the prompt and which the "
                "answer: give segments"
            )
        same = segments[:, :, None] == segments[:, None]
        prompt = segments % 2 == 1
        x = self.embeddings(input_ids, ctx)
        memory = self._encode(x, same & prompt[:, None], ctx)
        tokens = input_ids.shape[1]
        past = jnp.tril(jnp.ones((tokens, tokens), bool))[None]
        across = segments[:, :, None] == segments[:, None] + 1
        bias = self.decoder.scores(tokens, tokens)

        def call(block: Block, x: Array, ctx: Context, each: Any) -> tuple[Array, None]:
            normal = block.self_norm(x)
            own = block.self_attention.keys(normal, ctx)
            x = x + block.self_attention(normal, own, ctx, same & past, bias)
            theirs = block.cross_attention.keys(memory, ctx)
            x = x + block.cross_attention(block.cross_norm(x), theirs, ctx, across, None)
            return block.feed_forward(x, ctx), None

        return self._final(self.decoder.layers.scan(call, x, ctx)[0])

    def _encode(self, x: Array, mask: Array, ctx: Context) -> Array:
        """Returns the encoder's normalized hidden states (B, T, D)."""
        bias = self.encoder.scores(x.shape[1], x.shape[1])

        def call(block: Block, x: Array, ctx: Context, each: Any) -> tuple[Array, None]:
            normal = block.self_norm(x)
            own = block.self_attention.keys(normal, ctx)
            x = x + block.self_attention(normal, own, ctx, mask, bias)
            return block.feed_forward(x, ctx), None

        return self.encoder.norm(self.encoder.layers.scan(call, x, ctx)[0])

    def empty_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch: int, slots: int, dtype: DTypeLike | None = None
    ) -> Seq2SeqCache:
        """Allocates a cache of `slots` tokens a row; the dtype defaults to the hidden states'."""
        config = self.config
        shape = (config.num_layers, batch, slots, config.num_heads, config.head_size)
        empty = jnp.zeros(shape, dtype or self.embeddings.dtype)
        mask = jnp.zeros((batch, slots), bool)
        pair, more = (empty, empty.copy()), (empty.copy(), empty.copy())
        return Seq2SeqCache(pair, mask, more, mask.copy(), jnp.zeros((), jnp.int32))

    def extend(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Array, attention_mask: Array, cache: Seq2SeqCache, ctx: Context = EVAL
    ) -> tuple[Array, Seq2SeqCache]:
        """Reads a prompt that ends with its answer's start token, or one more token of the answer.

        Args:
            input_ids: (B, T) integers; several tokens are a prompt, one is an answer's.
            attention_mask: (B, T), non-zero where a token is real; prompts of different lengths are
                padded on the left.
            cache: an empty cache for a prompt, else that of the tokens before.
            ctx: dropout key and the mask that the balance loss uses.

        Returns:
            Hidden states (B, 1, D) of the last token, and the cache with these tokens added.
        """
        if input_ids.shape[1] > 1:
            cache = self._with_prompt(input_ids[:, :-1], attention_mask[:, :-1] != 0, cache, ctx)
        one = jnp.ones((len(input_ids), 1), bool)
        mask = jax.lax.dynamic_update_slice_in_dim(cache.mask, one, cache.length, axis=1)
        bias = self.decoder.scores(1, mask.shape[1], cache.length)

        def call(block: Block, x: Array, ctx: Context, each: Any) -> tuple[Array, Any]:
            theirs, before = each
            normal = block.self_norm(x)
            new = block.self_attention.keys(normal, ctx)
            own = jax.tree.map(
                lambda all, one: jax.lax.dynamic_update_slice_in_dim(
                    all, one.astype(all.dtype), cache.length, 1
                ),
                before,
                new,
            )
            x = x + block.self_attention(normal, own, ctx, mask[:, None], bias)
            across = cache.prompt_mask[:, None]
            x = x + block.cross_attention(block.cross_norm(x), theirs, ctx, across, None)
            return block.feed_forward(x, ctx), own

        each, x = (cache.prompts, cache.answers), self.embeddings(input_ids[:, -1:], ctx)
        x, answers = self.decoder.layers.scan(call, x, ctx, each)
        kept = cache._replace(answers=answers, mask=mask, length=cache.length + 1)
        return self._final(x), kept

    def _with_prompt(
        self, input_ids: Array, real: Array, cache: Seq2SeqCache, ctx: Context
    ) -> Seq2SeqCache:
        """Encodes a prompt and keeps its keys and values for attention across."""
        memory = self._encode(self.embeddings(input_ids, ctx), real[:, None], ctx)

        def call(block: Block, x: Array, ctx: Context, each: Any) -> tuple[Array, Any]:
            return x, block.cross_attention.keys(memory, ctx)

        _, prompts = self.decoder.layers.scan(call, memory, ctx)
        put = partial(_put, memory.shape[1])
        prompts = jax.tree.map(put, cache.prompts, prompts)
        return cache._replace(
            prompts=prompts, prompt_mask=cache.prompt_mask.at[:, : real.shape[1]].set(real)
        )


def _put(tokens: int, slots: Array, new: Array) -> Array:
    return slots.at[:, :, :tokens].set(new.astype(slots.dtype))
