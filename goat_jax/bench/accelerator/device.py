"""Programs on the first device: random arrays made there, and the memory that a call takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.stages import Compiled

from goat_jax.hardware.chips import chip_of
from goat_jax.training.logging.mfu import measured_peak
from goat_jax.typing import Array, DTypeLike, PyTree


def arguments_and_temporaries(compiled: Compiled) -> tuple[int, int]:
    """Returns the bytes that the compiler planned for a program's arguments and temporaries."""
    memory = compiled.memory_analysis()
    assert memory is not None  # some backends other than CPU, GPU and TPU have no analysis
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes


def peak_flops(dtype: DTypeLike) -> float:
    """Returns the first device's peak FLOP/s, measured if its chip is unknown."""
    chip = chip_of(jax.devices()[0])
    return measured_peak(dtype) if chip is None else chip.flops


def free_bytes() -> float:
    """Returns the bytes of the first device that are not in use; infinity if it does not say."""
    found = jax.devices()[0].memory_stats() or {}
    return found.get("bytes_limit", float("inf")) - found.get("bytes_in_use", 0)


def bytes_taken(call: Callable[[], Any]) -> int | None:
    """Calls a function; returns the bytes by which the device's peak exceeds those in use before.

    An earlier, higher peak hides this one: the result is then too large. None if the device does
    not count.
    """
    device = jax.devices()[0]
    before = device.memory_stats()
    jax.block_until_ready(call())
    after = device.memory_stats()
    return after["peak_bytes_in_use"] - before["bytes_in_use"] if before and after else None


@dataclasses.dataclass
class Numbers:
    """Random arrays, made on the device; equal leaves of several trees are made once.

    Two methods' models of 16 GB of kernels each therefore take 16 GB.

    >>> numbers, shapes = Numbers(), {"kernel": jax.ShapeDtypeStruct((2, 3), "bfloat16")}
    >>> numbers.like(shapes)["kernel"] is numbers.like(shapes)["kernel"]
    True
    """

    _made: dict[tuple, Array] = dataclasses.field(default_factory=dict)

    def like(self, shapes: PyTree) -> PyTree:
        """Returns arrays of these shapes and dtypes; none of them may be donated."""
        return jax.tree_util.tree_map_with_path(self._shared, shapes)

    def _shared(self, path: Any, shape: jax.ShapeDtypeStruct) -> Array:
        key = (jax.tree_util.keystr(path), shape.shape, shape.dtype)
        if key not in self._made:
            self._made[key] = normal(shape, len(self._made))
        return self._made[key]


def normal(shape: jax.ShapeDtypeStruct, seed: int) -> Array:
    """Makes normal numbers of scale 0.02 of a shape and dtype; zeros if it has no fractions."""
    if not jnp.issubdtype(shape.dtype, jnp.floating):
        return jnp.zeros(shape.shape, shape.dtype)
    return _normal(jax.random.key(seed, impl="rbg"), shape.shape, shape.dtype)


@partial(jax.jit, static_argnums=(1, 2))
def _normal(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    def make(key: Array, shape: tuple[int, ...]) -> Array:
        return (0.02 * jax.random.normal(key, shape, jnp.float32)).astype(dtype)

    if len(shape) < 3:
        return make(key, shape)
    # One layer at a time: float32 copies of a whole stack of kernels would set the peak of memory.
    return jax.lax.map(lambda key: make(key, shape[1:]), jax.random.split(key, shape[0]))
