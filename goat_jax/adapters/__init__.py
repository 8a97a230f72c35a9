"""A method is a choice of parts: an initializer x a base edit x a router x a combine x a scale x an
auxiliary loss (`AdapterSpec`); the named methods are rows of one table (`METHODS`)."""

# Every module with parts, so that all of them are known by name wherever a spec is made.
from goat_jax.adapters import (
    combines,
    course,
    directions,
    full_rank,
    gradient_start,
    losses,
    network,
    routing,
    scales,
    start,
)

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
