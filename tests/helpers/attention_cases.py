"""Cases of attention, and its definition in a few lines, for every way to compute it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.core.attention import Visible, capped


class Case(NamedTuple):
    """Shapes and conditions of an attention; `padding` is "left", "right" or None."""

    name: str
    queries: int
    heads: int
    groups: int
    size: int
    causal: bool
    window: int | None = None
    padding: str | None = None
    segments: bool = False
    soft_cap: float | None = None
    scale: float | None = None
    cached: int = 0


CASES = [
    Case("grouped", 20, 4, 2, 6, True),
    Case("window and left padding", 37, 4, 1, 5, True, window=9, padding="left"),
    Case("encoder, padded, capped", 33, 3, 3, 8, False, padding="right", soft_cap=2.0),
    Case("segments", 40, 4, 2, 7, True, segments=True, scale=0.3),
    Case("segments and a window", 24, 2, 2, 4, True, window=5, segments=True),
    Case("window on both sides", 19, 2, 1, 3, False, window=4),
    Case("images", 17, 2, 2, 8, False),
]
CACHED = [
    Case("a cache", 5, 4, 2, 8, True, padding="left", cached=18),
    Case("queries within packed rows", 11, 4, 2, 6, True, window=9, segments=True, cached=13),
    Case("one query", 1, 4, 2, 8, True, window=6, padding="left", cached=29),
]
CASES += CACHED
WHOLE = [case for case in CASES if not case.cached]


def ids(case: Case) -> str:
    """Returns the case's name, the test's id."""
    return case.name


def cases(case: Case, dtype: Any) -> tuple[list[jax.Array], Visible, dict[str, Any]]:
    """Makes query, key and value of a case, what is visible, and the options that are not None."""
    rng = np.random.default_rng(len(case.name))
    keys = case.queries + case.cached
    shapes = [(2, case.queries, case.heads, case.size), *[(2, keys, case.groups, case.size)] * 2]
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    slots, edge = np.arange(keys)[None], np.array([[0], [keys // 3]])
    real = {"left": slots >= edge, "right": slots < keys - edge, None: None}[case.padding]
    segments = np.sort(rng.integers(1, 5, (2, keys))) if case.segments else None
    visible = Visible(
        case.causal,
        case.window,
        None if segments is None else jnp.asarray(segments, jnp.int32),
        None if real is None else jnp.asarray(real),
        jnp.int32(case.cached) if case.cached else None,
    )
    options = {"scale": case.scale, "soft_cap": case.soft_cap}
    return arrays, visible, {name: value for name, value in options.items() if value is not None}


def reference(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visible: Visible,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Computes attention by its definition, in the arrays' dtype."""
    shares = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(array, shares, axis=2) for array in (key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = capped(jnp.einsum("btnh,bsnh->bnts", query, key) * factor, soft_cap)
    mask = visible.mask(query.shape[1], key.shape[1])
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, -1e30)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), value)


def gradients(attend: Any, arrays: list[jax.Array], visible: Visible) -> list[jax.Array]:
    """Returns outputs of real queries that see a key, and the gradients of their weighted sum."""
    shape = arrays[0].shape
    mask = visible.mask(shape[1], arrays[1].shape[1])
    counts = jnp.ones((1, shape[1], 1, 1), bool) if mask is None else mask.any(-1)[..., None, None]
    if visible.real is not None and visible.start is None:
        counts &= visible.real[..., None, None]
    weights = np.random.default_rng(1).normal(size=shape)
    weights = jnp.where(counts, jnp.asarray(weights, arrays[0].dtype), 0)

    def total(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(*arrays)
        return (out * weights).sum(), jnp.where(counts, out, 0)

    grad = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    found, out = grad(*arrays)
    return [out, *found]
