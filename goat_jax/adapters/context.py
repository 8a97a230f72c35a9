"""`Context`: the inputs of every adapter besides x, such as dropout key, padding mask, task ids."""

from __future__ import annotations

import dataclasses

import jax

from goat_jax.typing import Array, Batch, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """Inputs of a forward pass besides the tokens.

    It is passed down through the model and never stored, so that a step stays a pure function.

    Attributes:
        key: PRNG key of the dropout masks; None is eval mode, without any dropout.
        mask: the padding mask, non-zero where a token is real: the shape of x without its feature
            axis, or one that broadcasts to it. None if all tokens are real. Balance losses and the
            expert load leave masked tokens out.
        task_ids: the task of every example, integers (B,), or of every token of packed examples,
            (B, T), for routers that use it.
        task_types: the type of every example's task, 0 or 1, (B,), for LoRAMoE's localized balance.
        per_token: whether adapters report the experts' weights for every token and their mean;
            static under jit.
        fit_gates: whether adapters report the equations of constant weights that replace the
            router's (`goat_jax.core.gate_fit`); static under jit.
    """

    key: Key | None = None
    mask: Array | None = None
    task_ids: Array | None = None
    task_types: Array | None = None
    per_token: bool = dataclasses.field(default=False, metadata={"static": True})
    fit_gates: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def of_batch(cls, batch: Batch, key: Key | None = None, mask: Array | None = None) -> Context:
        """Returns the context of a batch, with its ``task_ids`` and ``task_types`` if it has them.

        >>> import jax.numpy as jnp
        >>> Context.of_batch({"task_ids": jnp.array([2])}).task_ids
        Array([2], dtype=int32)
        """
        return cls(key, mask, batch.get("task_ids"), batch.get("task_types"))

    def fold(self, number: Array | int) -> Context:
        """Returns the context of one part of the model: an independent key, all else the same."""
        if self.key is None:
            return self
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, number))

    def unmasked(self) -> Context:
        """Returns the context without mask, for layers without token axis such as a pooled head."""
        return dataclasses.replace(self, mask=None)


EVAL = Context()
