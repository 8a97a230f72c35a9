"""Cross entropy over a large vocabulary, without holding the logits of all tokens at once.

The output layer is usually frozen. So the forward pass computes a token's loss and, from the same
logits, the gradient of the loss with respect to its hidden state; the backward pass only scales it.
This saves recomputing the logits, a second product with the (D, V) kernel.
"""

from __future__ import annotations

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


class Output(NamedTuple):
    """The vocabulary's output layer at some tokens, whose logits are a sum of products.

    Attributes:
        inputs: the products' first factors (..., Q), of which the first are the hidden states.
        kernels: their second factors (Q, V).
        columns: columns (D, n) that take the place of others in all the kernels, and multiply the
            hidden states; None for none.
        ids: the tokens (n,) of these columns.
    """

    inputs: tuple[Array, ...]
    kernels: tuple[Array, ...]
    columns: Array | None = None
    ids: Array | None = None

    def logits(self) -> Array:
        """Returns the logits (..., V), float32.

        >>> columns = jnp.full((2, 1), 5.0), jnp.array([1])
        >>> Output((jnp.eye(2),), (jnp.ones((2, 3)),), *columns).logits()[0]
        Array([1., 5., 1.], dtype=float32)
        """
        pairs = zip(self.inputs, self.kernels, strict=True)
        products = [_product(x, kernel) for x, kernel in pairs]
        logits = sum(products[1:], products[0])
        if self.columns is None:
            return logits
        return logits.at[..., self.ids].set(_product(self.inputs[0], self.columns))

    def to_inputs(self, gradient: Array) -> tuple[Array, ...]:
        """Returns the gradients of the inputs (S, Q) for that of the logits (S, V)."""
        dtype, rest = self.inputs[0].dtype, self._rest(gradient)
        found = [_product(rest.astype(dtype), kernel.T, None) for kernel in self.kernels]
        if self.columns is not None:
            own = gradient[:, self.ids].astype(dtype)
            found[0] = found[0] + _product(own, self.columns.T, None)
        return tuple(found)

    def to_kernels(self, gradient: Array) -> tuple[tuple[Array, ...], Array | None]:
        """Returns those of the kernels and the columns, in float32."""

        def against(x: Array, gradient: Array) -> Array:
            return _product(x.T, gradient.astype(x.dtype))

        rest = self._rest(gradient)
        kernels = tuple(against(x, rest) for x in self.inputs)
        if self.columns is None:
            return kernels, None
        return kernels, against(self.inputs[0], gradient[:, self.ids])

    def _rest(self, gradient: Array) -> Array:
        """Returns the gradient of the logits without those of the columns."""
        return gradient if self.columns is None else gradient.at[:, self.ids].set(0.0)


def _product(x: Array, kernel: Array, dtype: Any = jnp.float32) -> Array:
    return jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=dtype)


def chunked_cross_entropy(
    output: Output,
    labels: Array,
    chunk: int | None = None,
    parts: int = 1,
    soft_cap: float | None = None,
) -> tuple[Array, Array]:
    """Computes the loss and the correctness of every token.

    Args:
        output: the output layer at the tokens, with inputs (S, Q).
        labels: the correct tokens (S,), integers below V.
        chunk: the number of tokens of each part per chunk; None derives it from `LOGITS_AT_ONCE`.
        parts: the number of equal parts into which a mesh partitions the tokens; every chunk then
            holds local tokens of every device.
        soft_cap: bends logits smoothly into (-soft_cap, soft_cap); None does not.

    Returns:
        The losses ``-log softmax(logits)[labels]``, (S,) float32, and whether the label had the
        largest logit, (S,) bool.

    >>> output = Output((jnp.eye(2),), (9 * jnp.eye(2),))
    >>> losses, correct = chunked_cross_entropy(output, jnp.array([0, 0]), 1)
    >>> correct.tolist(), [round(float(loss), 2) for loss in losses]
    ([True, False], [0.0, 9.0])
    """
    if chunk is None:
        chunk = max(16, LOGITS_AT_ONCE // output.kernels[0].shape[1])
    cut = Cut(parts, min(chunk, len(labels) // parts))
    inputs, kernels, columns, ids = output
    return _cross_entropy(cut, soft_cap, inputs, (kernels, columns), (ids, labels))


class Cut(NamedTuple):
    """Division of the tokens into `parts`, and of each part into chunks of `chunk` tokens.

    Attributes:
        parts: the number of equal parts.
        chunk: the number of tokens of a part in one chunk.
    """

    parts: int
    chunk: int


Inputs = tuple[Array, ...]
Kernels = tuple[tuple[Array, ...], Array | None]
"""The fields `kernels` and `columns` of an `Output`."""

Indices = tuple[Array | None, Array]
"""Its `ids`, and the labels."""


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(
    cut: Cut, soft_cap: float | None, inputs: Inputs, kernels: Kernels, indices: Indices
) -> tuple[Array, Array]:
    ids, labels = indices

    def one(labels: Array, *inputs: Array) -> tuple[Array, Array]:
        losses, correct, _ = _losses(_logits(inputs, kernels, ids), labels, soft_cap)
        return losses, correct

    return _by_chunks(one, cut, labels, *inputs)


def _logits(inputs: Inputs, kernels: Kernels, ids: Array | None) -> Array:
    return Output(inputs, *kernels, ids).logits()


def _losses(logits: Array, labels: Array, soft_cap: float | None) -> tuple[Array, Array, Array]:
    """Returns losses, correctness, and the loss's gradient w.r.t. the logits before the cap."""
    logits = capped(logits, soft_cap)
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


def _forward(
    cut: Cut, soft_cap: float | None, inputs: Inputs, kernels: Kernels, indices: Indices
) -> tuple[Any, Any]:
    ids, labels = indices

    def one(labels: Array, *inputs: Array) -> tuple[Array, ...]:
        output = Output(inputs, *kernels, ids)
        losses, correct, gradient = _losses(output.logits(), labels, soft_cap)
        return losses, correct, *output.to_inputs(gradient)

    losses, correct, *back = _by_chunks(one, cut, labels, *inputs)
    return (losses, correct), (tuple(back), inputs, kernels, indices)


def _backward(
    cut: Cut,
    soft_cap: float | None,
    saved: tuple[Inputs, Inputs, Kernels, Indices],
    gradients: tuple[Array, Array],
) -> tuple[Inputs, Kernels, None]:
    back, inputs, kernels, (ids, labels) = saved
    weights = gradients[0]

    def weighted(array: Array) -> Array:
        return array * jnp.broadcast_to(weights[:, None], array.shape).astype(array.dtype)

    # The gradient of kernels recomputes the logits; the compiler drops what is frozen.
    logits_again = recomputation(_logits)

    def one(labels: Array, weights: Array, *inputs: Array) -> Kernels:
        output = Output(inputs, *kernels, ids)
        _, _, gradient = _losses(logits_again(inputs, kernels, ids), labels, soft_cap)
        return output.to_kernels(gradient * jnp.broadcast_to(weights[:, None], gradient.shape))

    def add(total: Kernels, part: tuple[Array, ...]) -> tuple[Kernels, None]:
        return jax.tree.map(jnp.add, total, one(*part)), None

    zeros = jax.tree.map(lambda kernel: jnp.zeros(kernel.shape, jnp.float32), kernels)
    total, _ = jax.lax.scan(add, zeros, _chunks(cut, labels, weights, *inputs))
    for_kernels = jax.tree.map(lambda value, like: value.astype(like.dtype), total, kernels)
    return tuple(map(weighted, back)), for_kernels, None


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
    count = len(arrays[0])

    def joined(result: Array) -> Array:
        rest = result.shape[2:]
        result = jnp.moveaxis(result.reshape(-1, cut.parts, cut.chunk, *rest), 0, 1)
        result = result.reshape(cut.parts, -1, *rest)[:, : count // cut.parts]
        return result.reshape(count, *rest)

    results = jax.lax.map(lambda chunk: one(*chunk), _chunks(cut, *arrays))
    return tuple(map(joined, results))
