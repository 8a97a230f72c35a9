"""LoRA+: a larger learning rate for b than for a (Hayou et al., arXiv 2402.12354)."""

import optax

from goat_jax.errors import UserError
from goat_jax.optim.pairs import map_pairs
from goat_jax.typing import PyTree


def lora_plus(ratio: float = 16.0) -> optax.GradientTransformation:
    """Multiplies the updates of every factor b by a ratio; stateless.

    Put it at the end of a chain. The ratio is one of learning rates, so it applies to weight decay
    as well, and Adam would cancel a ratio of gradients.

    Args:
        ratio: the learning rate of b divided by that of a; 16 is the paper's value for LLaMA.

    Raises:
        UserError: a ratio that is not above 0.

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

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
