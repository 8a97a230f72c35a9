"""Adapters. A method is a combination of parts (`AdapterSpec`): initializer, base edit, router,
combine, scale and auxiliary loss. The named methods are rows of one table (`METHODS`)."""

# Importing a module registers its parts, so import them all: a spec may name any part.
from goat_jax.adapters.parts import aux_losses as losses
from goat_jax.adapters.parts import combines, scales
from goat_jax.adapters.parts import full as full_rank
from goat_jax.adapters.parts import gradient_init as gradient_start
from goat_jax.adapters.parts import initializers as start
from goat_jax.adapters.parts import lora_dash as directions
from goat_jax.adapters.parts import neat as network
from goat_jax.adapters.parts import phases as course
from goat_jax.adapters.parts import routers as routing

__all__ = [
    "combines",
    "course",
    "directions",
    "full_rank",
    "gradient_start",
    "losses",
    "network",
    "routing",
    "scales",
    "start",
]
