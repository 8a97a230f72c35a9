"""LoRA-Pro: gradients of a and b that together come nearest to full fine-tuning's.

Wang et al., arXiv 2407.18242. With g the gradient of the full kernel, which is never formed: of all
moves of the kernel that moving a and b can make, the one nearest to g is its projection
``P_a g + g P_b - P_a g P_b`` on what a and b span. A matrix X (R, R) is free, it moves a and b
against each other and not the kernel. Factors here are (in, rank) and (rank, out), the paper's
transposed, and so are its formulas.
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
"""Added to the Gram matrices before they are inverted."""


class _Pair(NamedTuple):
    """One adapter's arrays: a (..., I, R), b (..., R, O), their gradients, and Gram inverses."""

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
    """X with ``(b b') X + X (a' a) = -(b b')^-1 ga' a / s^2``: the nearest to the raw gradients.

    Both Gram matrices are symmetric, so two eigendecompositions solve it.
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
    """X that lets a and b make the common part of the move half each."""
    common = pair.inverse_b @ (pair.b @ _transposed(pair.grad_b)) @ pair.inverse_a
    return -common / (2 * pair.scale**2)


def _zero(pair: _Pair) -> Array:
    return jnp.zeros_like(pair.inverse_a)


CHOICES: dict[str, Callable[[_Pair], Array]] = {
    "sylvester": _sylvester,
    "symmetry": _symmetry,
    "zero": _zero,
}
"""How the free matrix X is chosen."""


def adjust(
    a: Array, b: Array, grad_a: Array, grad_b: Array, scale: Array, x: str = "sylvester"
) -> tuple[Array, Array]:
    """LoRA-Pro's gradients of one adapter, or of any stack of them.

    Args:
        a, grad_a: (..., I, R).  b, grad_b: (..., R, O).
        scale: (...,), what multiplies ``a b`` in the forward pass.
        x: a key of `CHOICES`.

    Returns:
        the adjusted gradients of a and b, float32.

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

    Before Adam in a chain it is the paper's efficient AdamW, alone it is its SGD. Clipping comes
    before it: the norm is that of the raw gradients, as published.

    Args:
        scales: of every adapter, as `pairs.scales_of` gives them.
        x: "sylvester", "symmetry" or "zero".

    Raises:
        UserError: another x.
    """
    if x not in CHOICES:
        raise UserError(f"LoRA-Pro x {x!r} is not one of {', '.join(CHOICES)}{nearest(x, CHOICES)}")

    def one(gradient: dict[str, Array], params: dict[str, Array], own: Any) -> dict[str, Array]:
        scale = _for_factors(own["scale"], params["a"])
        a, b = adjust(params["a"], params["b"], gradient["a"], gradient["b"], scale, x)
        return {**gradient, "a": a, "b": b}

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        if params is None:
            raise UserError("lora_pro needs the parameters: call update(grads, state, params)")
        return map_pairs(one, updates, params, scales), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)  # type: ignore


def _for_factors(scale: Array, factor: Array) -> Array:
    """The scale with the leading axes (layers, experts) of a factor."""
    return jnp.broadcast_to(scale, factor.shape[:-2])


def lora_pro_full(
    scales: PyTree, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """Adam on the full gradient that a and b can express, projected back onto them.

    The paper's full AdamW: per adapter the equivalent gradient ``s (a gb + ga b)`` (I, O) goes
    through Adam, and its direction is turned into directions of a and b, with Sylvester's X. Takes
    Adam's place in a chain. Its moments are as large as the kernels: float32 (..., E, I, O) each.
    The published code also decays the frozen kernel when weight decay is set; here it stays frozen.

    The state is `optax.ScaleByAdamState` over the parameters with every adapter's a and b replaced
    by ``full``.
    """
    adam = scale_by_adam(beta1, beta2, epsilon)

    def to_full(gradient: dict, params: dict, own: Any) -> dict[str, Array]:
        scale = _for_factors(own["scale"], params["a"])
        a, b = adjust(params["a"], params["b"], gradient["a"], gradient["b"], scale, "zero")
        full = params["a"] @ b + a @ params["b"]
        rest = {name: value for name, value in gradient.items() if name not in ("a", "b")}
        return rest | {"full": full * per_expert(scale, full)}

    def from_full(params: dict, direction: dict, own: Any) -> dict[str, Array]:
        scale = _for_factors(own["scale"], params["a"])
        full = direction["full"] * per_expert(scale, direction["full"])
        grad_a, grad_b = full @ _transposed(params["b"]), _transposed(params["a"]) @ full
        a, b = adjust(params["a"], params["b"], grad_a, grad_b, scale)
        rest = {name: value for name, value in direction.items() if name != "full"}
        return rest | {"a": a, "b": b}

    def init(params: PyTree) -> optax.ScaleByAdamState:
        return adam.init(map_pairs(to_full, params, params, scales))  # type: ignore[return-value]

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        if params is None:
            raise UserError("lora_pro_full needs the parameters: call update(grads, state, params)")
        found, state = adam.update(map_pairs(to_full, updates, params, scales), state)
        return _over_pairs(from_full, params, found, scales), state

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def _over_pairs(function: Callable[..., Any], params: PyTree, found: PyTree, own: PyTree) -> PyTree:
    """As `map_pairs` by the pairs of `params`; everything else is what was found."""
    leaves, structure = jax.tree.flatten(params, is_leaf=is_pair)
    others = zip(structure.flatten_up_to(found), structure.flatten_up_to(own), strict=True)
    mapped = [
        function(leaf, direction, scale) if is_pair(leaf) else direction
        for leaf, (direction, scale) in zip(leaves, others, strict=True)
    ]
    return jax.tree.unflatten(structure, mapped)
