"""Cross entropy over a large vocabulary, without holding the logits of all tokens at once.

The output layer is usually frozen. So the forward pass computes a token's loss and, from the same
logits, the gradient of the loss with respect to its hidden state; the backward pass only scales it.
This saves recomputing the logits, a second product with the (D, V) kernel.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from goat_jax.core.attention import capped
from goat_jax.core.flop_labels import recomputation
from goat_jax.typing import Array

LOGITS_AT_ONCE = 2**24
"""The number of logits in memory at a time: 64 MiB in float32."""


def chunked_cross_entropy(
    hidden: Array,
    kernel: Array,
    labels: Array,
    chunk: int | None = None,
    parts: int = 1,
    soft_cap: float | None = None,
) -> tuple[Array, Array]:
    """Computes the loss and the correctness of every token.

    Args:
        hidden: the final hidden states (S, D).
        kernel: the kernel of the output layer (D, V).
        labels: the correct tokens (S,), integers below V.
        chunk: the number of tokens of each part per chunk; None derives it from `LOGITS_AT_ONCE`.
        parts: the number of equal parts into which a mesh partitions the tokens; every chunk then
            holds local tokens of every device.
        soft_cap: bends logits smoothly into (-soft_cap, soft_cap); None does not.

    Returns:
        The losses ``-log softmax(hidden @ kernel)[labels]``, (S,) float32, and whether the label
        had the largest logit, (S,) bool.

    >>> losses, correct = chunked_cross_entropy(jnp.eye(2), 9 * jnp.eye(2), jnp.array([0, 0]), 1)
    >>> correct.tolist(), [round(float(loss), 2) for loss in losses]
    ([True, False], [0.0, 9.0])
    """
    if chunk is None:
        chunk = max(16, LOGITS_AT_ONCE // kernel.shape[1])
    cut = Cut(parts, min(chunk, hidden.shape[0] // parts))
    return _cross_entropy(cut, soft_cap, hidden, kernel, labels)


class Cut(NamedTuple):
    """Division of the tokens into `parts`, and of each part into chunks of `chunk` tokens.

    Attributes:
        parts: the number of equal parts.
        chunk: the number of tokens of a part in one chunk.
    """

    parts: int
    chunk: int


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(
    cut: Cut, soft_cap: float | None, hidden: Array, kernel: Array, labels: Array
) -> tuple[Array, Array]:
    def one(hidden: Array, labels: Array) -> tuple[Array, Array]:
        losses, correct, _ = _losses(hidden, kernel, labels, soft_cap, _logits)
        return losses, correct

    return _by_chunks(one, cut, hidden, labels)


def _losses(
    hidden: Array,
    kernel: Array,
    labels: Array,
    soft_cap: float | None,
    product: Callable[[Array, Array], Array],
) -> tuple[Array, Array, Array]:
    """Returns losses, correctness, and the loss's gradient w.r.t. the logits before the cap."""
    logits = capped(product(hidden, kernel), soft_cap)
    largest = logits.max(-1, keepdims=True)
    shifted = logits - jnp.broadcast_to(largest, logits.shape)
    total = jnp.exp(shifted).sum(-1, keepdims=True)
    label_logits = jnp.take_along_axis(shifted, labels[:, None], axis=-1)
    gradient = jnp.exp(shifted) / jnp.broadcast_to(total, logits.shape)
    onehot = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    gradient = gradient - onehot
    if soft_cap is not None:
        gradient = gradient * (1.0 - jnp.square(logits / soft_cap))
    return (jnp.log(total) - label_logits)[:, 0], logits.argmax(-1) == labels, gradient


def _logits(hidden: Array, kernel: Array) -> Array:
    return jnp.dot(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)


def _forward(
    cut: Cut, soft_cap: float | None, hidden: Array, kernel: Array, labels: Array
) -> tuple[Any, Any]:
    def one(hidden: Array, labels: Array) -> tuple[Array, Array, Array]:
        losses, correct, gradient = _losses(hidden, kernel, labels, soft_cap, _logits)
        back = jnp.dot(gradient.astype(hidden.dtype), kernel.astype(hidden.dtype).T)
        return losses, correct, back

    losses, correct, back = _by_chunks(one, cut, hidden, labels)
    return (losses, correct), (back, hidden, kernel, labels)


def _backward(
    cut: Cut, soft_cap: float | None, saved: tuple[Array, ...], gradients: tuple[Array, Array]
) -> tuple[Array, Array, None]:
    back, hidden, kernel, labels = saved
    weights = gradients[0]
    for_hidden = back * jnp.broadcast_to(weights[:, None], back.shape).astype(back.dtype)

    # The kernel's gradient recomputes the logits; the compiler drops it if the kernel is frozen.
    def one(hidden: Array, labels: Array, weights: Array) -> Array:
        _, _, gradient = _losses(hidden, kernel, labels, soft_cap, recomputation(_logits))
        weighted = gradient * jnp.broadcast_to(weights[:, None], gradient.shape)
        return jnp.dot(hidden.T, weighted.astype(hidden.dtype), preferred_element_type=jnp.float32)

    parts = _chunks(cut, hidden, labels, weights)
    zeros = jnp.zeros(kernel.shape, jnp.float32)
    for_kernel, _ = jax.lax.scan(lambda sum_, part: (sum_ + one(*part), None), zeros, parts)
    return for_hidden, for_kernel.astype(kernel.dtype), None


_cross_entropy.defvjp(_forward, _backward)


def _chunks(cut: Cut, *arrays: Array) -> tuple[Array, ...]:
    """Reshapes (S, ...) to (chunks, parts * chunk, ...), padding each part with zeros."""

    def one(a: Array) -> Array:
        rest = a.shape[1:]
        a = a.reshape(cut.parts, -1, *rest)
        a = jnp.pad(a, [(0, 0), (0, -a.shape[1] % cut.chunk), *[(0, 0)] * len(rest)])
        a = jnp.moveaxis(a.reshape(cut.parts, -1, cut.chunk, *rest), 1, 0)
        return a.reshape(-1, cut.parts * cut.chunk, *rest)

    return tuple(map(one, arrays))


def _by_chunks(one: Callable[..., tuple[Array, ...]], cut: Cut, *arrays: Array) -> Any:
    """Applies `one` to every chunk, and joins the results without the padding."""
    count = arrays[0].shape[0]

    def joined(result: Array) -> Array:
        rest = result.shape[2:]
        result = jnp.moveaxis(result.reshape(-1, cut.parts, cut.chunk, *rest), 0, 1)
        result = result.reshape(cut.parts, -1, *rest)[:, : count // cut.parts]
        return result.reshape(count, *rest)

    results = jax.lax.map(lambda chunk: one(*chunk), _chunks(cut, *arrays))
    return tuple(map(joined, results))
