"""Alternative dispatches of tokens to experts, as baselines for `core.dispatch`.

All compute the same output for the same gate (S, E) over S tokens and E experts, of which k per
token are not zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from goat_jax.adapters.parts.combines import SumOfExperts
from goat_jax.adapters.protocols import CombineInputs
from goat_jax.typing import Array, Factors

Dispatch = Callable[[Array, Array, Array, Array], Array]


def full_outputs(x: Array, a: Array, b: Array, gate: Array) -> Array:
    """Computes every expert's full output (E, S, O) by a vmap, then the weighted sum."""
    outputs = jax.vmap(lambda a, b: x @ a.astype(x.dtype) @ b.astype(x.dtype))(a, b)
    return jnp.einsum("eso,se->so", outputs, gate.astype(x.dtype))


def gathered(x: Array, a: Array, b: Array, gate: Array, k: int = 2) -> Array:
    """Gathers the factors of each token's k experts: (S, k, I, R) and (S, k, R, O)."""
    weights, chosen = jax.lax.top_k(gate, k)
    hidden = jnp.einsum("si,skir->skr", x, a[chosen].astype(x.dtype))
    hidden *= jnp.broadcast_to(weights[..., None], hidden.shape).astype(x.dtype)
    return jnp.einsum("skr,skro->so", hidden, b[chosen].astype(x.dtype))


def ragged(x: Array, a: Array, b: Array, gate: Array, k: int = 2) -> Array:
    """Sorts k copies of each token by expert, takes two grouped products and adds the copies up."""
    weights, chosen = jax.lax.top_k(gate, k)
    order = jnp.argsort(chosen.reshape(-1))
    token = order // k
    sizes = jnp.bincount(chosen.reshape(-1), length=a.shape[0]).astype(jnp.int32)
    hidden = jax.lax.ragged_dot(x[token], a.astype(x.dtype), sizes)
    scale = weights.reshape(-1)[order][:, None]
    hidden *= jnp.broadcast_to(scale, hidden.shape).astype(x.dtype)
    outputs = jax.lax.ragged_dot(hidden, b.astype(x.dtype), sizes)
    return jnp.zeros((x.shape[0], b.shape[-1]), x.dtype).at[token].add(outputs)


ALTERNATIVES: dict[str, Dispatch] = {
    "vmap over full outputs": full_outputs,
    "ragged_dot": ragged,
    "gather": gathered,
}


@dataclasses.dataclass(frozen=True)
class Dispatched(SumOfExperts):
    """Sum of experts with another dispatch.

    Attributes:
        dispatch: the dispatch, (x, a, b, gate) -> output.
    """

    dispatch: Dispatch = full_outputs

    def inner(self, arrays: Factors) -> Array | None:
        del arrays
        return None

    def __call__(self, inputs: CombineInputs) -> Array:
        return self.dispatch(inputs.x, *self.pairs(inputs.arrays), inputs.gate)
