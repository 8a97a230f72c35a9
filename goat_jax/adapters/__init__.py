"""Adapters. A method is a combination of parts (`AdapterSpec`): initializer, kernel edit, router,
combine, scale and auxiliary loss. The named methods are rows of one table (`METHODS`)."""

# Importing a module registers its parts, so import them all: a spec may name any part.
from goat_jax.adapters.parts import (
    aux_losses,
    combines,
    full,
    gradient_init,
    initializers,
    lora_dash,
    neat,
    phases,
    routers,
    scales,
)

__all__ = [
    "aux_losses",
    "combines",
    "full",
    "gradient_init",
    "initializers",
    "lora_dash",
    "neat",
    "phases",
    "routers",
    "scales",
]
