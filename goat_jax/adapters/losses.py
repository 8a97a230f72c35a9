"""Auxiliary losses as parts."""

import dataclasses

import jax.numpy as jnp

from goat_jax.adapters.context import Context
from goat_jax.core import aux_losses
from goat_jax.core.routers import Routing
from goat_jax.typing import Array, Factors


@dataclasses.dataclass(frozen=True)
class NoAuxLoss:
    """Nothing: a real part, so that nothing branches on its absence."""

    def __call__(self, routing: Routing, factors: Factors, ctx: Context) -> Array:
        del routing, factors, ctx
        return jnp.zeros((), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Balance:
    """Load balancing of the experts, 1 when balanced in the paper's form, k in the published one.

    Attributes:
        published: the published code's form, k times the paper's.
        count_padding: let padding tokens count too, as the published code does.
    """

    published: bool = False
    count_padding: bool = False

    def __call__(self, routing: Routing, factors: Factors, ctx: Context) -> Array:
        del factors
        form = aux_losses.balance_loss_published if self.published else aux_losses.balance_loss
        return form(routing, None if self.count_padding else ctx.mask)
