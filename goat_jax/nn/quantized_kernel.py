"""Frozen kernel quantized to few bits, as in QLoRA (arXiv 2305.14314, section 3).

qwix (the extra `quant`) does the quantization. This module keeps training memory small: the
product's backward pass dequantizes the kernel again instead of storing it. On a mesh, devices that
see other rows exchange the codes and scales, not the kernel that they represent.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from goat_jax.extras import import_extra
from goat_jax.typing import Array

TILE = 64
"""Largest number of entries of a column that share a scale; QLoRA's block size."""

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Value of each nf4 code (QLoRA, appendix E)."""


@dataclasses.dataclass(frozen=True)
class Quantization:
    """A kind of quantization.

    Attributes:
        qwix: qwix's type for it.
        bits: the bits of a code.
        values: the value of each code; None if a code is its value.
    """

    qwix: Any
    bits: int
    values: tuple[float, ...] | None = None


KINDS = {"int8": Quantization(jnp.int8, 8), "nf4": Quantization("nf4", 4, NF4)}
"""Name -> kind of quantization."""


def _qwix() -> ModuleType:
    return import_extra("qwix", "model.quantize")


def tile_of(rows: int) -> int:
    """Returns the number of rows that share a scale: the largest divisor of both rows and `TILE`.

    >>> tile_of(4096), tile_of(24)
    (64, 8)
    """
    return math.gcd(rows, TILE)


def quantize(kernel: Array, kind: str) -> tuple[Array, Array]:
    """Quantizes a kernel (I, O) to codes (I, O) and float32 scales (I / tile, O).

    Args:
        kernel: (I, O), any float dtype.
        kind: a key of `KINDS`.
    """
    quantized = _qwix().quantize(
        kernel.astype(jnp.float32),
        KINDS[kind].qwix,
        channelwise_axes=[1],
        tiled_axes={0: tile_of(kernel.shape[0])},
    )
    return quantized.qvalue, quantized.scale


def dequantize(codes: Array, scales: Array, kind: str) -> Array:
    """Returns the float32 kernel (I, O) that codes and scales represent, as qwix does.

    qwix flattens the codes, for which a mesh would have to gather them.
    """
    table = KINDS[kind].values
    if table is None:
        values = codes.astype(jnp.float32)
    else:
        values = jnp.asarray(table, jnp.float32)[codes.astype(jnp.int32)]
    # Repeated scales and not tiles of codes: on a mesh, shards of codes may start inside of a tile.
    rows, columns = codes.shape
    repeated = jnp.broadcast_to(scales[:, None], (len(scales), rows // len(scales), columns))
    return values * repeated.reshape(codes.shape)


@dataclasses.dataclass(frozen=True)
class QuantizedForm:
    """Form of a quantized kernel, static under jit.

    Attributes:
        kind: a key of `KINDS`.
        in_use: on a mesh, the shardings of codes and scales where they are dequantized, of which
            the last two axes count; None leaves them as they are.
    """

    kind: str
    in_use: tuple[NamedSharding, NamedSharding] | None = None

    def kernel(self, codes: Array, scales: Array) -> Array:
        """Returns the float32 kernel (I, O) of codes and scales."""
        if self.in_use is not None:
            codes, scales = map(_constrained, (codes, scales), self.in_use)
        return dequantize(codes, scales, self.kind)


def _constrained(array: Array, sharding: NamedSharding) -> Array:
    last = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[-2:]))
    return jax.lax.with_sharding_constraint(array, last)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def quantized_dot(x: Array, codes: Array, scales: Array, form: QuantizedForm) -> Array:
    """Multiplies x (..., I) by the kernel, in x's dtype; only x has a gradient."""
    return jnp.dot(x, form.kernel(codes, scales).astype(x.dtype))


def _forward(
    x: Array, codes: Array, scales: Array, form: QuantizedForm
) -> tuple[Array, tuple[Array, Array]]:
    return quantized_dot(x, codes, scales, form), (codes, scales)


def _backward(
    form: QuantizedForm, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, None, None]:
    kernel = form.kernel(*kept).astype(gradient.dtype)
    return jnp.dot(gradient, kernel.T), None, None


quantized_dot.defvjp(_forward, _backward)


class QuantizedKernel(nnx.Module):
    """Quantized replacement for a layer's kernel.

    Args:
        codes: the codes that `quantize` returns, (I, O); (L, I, O) in a stack.
        scales: the scales that `quantize` returns, (I / tile, O); (L, I / tile, O) in a stack.
        kind: a key of `KINDS`; static.
    """

    def __init__(self, codes: Array, scales: Array, kind: str):
        self.codes, self.scales = nnx.Param(codes), nnx.Param(scales)
        self.form = QuantizedForm(kind)

    def dot(self, x: Array) -> Array:
        """Multiplies x (..., I) by the kernel; returns (..., O)."""
        return quantized_dot(x, self.codes[...], self.scales[...], self.form)

    def kernel(self) -> Array:
        """Returns the dequantized float32 kernel, (I, O), (L, I, O), or (L, X, I, O) of experts."""
        codes, scales = self.codes[...], self.scales[...]
        if codes.ndim == 2:
            return self.form.kernel(codes, scales)
        each = (array.reshape(-1, *array.shape[-2:]) for array in (codes, scales))
        kernels = jax.lax.map(lambda one: self.form.kernel(*one), tuple(each))
        return kernels.reshape(codes.shape)
