"""Utilization: a run's matrix-product FLOP/s, done or needed, over the devices' peak FLOP/s."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from goat_jax.errors import Notice
from goat_jax.hardware.chips import chip_of
from goat_jax.training.logging.flops import matmul_flops
from goat_jax.typing import Batch, DTypeLike, PyTree


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

    It comes from the data sheet if the device is known, and is measured otherwise. A notice says so
    for an accelerator; a CPU's peak is always measured.

    Args:
        dtype: the dtype of the measured product.
    """
    device = jax.devices()[0]
    chip = chip_of(device)
    return jax.device_count() * (_measured(device, dtype) if chip is None else chip.flops)


def _measured(device: Any, dtype: DTypeLike) -> float:
    size = 1536 if device.platform == "cpu" else 8192  # smaller products do not fill an accelerator
    if device.platform != "cpu":
        warnings.warn(
            f"{device.device_kind} is not in goat_jax.hardware.chips: its utilization is relative "
            f"to the best of 4 measured products of {size} x {size} matrices",
            Notice,
            stacklevel=3,
        )
    return measured_peak(dtype, size)


class StepFlops:
    """Matrix-product FLOPs of a training step, counted once for each batch shape.

    Args:
        step: the training step; what its backward pass recomputes counts again.
        model_step: the same step without rematerialization, or the step itself.
    """

    def __init__(self, step: Callable[..., Any], model_step: Callable[..., Any]):
        self._steps = (step, model_step)
        self._known: dict[tuple, tuple[int, int]] = {}

    def __call__(self, state: PyTree, base: PyTree, batch: Batch) -> tuple[int, int]:
        """Returns the FLOPs that a step on a batch of this shape does, and those of the model."""
        shapes = tuple((name, batch[name].shape) for name in sorted(batch))
        if shapes not in self._known:
            step, model_step = self._steps
            done = matmul_flops(step, state, base, batch)
            needed = matmul_flops(model_step, state, base, batch, again=False)
            self._known[shapes] = done, needed
        return self._known[shapes]
