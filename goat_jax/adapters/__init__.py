"""A method is a choice of parts: an initializer x a base edit x a router x a combine x a scale x an
auxiliary loss (`AdapterSpec`); the named methods are rows of one table (`METHODS`)."""

# Every module with parts, so that all of them are known by name wherever a spec is made.
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
