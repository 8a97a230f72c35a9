"""Utilization: a run's matrix-product FLOP/s over the devices' peak FLOP/s."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from goat_jax.training.logging.chips import CHIPS
from goat_jax.training.logging.flops import matmul_flops
from goat_jax.typing import Batch, DTypeLike, PyTree

KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
    "NVIDIA A100": "a100",
    "NVIDIA H100": "h100",
}
"""Prefix of a jax device kind -> the chip's name in `CHIPS`; the first match counts."""


def known_peak(kind: str) -> float | None:
    """Returns the bfloat16 FLOP/s of one device from its maker's data sheet; None if unknown.

    >>> known_peak("TPU v5 lite") / 1e12
    197.0
    """
    name = next((name for start, name in KINDS.items() if kind.startswith(start)), None)
    return None if name is None else CHIPS[name].flops


@functools.cache
def measured_peak(dtype: DTypeLike, size: int = 1536, repeats: int = 4) -> float:
    """Measures one device's FLOP/s, once a process, as the best of several square products."""
    square = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(square, square))
    best = min(_seconds(lambda: product(square, square)) for _ in range(repeats))
    return 2 * size**3 / best


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def peak_of_devices(dtype: DTypeLike) -> float:
    """Returns the peak FLOP/s of all devices of a run together.

    It comes from the data sheet if the device is known, and is measured otherwise.

    Args:
        dtype: the dtype of the measured product.
    """
    known = known_peak(jax.devices()[0].device_kind)
    return jax.device_count() * (measured_peak(dtype) if known is None else known)


class StepFlops:
    """Matrix-product FLOPs of a training step, counted once for each batch shape.

    What the backward pass recomputes counts again (hardware FLOPs, not model FLOPs).

    Args:
        step: the training step.
    """

    def __init__(self, step: Callable[..., Any]):
        self._step = step
        self._known: dict[tuple, int] = {}

    def __call__(self, state: PyTree, base: PyTree, batch: Batch) -> int:
        """Returns the FLOPs of a step on a batch of this shape, by tracing alone."""
        shapes = tuple((name, batch[name].shape) for name in sorted(batch))
        if shapes not in self._known:
            self._known[shapes] = matmul_flops(self._step, state, base, batch)
        return self._known[shapes]
