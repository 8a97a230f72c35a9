"""LoRA+: a larger learning rate for b than for a (Hayou et al., arXiv 2402.12354)."""

import optax

from goat_jax.errors import UserError
from goat_jax.optim.pairs import map_pairs
from goat_jax.typing import PyTree


def lora_plus(ratio: float = 16.0) -> optax.GradientTransformation:
    """Multiplies what is done to every factor b by a ratio; stateless.

    It belongs at the end of a chain: the ratio is one of learning rates, so weight decay is
    multiplied as well, and Adam would undo a ratio of gradients.

    Args:
        ratio: learning rate of b over that of a; 16 is the paper's for LLaMA.

    >>> import jax.numpy as jnp
    >>> tx, pair = lora_plus(16.0), {"a": jnp.ones(()), "b": jnp.ones(())}
    >>> updates, _ = tx.update(pair, tx.init(pair))
    >>> float(updates["a"]), float(updates["b"])
    (1.0, 16.0)
    """
    if ratio <= 0:
        raise UserError(f"LoRA+ ratio {ratio} must be above 0")

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        return map_pairs(lambda pair: {**pair, "b": ratio * pair["b"]}, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)  # type: ignore
