"""Combines as parts: what an adapter adds to the layer's output, and how it folds into a kernel."""

import dataclasses

import jax.numpy as jnp

from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core.dispatch import dispatch
from goat_jax.core.residual import delta_weight
from goat_jax.core.routers import Routing
from goat_jax.typing import Array, Factors


@dataclasses.dataclass(frozen=True)
class SumOfExperts:
    """sum_i w_i s_i x a_i b_i, gated in rank space (`goat_jax.core.dispatch`)."""

    def __call__(
        self, x: Array, kernel: Array, factors: Factors, scale: Array, routing: Routing
    ) -> Array:
        del kernel
        gate = routing.weights * jnp.broadcast_to(scale, routing.weights.shape)
        return dispatch(x, factors["a"], factors["b"], gate)

    def merge(self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec) -> Array:
        del spec
        merged = kernel.astype(scale.dtype) + delta_weight(factors["a"], factors["b"], scale)
        return merged.astype(kernel.dtype)
