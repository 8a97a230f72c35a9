"""Rewrites an adapter as low-rank factors on the pretrained kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from goat_jax.errors import UserError
from goat_jax.interop.modules import AdaptedModule
from goat_jax.typing import Factors

OWN = {"a", "b", "magnitude"}
"""Names of the factors that plain LoRA (or DoRA) can store unchanged."""


class LowRank(NamedTuple):
    """The adapter of one module as plain LoRA.

    Attributes:
        a: the first factor, (I, Q), float32.
        b: the second factor, (Q, O), float32.
        scale: the scale of their product.
        magnitude: DoRA's magnitudes, (O,), or None.
        as_trained: whether a and b are the trained arrays, bit for bit.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None
    as_trained: bool


def low_rank(
    now: AdaptedModule,
    start: AdaptedModule,
    kernel: Any | None = None,
    gates: np.ndarray | None = None,
) -> LowRank:
    """Computes the low-rank change of the pretrained kernel W0 that equals frozen kernel + adapter.

    If the initial adapter was subtracted from the kernel, that is undone: the factors are [a, a0]
    and [s b; -s b0], so the rank is twice the adapter's.

    Args:
        now: the trained module.
        start: the same module before training.
        kernel: W0 (I, O), needed only if ``kernel_edit.looks_at_kernel``.
        gates: (E,) weights that replace those of a router; None for adapters without one.

    Raises:
        UserError: the router's weights vary and there are no gates, or the change does not have a
            low rank.
    """
    spec = now.spec
    if gates is None and not spec.router.mergeable:
        raise UserError(
            f"{type(spec.router).__name__} weights the experts {spec.router.varies}, so no LoRA "
            "equals this adapter"
        )
    scale = now.scale if gates is None else now.scale * gates.astype(np.float32)
    a, b = spec.combine.low_rank(_on_device(now.arrays), jnp.asarray(scale))
    a0, b0 = removed_part(start, kernel)
    if spec.num_experts == 1 and not a0.size and not now.constants and set(now.factors) <= OWN:
        pair = (now.factors["a"][0], now.factors["b"][0])
        return LowRank(*pair, float(now.scale[0]), now.factors.get("magnitude"), True)
    whole = np.concatenate([a, a0], 1), np.concatenate([b, -b0])
    return LowRank(*without_zeros(*whole), 1.0, now.factors.get("magnitude"), False)


def truncated(adapter: LowRank, rank: int) -> LowRank:
    """Returns the adapter of at most this rank whose product is nearest to the adapter's.

    >>> adapter = LowRank(np.eye(3), np.diag([3.0, 2.0, 1.0]), 2.0, None, True)
    >>> smaller = truncated(adapter, 1)
    >>> np.abs(smaller.a @ smaller.b).round(4).max(1).tolist(), smaller.scale
    ([6.0, 0.0, 0.0], 1.0)
    """
    if adapter.a.shape[1] <= rank:
        return adapter
    (left, upper), (right, lower) = np.linalg.qr(adapter.a), np.linalg.qr(adapter.b.T)
    u, s, v = np.linalg.svd(upper @ lower.T * adapter.scale)
    root = np.sqrt(s[:rank])
    a, b = left @ u[:, :rank] * root, root[:, None] * (v[:rank] @ right.T)
    return LowRank(a.astype(np.float32), b.astype(np.float32), 1.0, adapter.magnitude, False)


def removed_part(start: AdaptedModule, kernel: Any | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the part that the start took off the pretrained kernel, as factors (I, Q), (Q, O).

    Args:
        start: the module before training.
        kernel: the pretrained kernel (I, O), needed only if ``kernel_edit.looks_at_kernel``.
    """
    base = jnp.asarray(start.kernel if kernel is None else kernel)
    before, spec = _on_device(start.factors), start.spec
    removed = spec.kernel_edit.removed(base, before, jnp.asarray(start.scale), spec)
    return np.asarray(removed[0]), np.asarray(removed[1])


def _on_device(arrays: Mapping[str, np.ndarray]) -> Factors:
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def without_zeros(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drops the ranks that contribute nothing, such as pruned ones, but keeps at least one.

    >>> a, b = without_zeros(np.array([[1.0, 0.0, 2.0]]), np.ones((3, 4)))
    >>> a.shape, b.shape
    ((1, 2), (2, 4))
    """
    used = np.flatnonzero(a.any(0) & b.any(1))
    used = used if used.size else np.zeros(1, int)
    return a[:, used], b[used]
