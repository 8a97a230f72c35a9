"""LoRA-Pro: gradients of a and b whose joint effect is nearest to full fine-tuning's gradient.

Wang et al., arXiv 2407.18242. Let g be the gradient of the full kernel, which is never formed. Of
all changes of the kernel that changes of a and b can make, the one nearest to g is its projection
``P_a g + g P_b - P_a g P_b`` onto the span of a and b. A matrix X (R, R) remains free: it changes a
and b in opposite ways and leaves the kernel as it is. The factors here are (in, rank) and
(rank, out), the transposes of the paper's, and the formulas are transposed likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from goat_jax.errors import UserError, nearest
from goat_jax.optim.adam import scale_by_adam
from goat_jax.optim.pairs import is_pair, map_pairs, per_expert
from goat_jax.typing import Array, PyTree

DELTA = 1e-8
"""Multiple of the identity added to the Gram matrices before they are inverted."""


class _Pair(NamedTuple):
    """Arrays of one adapter: a (..., I, R), b (..., R, O), gradients, inverse Grams and scale."""

    a: Array
    b: Array
    grad_a: Array
    grad_b: Array
    inverse_a: Array
    inverse_b: Array
    scale: Array


def _transposed(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)


def _gram_inverse(gram: Array) -> Array:
    return jnp.linalg.inv(gram + DELTA * jnp.broadcast_to(jnp.eye(gram.shape[-1]), gram.shape))


def _sylvester(pair: _Pair) -> Array:
    """Returns the X that keeps the adjusted gradients nearest to the raw ones.

    It solves ``(b b') X + X (a' a) = -(b b')^-1 ga' a / s^2``. Both Gram matrices are symmetric, so
    two eigendecompositions suffice.
    """
    right = -pair.inverse_b @ _transposed(pair.grad_a) @ pair.a / pair.scale**2
    values_b, vectors_b = jnp.linalg.eigh(pair.b @ _transposed(pair.b))
    values_a, vectors_a = jnp.linalg.eigh(_transposed(pair.a) @ pair.a)
    turned = _transposed(vectors_b) @ right @ vectors_a
    shape = turned.shape
    sums = jnp.broadcast_to(values_b[..., :, None], shape) + jnp.broadcast_to(
        values_a[..., None, :], shape
    )
    return vectors_b @ (turned / jnp.maximum(sums, DELTA)) @ _transposed(vectors_a)


def _symmetry(pair: _Pair) -> Array:
    """Returns the X that splits the common part of the change equally between a and b."""
    common = pair.inverse_b @ (pair.b @ _transposed(pair.grad_b)) @ pair.inverse_a
    return -common / (2 * pair.scale**2)


def _zero(pair: _Pair) -> Array:
    return jnp.zeros_like(pair.inverse_a)


CHOICES: dict[str, Callable[[_Pair], Array]] = {
    "sylvester": _sylvester,
    "symmetry": _symmetry,
    "zero": _zero,
}
"""Choices of the free matrix X, by name."""


def adjust(
    a: Array, b: Array, grad_a: Array, grad_b: Array, scale: Array, x: str = "sylvester"
) -> tuple[Array, Array]:
    """Computes LoRA-Pro's gradients of one adapter, or of any stack of adapters.

    Args:
        a: the first factor (..., I, R).
        b: the second factor (..., R, O).
        grad_a: the gradient of the loss with respect to a, (..., I, R).
        grad_b: the gradient of the loss with respect to b, (..., R, O).
        scale: the multiplier of ``a b`` in the forward pass, (...,).
        x: the choice of the free matrix, a key of `CHOICES`.

    Returns:
        The adjusted gradients of a and b, float32.

    >>> a, b = jnp.array([[1.0], [0.0]]), jnp.array([[2.0]])
    >>> adjust(a, b, 2 * a, jnp.array([[1.0]]), jnp.ones(()), "zero")[0].ravel().tolist()
    [0.5, 0.0]
    """
    a, b, grad_a, grad_b = (value.astype(jnp.float32) for value in (a, b, grad_a, grad_b))
    inverse_a = _gram_inverse(_transposed(a) @ a)
    inverse_b = _gram_inverse(b @ _transposed(b))
    s = jnp.broadcast_to(scale[..., None, None].astype(jnp.float32), inverse_a.shape)
    pair = _Pair(a, b, grad_a, grad_b, inverse_a, inverse_b, s)
    free = _transposed(CHOICES[x](pair))
    outside = grad_b - (grad_b @ _transposed(b)) @ inverse_b @ b
    squared_a, squared_b = per_expert(scale, a) ** 2, per_expert(scale, b) ** 2
    return (
        grad_a @ inverse_b / squared_a + a @ free,
        inverse_a @ outside / squared_b - free @ b,
    )


def lora_pro(scales: PyTree, x: str = "sylvester") -> optax.GradientTransformation:
    """Replaces the gradients of every adapter's a and b by LoRA-Pro's; stateless.

    Before Adam in a chain, it is the paper's efficient AdamW; alone, it is the paper's SGD. Put
    gradient clipping before it: the norm is that of the raw gradients, as published.

    Args:
        scales: the scale of every adapter, from `pairs.scales_of`.
        x: the choice of the free matrix: "sylvester", "symmetry" or "zero".

    Raises:
        UserError: an unknown x, or an update without parameters.
    """
    if x not in CHOICES:
        raise UserError(f"LoRA-Pro x {x!r} is not one of {', '.join(CHOICES)}{nearest(x, CHOICES)}")

    def one(
        gradient: dict[str, Array], params: dict[str, Array], constants: PyTree
    ) -> dict[str, Array]:
        scale = _for_factors(constants["scale"], params["a"])
        a, b = adjust(params["a"], params["b"], gradient["a"], gradient["b"], scale, x)
        return {**gradient, "a": a, "b": b}

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        if params is None:
            raise UserError("lora_pro needs the parameters: call update(grads, state, params)")
        return map_pairs(one, updates, params, scales), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _for_factors(scale: Array, factor: Array) -> Array:
    """Broadcasts the scale to the leading axes (layers, experts) of a factor."""
    return jnp.broadcast_to(scale, factor.shape[:-2])


def lora_pro_full(
    scales: PyTree, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """Applies Adam to the full gradient that a and b can express, and projects it back onto them.

    This is the paper's full AdamW: for each adapter, the equivalent gradient ``s (a gb + ga b)``
    (I, O) goes through Adam, and the resulting direction is converted to directions of a and b with
    Sylvester's X. It replaces Adam in a chain. Its moments are as large as the kernels: two arrays
    (..., E, I, O) in float32. The published code also decays the frozen kernel if weight decay is
    set; here the kernel stays frozen.

    The state is `optax.ScaleByAdamState` over the parameters, with ``full`` in place of every
    adapter's a and b.

    Args:
        scales: the scale of every adapter, from `pairs.scales_of`.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: term added to Adam's denominator.
    """
    adam = scale_by_adam(beta1, beta2, epsilon)

    def to_full(gradient: dict, params: dict, constants: PyTree) -> dict[str, Array]:
        scale = _for_factors(constants["scale"], params["a"])
        a, b = adjust(params["a"], params["b"], gradient["a"], gradient["b"], scale, "zero")
        full = params["a"] @ b + a @ params["b"]
        rest = {name: value for name, value in gradient.items() if name not in ("a", "b")}
        return rest | {"full": full * per_expert(scale, full)}

    def from_full(params: dict, direction: dict, constants: PyTree) -> dict[str, Array]:
        scale = _for_factors(constants["scale"], params["a"])
        full = direction["full"] * per_expert(scale, direction["full"])
        grad_a, grad_b = full @ _transposed(params["b"]), _transposed(params["a"]) @ full
        a, b = adjust(params["a"], params["b"], grad_a, grad_b, scale)
        rest = {name: value for name, value in direction.items() if name != "full"}
        return rest | {"a": a, "b": b}

    def init(params: PyTree) -> optax.OptState:
        return adam.init(map_pairs(to_full, params, params, scales))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        if params is None:
            raise UserError("lora_pro_full needs the parameters: call update(grads, state, params)")
        directions, state = adam.update(map_pairs(to_full, updates, params, scales), state)
        return _over_pairs(from_full, params, directions, scales), state

    return optax.GradientTransformation(init, update)


def _over_pairs(
    function: Callable[..., Any], params: PyTree, elsewhere: PyTree, constants: PyTree
) -> PyTree:
    """Maps the pairs of `params` as `map_pairs` does; everything else is taken from `elsewhere`."""
    leaves, structure = jax.tree.flatten(params, is_leaf=is_pair)
    others = zip(
        structure.flatten_up_to(elsewhere), structure.flatten_up_to(constants), strict=True
    )
    mapped = [
        function(leaf, direction, scale) if is_pair(leaf) else direction
        for leaf, (direction, scale) in zip(leaves, others, strict=True)
    ]
    return jax.tree.unflatten(structure, mapped)
