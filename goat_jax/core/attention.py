"""Attention as mathematics: what a query may see, and two forms that give the same numbers.

`plain_attention` writes out the scores of all pairs of tokens; `attention_in_blocks` never holds
more than those of one block of queries and one of keys. B is the number of rows, T that of queries
and S of keys, N and G the numbers of heads, H the head size.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from goat_jax.core.flop_labels import recomputation
from goat_jax.core.precision import wide
from goat_jax.typing import Array

BLOCK = 256
"""Queries and keys per block."""

ATTENTION = "attention"
"""Name of the output in blocks, with its sums, for rematerialization policies."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visible:
    """The keys that a query may attend to: those that meet all of these conditions.

    A query that is padding itself, or that has no such key, gets finite values without a meaning,
    which differ between the ways to compute attention and which nothing may read.

    Attributes:
        causal: whether keys after the query are excluded; static under jit.
        window: the number of tokens that a query reaches in either direction, itself included;
            None for all. Static under jit.
        segments: (B, S) integers: queries see only keys of their segment.
        real: (B, S) bool: keys that are not padding.
        start: the first query's slot among the keys, an int32 scalar; None is 0.

    >>> Visible(causal=True, window=2).mask(3, 3)[0].astype(int)
    Array([[1, 0, 0],
           [1, 1, 0],
           [0, 1, 1]], dtype=int32)
    """

    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    segments: Array | None = None
    real: Array | None = None
    start: Array | None = None

    def mask(self, queries: int, keys: int) -> Array | None:
        """Returns (B or 1, T, S), true where a query may attend to a key; None if it always may."""
        return self.block_mask((0, queries), (0, keys))

    def block_mask(
        self, queries: tuple[Array | int, int], keys: tuple[Array | int, int]
    ) -> Array | None:
        """Returns the mask of a block of queries and one of keys, each given as (first, number)."""

        def part(array: Array, block: tuple[Array | int, int]) -> Array:
            return jax.lax.dynamic_slice_in_dim(array, *block, axis=1)

        at = queries[0] + jnp.arange(queries[1], dtype=jnp.int32)
        at = at if self.start is None else at + self.start
        distance = at[:, None] - (keys[0] + jnp.arange(keys[1], dtype=jnp.int32))[None]
        conditions = []
        if self.causal:
            conditions.append((distance >= 0)[None])
        if self.window is not None:
            conditions.append((jnp.abs(distance) < self.window)[None])
        if self.segments is not None:
            first = queries[0] if self.start is None else queries[0] + self.start
            mine = part(self.segments, (first, queries[1]))
            theirs = part(self.segments, keys)
            conditions.append(mine[:, :, None] == theirs[:, None])
        if self.real is not None:
            conditions.append(part(self.real, keys)[:, None])
        return functools.reduce(jnp.logical_and, conditions) if conditions else None

    def pairs(self, queries: int, keys: int) -> int:
        """Counts the pairs of a query and a key that `causal` and `window` admit.

        >>> Visible(causal=True, window=2).pairs(3, 3)
        5
        """
        at = np.arange(queries)
        reach = keys if self.window is None else self.window
        first = np.maximum(0, at - reach + 1)
        stop = np.minimum(keys, at + (1 if self.causal else reach))
        return int(np.maximum(0, stop - first).sum())

    def padded(self, queries: int, keys: int, rows: int, to: tuple[int, int]) -> Visible:
        """Returns the same conditions for tokens padded on the right from T, S to the sizes `to`.

        No query sees a key that was added; a query that was added sees what its slot may.
        """
        more_queries, more_keys = to[0] - queries, to[1] - keys
        segments, real = self.segments, self.real
        if segments is not None:
            segments = jnp.pad(segments, ((0, 0), (0, more_queries + more_keys)))
        if more_keys:
            real = jnp.ones((rows, keys), bool) if real is None else real
            real = jnp.pad(real, ((0, 0), (0, more_keys)))
        return dataclasses.replace(self, segments=segments, real=real)


def capped(scores: Array, soft_cap: float | None) -> Array:
    """Bends scores smoothly into (-soft_cap, soft_cap); None leaves them as they are."""
    return scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)


def plain_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    sinks: Array | None = None,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    bias: Array | None = None,
    dropped: Callable[[Array], Array] | None = None,
) -> Array:
    """Computes attention (B, T, N, H) from the scores of all pairs, with the softmax in float32.

    Args:
        query: (B, T, N, H).
        key: (B, S, G, H); G divides N.
        value: (B, S, G, H).
        mask: (B or 1, T or 1, S), true where a query may attend to a key; None for everywhere. A
            query that may attend to nothing gets the mean of all values, never NaN.
        sinks: the score of a further key per head (N,) without a value; None for no such key.
        scale: the factor of the scores; None is 1 / sqrt(H).
        soft_cap: the bound of the scores (`capped`).
        bias: (B or 1, N, T, S) float32, added to the scores after their bound; None for none.
        dropped: dropout of the probabilities (B, N, T, S); None for no dropout.

    >>> x = jnp.ones((1, 3, 2, 4), jnp.bfloat16)
    >>> plain_attention(x, x, x, jnp.array([True, True, False])[None, None]).dtype
    dtype(bfloat16)
    """
    mask = None if mask is None else mask[:, None]
    # jax mixes bfloat16 and float32 internally, which a caller's strict promotion would reject.
    with jax.numpy_dtype_promotion("standard"):
        if dropped is None and soft_cap is None and sinks is None:
            return jax.nn.dot_product_attention(query, key, value, bias, mask, scale=scale)
        return _with_probabilities(query, key, value, mask, sinks, scale, soft_cap, bias, dropped)


def _with_probabilities(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    sinks: Array | None,
    scale: float | None,
    soft_cap: float | None,
    bias: Array | None,
    dropped: Callable[[Array], Array] | None,
) -> Array:
    """Computes `plain_attention` with explicit probabilities, which jax's does not expose."""
    shares = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(array, shares, axis=2) for array in (key, value))
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    factor: float = query.shape[-1] ** -0.5 if scale is None else scale
    scores = capped(jnp.einsum("BTNH,BSNH->BNTS", query, key) * factor, soft_cap)
    scores = scores if bias is None else scores + jnp.broadcast_to(bias, scores.shape)
    if mask is not None:
        # A finite value: a query that may attend to nothing gets the mean of all values, not NaN.
        scores = jnp.where(mask, scores, 0.5 * jnp.finfo(jnp.float32).min)
    probabilities = _softmax(scores, sinks)
    left = probabilities if dropped is None else dropped(probabilities)
    return jnp.einsum("BNTS,BSNH->BTNH", left.astype(value.dtype), value)


def _softmax(scores: Array, sinks: Array | None) -> Array:
    """Returns the softmax of scores (B, N, T, S), which the sinks (N,) take a share of."""
    if sinks is None:
        return jax.nn.softmax(scores, axis=-1)
    wide_sinks = sinks.astype(scores.dtype).reshape(1, -1, 1, 1)
    more = jnp.broadcast_to(wide_sinks, (*scores.shape[:-1], 1))
    return jax.nn.softmax(jnp.concatenate([scores, more], axis=-1), axis=-1)[..., :-1]


def attention_in_blocks(
    query: Array,
    key: Array,
    value: Array,
    visible: Visible,
    sinks: Array | None = None,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    block: int = BLOCK,
) -> Array:
    """Computes attention (B, T, N, H) block by block, so that no pass holds all scores.

    The forward pass keeps a running maximum and sum per query (online softmax), the backward pass
    computes each block's probabilities again (Dao et al. 2022, arXiv 2205.14135). Blocks of which
    no query sees a key are left out where that is known beforehand: without `visible.start`. A
    query that may attend to nothing gets zeros.

    Args:
        query: (B, T, N, H).
        key: (B, S, G, H); G divides N.
        value: (B, S, G, H).
        visible: the keys that each query may attend to.
        sinks: the score of a further key per head (N,) without a value; None for no such key.
        scale: the factor of the scores; None is 1 / sqrt(H).
        soft_cap: the bound of the scores (`capped`).
        block: the queries and keys per block.
    """
    rows, queries, heads, size = query.shape
    keys, groups = key.shape[1:3]
    sides = min(block, queries), min(block, keys)
    to = -(-queries // sides[0]) * sides[0], -(-keys // sides[1]) * sides[1]
    visible = visible.padded(queries, keys, rows, to)
    grouped = _padded(query, to[0]).reshape(rows, to[0], groups, heads // groups, size)
    setting = _Blocks(sides, to, size**-0.5 if scale is None else scale, soft_cap)
    if sinks is not None:
        sinks = sinks.reshape(groups, heads // groups)
    padded_key, padded_value = _padded(key, to[1]), _padded(value, to[1])
    out: Array = _blocks(setting, grouped, padded_key, padded_value, visible, sinks)
    return out.reshape(rows, to[0], heads, size)[:, :queries]


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Settings of `attention_in_blocks` that are static under jit.

    Attributes:
        sides: the queries and the keys per block.
        to: the numbers of queries and of keys with their padding.
        scale: the factor of the scores.
        soft_cap: the bound of the scores; None for none.
    """

    sides: tuple[int, int]
    to: tuple[int, int]
    scale: float
    soft_cap: float | None

    def pairs(self, visible: Visible) -> np.ndarray:
        """Returns the first query and key (P, 2) of every pair of blocks that may matter."""
        firsts = [range(0, to, side) for to, side in zip(self.to, self.sides, strict=True)]
        pairs = itertools.product(*firsts)
        return np.array([pair for pair in pairs if self._near(visible, *pair)], np.int32)

    def _near(self, visible: Visible, query: int, key: int) -> bool:
        if visible.start is not None:
            return True
        last_query, last_key = query + self.sides[0] - 1, key + self.sides[1] - 1
        seen = not visible.causal or last_query >= key
        if visible.window is not None:
            seen &= query - last_key < visible.window and key - last_query < visible.window
        return seen

    def scores(
        self, query: Array, key: Array, keep: Array | None, again: bool = False
    ) -> tuple[Array, Any]:
        """Returns masked scores (B, G, R, Q, K) and the derivative of the soft cap.

        Args:
            query: a block of queries.
            key: a block of keys.
            keep: the mask of the block; None for no mask.
            again: whether the forward pass has computed them already.
        """
        product = partial(_product, "bqgrh,bkgh->bgrqk")
        product = recomputation(product) if again else product
        scores = product(query, key) * self.scale
        bent = capped(scores, self.soft_cap)
        slope = 1.0 if self.soft_cap is None else 1 - jnp.square(bent / self.soft_cap)
        return (bent if keep is None else jnp.where(keep[:, None, None], bent, -jnp.inf)), slope


def _product(equation: str, *arrays: Array) -> Array:
    kind = wide(arrays[-1].dtype)
    return jnp.einsum(equation, *arrays, preferred_element_type=kind)


def _padded(array: Array, to: int) -> Array:
    more = to - array.shape[1]
    return array if not more else jnp.pad(array, ((0, 0), (0, more), *((0, 0),) * (array.ndim - 2)))


def _cut(array: Array, first: Array, number: int, axis: int = 1) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, first, number, axis)


def _put(array: Array, part: Array, first: Array, axis: int = 1) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part.astype(array.dtype), first, axis)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocks(
    setting: _Blocks,
    query: Array,
    key: Array,
    value: Array,
    visible: Visible,
    sinks: Array | None,
) -> Any:
    return _blocks_forward(setting, query, key, value, visible, sinks)[0]


def _blocks_forward(
    setting: _Blocks,
    query: Array,
    key: Array,
    value: Array,
    visible: Visible,
    sinks: Array | None,
) -> tuple[Array, Any]:
    """Computes outputs (B, T, G, R, H), and what the backward pass needs."""
    rows, queries, groups, shares, _ = query.shape
    kind, (q_side, k_side) = wide(query.dtype), setting.sides
    per_query = (rows, groups, shares, queries)

    def add(carry: tuple[Array, Array, Array], pair: Array) -> tuple[Any, None]:
        total, top, norm = carry
        at, over = pair[0], pair[1]
        keep = visible.block_mask((at, q_side), (over, k_side))
        scores, _ = setting.scores(_cut(query, at, q_side), _cut(key, over, k_side), keep)
        before = _cut(top, at, q_side, 3)
        high = jnp.maximum(before, scores.max(-1))
        # Where nothing has been seen yet the maximum is -inf, and -inf - -inf is not a number.
        base = jnp.where(jnp.isneginf(high), 0.0, high)
        left, weights = jnp.exp(before - base), jnp.exp(scores - base[..., None])
        parts = _product(
            "bgrqk,bkgh->bqgrh", weights.astype(value.dtype), _cut(value, over, k_side)
        )
        kept = _cut(total, at, q_side) * jnp.moveaxis(left, 3, 1)[..., None]
        sums = _cut(norm, at, q_side, 3) * left + weights.sum(-1)
        return (
            _put(total, kept + parts, at),
            _put(top, high, at, 3),
            _put(norm, sums, at, 3),
        ), None

    start = (
        jnp.zeros(query.shape, kind),
        jnp.full(per_query, -jnp.inf, kind),
        jnp.zeros(per_query, kind),
    )
    if sinks is not None:  # a key that has been seen before any other
        top = jnp.broadcast_to(jnp.expand_dims(sinks, (0, 3)).astype(kind), per_query)
        start = (start[0], top, jnp.ones(per_query, kind))
    (total, top, norm), _ = jax.lax.scan(add, start, jnp.asarray(setting.pairs(visible)))
    seen = norm > 0
    norm = jnp.where(seen, norm, 1.0)
    out = (total / jnp.moveaxis(norm, 3, 1)[..., None]).astype(query.dtype)
    # exp(score - inf) is 0: the backward pass gives a query without keys no weights, either.
    log_norm = jnp.where(seen, top + jnp.log(norm), jnp.inf)
    out, log_norm = checkpoint_name((out, log_norm), ATTENTION)
    return out, (query, key, value, visible, sinks, out, log_norm)


def _blocks_backward(setting: _Blocks, kept: Any, d_out: Array) -> tuple[Any, ...]:
    query, key, value, visible, sinks, out, log_norm = kept
    kind, (q_side, k_side) = wide(query.dtype), setting.sides
    # The softmax's derivative subtracts each query's mean of the weights' derivatives.
    mean = jnp.einsum("bqgrh,bqgrh->bgrq", d_out.astype(kind), out.astype(kind))

    def add(carry: tuple[Array, Array, Array], pair: Array) -> tuple[Any, None]:
        d_query, d_key, d_value = carry
        at, over = pair[0], pair[1]
        q, d = _cut(query, at, q_side), _cut(d_out, at, q_side)
        k, v = _cut(key, over, k_side), _cut(value, over, k_side)
        keep = visible.block_mask((at, q_side), (over, k_side))
        scores, slope = setting.scores(q, k, keep, again=True)
        weights = jnp.exp(scores - _cut(log_norm, at, q_side, 3)[..., None])
        d_weights = _product("bqgrh,bkgh->bgrqk", d, v)
        d_scores = weights * (d_weights - _cut(mean, at, q_side, 3)[..., None])
        d_scores = (d_scores * slope * setting.scale).astype(q.dtype)
        more_q = _product("bgrqk,bkgh->bqgrh", d_scores, k)
        more_k = _product("bgrqk,bqgrh->bkgh", d_scores, q)
        more_v = _product("bgrqk,bqgrh->bkgh", weights.astype(d.dtype), d)
        return (
            _put(d_query, _cut(d_query, at, q_side) + more_q, at),
            _put(d_key, _cut(d_key, over, k_side) + more_k, over),
            _put(d_value, _cut(d_value, over, k_side) + more_v, over),
        ), None

    start = tuple(jnp.zeros(array.shape, kind) for array in (query, key, value))
    grads, _ = jax.lax.scan(add, start, jnp.asarray(setting.pairs(visible)))
    grads = (g.astype(a.dtype) for g, a in zip(grads, (query, key, value), strict=True))
    d_sinks = None
    if sinks is not None:
        weights = jnp.exp(jnp.expand_dims(sinks, (0, 3)).astype(kind) - log_norm)
        d_sinks = -(weights * mean).sum((0, 3)).astype(sinks.dtype)
    return (*grads, jax.tree.map(_no_gradient, visible), d_sinks)


def _no_gradient(array: Array) -> Any:
    """Returns the derivative of integers and bools, which jax wants to have dtype float0."""
    return np.zeros(array.shape, jax.dtypes.float0)


_blocks.defvjp(_blocks_forward, _blocks_backward)
