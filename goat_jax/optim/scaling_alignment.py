"""The paper's scaling alignment as a change of variables in the optimizer.

GOAT's scale s is part of the forward pass: ``y += s x a b``. With another forward scale f and
factors ``a' = c a``, ``b' = c b``, ``c = sqrt(s / f)``, the product is the same:
``f a' b' = s a b``. So is the complete training run, if the optimizer works in the old variables:

- it gets the gradients as ``c g'`` (the chain rule: g = c g'),
- it gets the parameters as ``a' / c``, so that weight decay and trust ratios see the old values,
- its updates u are applied as ``c u``.

For SGD this multiplies updates by ``s / f``; for Adam, which is invariant to the gradients' size,
by ``sqrt(s / f)``. Routers and heads have c = 1. The identity is exact for any optimizer, including
Adam's epsilon, clipping and weight decay.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from goat_jax.errors import UserError
from goat_jax.optim.pairs import map_pairs, per_expert, scales_of
from goat_jax.typing import Array, PyTree


def alignment_ratios(scales: PyTree, forward: float) -> PyTree:
    """Computes ``c = sqrt(s / f)`` of every adapter and expert.

    Args:
        scales: the scale s of every adapter, from `pairs.scales_of`.
        forward: the scale f that stays in the forward pass.

    Raises:
        UserError: a forward scale that is not above 0.
    """
    if forward <= 0:
        raise UserError(f"forward scale {forward} must be above 0")
    return jax.tree.map(lambda scale: jnp.sqrt(scale / forward), scales)


def times_ratios(tree: PyTree, ratios: PyTree) -> PyTree:
    """Multiplies a and b of every adapter by c, in a pytree of parameters, gradients or updates.

    Leaves where `ratios` has None stay unchanged.

    >>> pair = {"query": {"a": jnp.ones((2, 3, 1)), "b": jnp.ones((2, 1, 4))}}
    >>> aligned = times_ratios(pair, {"query": {"scale": jnp.array([1.0, 2.0])}})
    >>> aligned["query"]["a"][:, 0, 0].tolist()
    [1.0, 2.0]
    """

    def scaled(pair: dict[str, Array], ratio: dict[str, Array]) -> dict[str, Array]:
        multiplied = {
            name: pair[name] * per_expert(ratio["scale"], pair[name]) for name in ("a", "b")
        }
        return {**pair, **multiplied}

    return map_pairs(scaled, tree, ratios)


def align(trainable: PyTree, base: PyTree, forward: float) -> tuple[PyTree, PyTree]:
    """Moves all of the scales except `forward` into the factors; the model's output is unchanged.

    Args:
        trainable: the trained parameters, from `dense.split_model`.
        base: the frozen parameters, from `dense.split_model`.
        forward: the scale that stays in the forward pass.

    Returns:
        The trained and the frozen parameters after the change.
    """
    ratios = alignment_ratios(scales_of(trainable, base), forward)
    return times_ratios(trainable, ratios), _with_scales(base, ratios["adapter"], forward)


def _with_scales(base: PyTree, ratios: PyTree, forward: float) -> PyTree:
    """Returns the base with every adapter's scale set to one number."""
    if not isinstance(base, dict) or not isinstance(ratios, dict):
        return base
    if set(ratios) == {"scale"}:
        return {**base, "scale": jnp.full_like(base["scale"], forward)}
    return {k: _with_scales(v, ratios[k], forward) if k in ratios else v for k, v in base.items()}


def scaling_alignment(
    inner: optax.GradientTransformation, ratios: PyTree
) -> optax.GradientTransformation:
    """Returns an optimizer that trains aligned factors as `inner` would train the original ones.

    Its state is that of `inner`. The numbers in `ratios` are constants of the compiled step.

    Args:
        inner: any optimizer, with its clipping, decay and schedule.
        ratios: the ratio c of every adapter, from `alignment_ratios`.
    """
    inverse = jax.tree.map(lambda c: 1.0 / c, ratios)

    def init(params: PyTree) -> PyTree:
        return inner.init(times_ratios(params, inverse))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        old = None if params is None else times_ratios(params, inverse)
        updates_of_inner, state = inner.update(times_ratios(updates, ratios), state, old)
        return times_ratios(updates_of_inner, ratios), state

    return optax.GradientTransformation(init, update)
