"""The paper's scaling alignment as a change of variables in the optimizer.

GOAT's scale s stands in the forward pass: ``y += s x a b``. With another forward scale f and
factors ``a' = c a``, ``b' = c b``, ``c = sqrt(s / f)``, the product is the same:
``f a' b' = s a b``. And so is the whole training run, if the optimizer works in the old variables:

- gradients are handed to it as ``c g'`` (the chain rule: g = c g'),
- parameters as ``a' / c``, so that weight decay and trust ratios see what they would have seen,
- its updates come back as ``c u``.

For SGD that multiplies updates by ``s / f``; for Adam, which does not see how large gradients are,
by ``sqrt(s / f)``. Routers and heads have c = 1. The identity is exact for any optimizer in
between, Adam's epsilon, clipping and weight decay included.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from goat_jax.errors import UserError
from goat_jax.optim.pairs import map_pairs, per_expert, scales_of
from goat_jax.typing import Array, PyTree


def alignment_ratios(scales: PyTree, forward: float) -> PyTree:
    """``c = sqrt(s / f)`` of every adapter and expert.

    Args:
        scales: as `pairs.scales_of` gives them.
        forward: f, the scale that stays in the forward pass.
    """
    if forward <= 0:
        raise UserError(f"forward scale {forward} must be above 0")
    return jax.tree.map(lambda scale: jnp.sqrt(scale / forward), scales)


def times_ratios(tree: PyTree, ratios: PyTree) -> PyTree:
    """``a' = c a``, ``b' = c b`` of every adapter in a pytree of parameters, gradients or updates.

    None in `ratios` leaves a part alone.

    >>> pair = {"query": {"a": jnp.ones((2, 3, 1)), "b": jnp.ones((2, 1, 4))}}
    >>> aligned = times_ratios(pair, {"query": {"scale": jnp.array([1.0, 2.0])}})
    >>> aligned["query"]["a"][:, 0, 0].tolist()
    [1.0, 2.0]
    """

    def scaled(pair: dict[str, Array], ratio: dict[str, Array]) -> dict[str, Array]:
        own = {name: pair[name] * per_expert(ratio["scale"], pair[name]) for name in ("a", "b")}
        return {**pair, **own}

    return map_pairs(scaled, tree, ratios)


def align(trainable: PyTree, base: PyTree, forward: float) -> tuple[PyTree, PyTree]:
    """Moves all of the scales but `forward` into the factors: the model computes the same.

    Args:
        trainable, base: as `dense.split_model` gives them.
    """
    ratios = alignment_ratios(scales_of(trainable, base), forward)
    return times_ratios(trainable, ratios), _with_scales(base, ratios["adapter"], forward)


def _with_scales(base: PyTree, ratios: PyTree, forward: float) -> PyTree:
    """The base with every adapter's scale set to one number."""
    if not isinstance(base, dict) or not isinstance(ratios, dict):
        return base
    if set(ratios) == {"scale"}:
        return {**base, "scale": jnp.full_like(base["scale"], forward)}
    return {k: _with_scales(v, ratios[k], forward) if k in ratios else v for k, v in base.items()}


def scaling_alignment(
    inner: optax.GradientTransformation, ratios: PyTree
) -> optax.GradientTransformation:
    """An optimizer that trains aligned factors as `inner` would train the original ones.

    Args:
        inner: any optimizer, with its clipping, decay and schedule.
        ratios: c of every adapter, as `alignment_ratios` gives it.

    The state is inner's. Numbers in `ratios` are constants of the compiled step.
    """
    inverse = jax.tree.map(lambda c: 1.0 / c, ratios)

    def init(params: PyTree) -> PyTree:
        return inner.init(times_ratios(params, inverse))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        old = None if params is None else times_ratios(params, inverse)
        found, state = inner.update(times_ratios(updates, ratios), state, old)
        return times_ratios(found, ratios), state

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]
