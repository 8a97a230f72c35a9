"""How much of the devices' power a run uses: operations of its steps over what they could do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from goat_jax.training.logging.chips import CHIPS
from goat_jax.training.logging.flops import matmul_flops
from goat_jax.typing import Batch

KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v6": "v6e",
    "NVIDIA A100": "a100",
    "NVIDIA H100": "h100",
}
"""How a device's kind begins, as jax says it -> its name in `CHIPS`; the first that fits."""


def known_peak(kind: str) -> float | None:
    """bfloat16 operations per second of one device by its maker's data sheet, None if unknown.

    >>> known_peak("TPU v5 lite") / 1e12
    197.0
    """
    name = next((name for start, name in KINDS.items() if kind.startswith(start)), None)
    return None if name is None else CHIPS[name].flops


def measured_peak(dtype: Any, size: int = 1536, repeats: int = 4) -> float:
    """Operations per second of the best of some square matrix products on one device."""
    square = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(square, square))
    best = min(_seconds(lambda: product(square, square)) for _ in range(repeats))
    return 2 * size**3 / best


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def peak_of_devices(dtype: Any) -> float:
    """Of all devices of a run together: by data sheet where it is known, or else measured."""
    known = known_peak(jax.devices()[0].device_kind)
    return jax.device_count() * (measured_peak(dtype) if known is None else known)


class StepFlops:
    """Matrix-product operations of a training step, counted once for each shape of batch.

    What the backward pass recomputes counts as often as it is done (hardware operations).
    """

    def __init__(self, step: Callable[..., Any]):
        self._step, self._known = step, {}

    def __call__(self, state: Any, base: Any, batch: Batch) -> int:
        """The count for a batch of this shape; nothing is run."""
        shapes = tuple((name, batch[name].shape) for name in sorted(batch))
        if shapes not in self._known:
            self._known[shapes] = matmul_flops(self._step, state, base, batch)
        return self._known[shapes]
