"""What a forward pass tells every adapter besides x: dropout key, padding mask, tasks of rows."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from goat_jax.core.precision import wide
from goat_jax.typing import Array, Batch, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """Passed down through the model, never stored: a step stays a pure function.

    Attributes:
        key: PRNG key of the dropout masks; None is eval mode, no dropout anywhere.
        mask: non-zero where a token is real, the shape of x without its feature axis, or one that
            broadcasts to it; None if all are. Balance losses and the expert load leave masked
            tokens out.
        task_ids: (B,) integers, the task of every example, or (B, T), of every token of packed
            ones, for routers that go by it.
        task_types: (B,) of 0 and 1, the kind of its task, for LoRAMoE's localized balance.
        per_token: whether adapters report how they weigh every token, and on average; static.
    """

    key: Key | None = None
    mask: Array | None = None
    task_ids: Array | None = None
    task_types: Array | None = None
    per_token: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def of_batch(cls, batch: Batch, key: Key | None = None, mask: Array | None = None) -> Context:
        """The context of a batch: its ``task_ids`` and ``task_types``, if it has them.

        >>> Context.of_batch({"task_ids": jnp.array([2])}).task_ids
        Array([2], dtype=int32)
        """
        return cls(key, mask, batch.get("task_ids"), batch.get("task_types"))

    def fold(self, number: Array | int) -> Context:
        """The context of a part of the model: an independent key, all else the same."""
        if self.key is None:
            return self
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, number))

    def unmasked(self) -> Context:
        """For layers that do not see tokens one by one, such as a pooled classification head."""
        return dataclasses.replace(self, mask=None)


EVAL = Context()


def dropout(x: Array, rate: float, key: Key | None, copies: int | None = None) -> Array:
    """Inverted dropout of x (..., I); unchanged when the rate is 0 or there is no key (eval).

    The scale is applied in float32 at least: in bfloat16 1 - 0.1 is 0.8984, a bias of 0.17% that
    every layer would multiply in.

    Args:
        copies: with E, returns (E, ..., I): one mask per expert instead of a shared one.

    >>> dropout(jnp.ones(2), 0.5, None)
    Array([1., 1.], dtype=float32)
    """
    if rate == 0.0 or key is None:
        return x
    shape = x.shape if copies is None else (copies, *x.shape)
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    scaled = (x.astype(wide(x.dtype)) / (1.0 - rate)).astype(x.dtype)
    return jnp.where(keep, jnp.broadcast_to(scaled, shape), 0)
