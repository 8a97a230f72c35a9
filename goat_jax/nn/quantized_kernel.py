"""Frozen kernel quantized to few bits, as in QLoRA (arXiv 2305.14314, section 3).

qwix (the extra `quant`) does the quantization. This module keeps training memory small: the
product's backward pass dequantizes the kernel again instead of storing it.
"""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from goat_jax.extras import import_extra
from goat_jax.typing import Array

KINDS: dict[str, Any] = {"int8": jnp.int8, "nf4": "nf4"}
"""Name of a quantization -> qwix's type for it."""

TILE = 64
"""Largest number of entries of a column that share a scale; QLoRA's block size."""


def _qwix() -> ModuleType:
    return import_extra("qwix", "model.quantize")


def quantize(kernel: Array, kind: str) -> tuple[Array, Array]:
    """Quantizes a kernel (I, O) to codes (I, O) and float32 scales (I / tile, O).

    The tile is the largest divisor of I that divides `TILE`.

    Args:
        kernel: (I, O), any float dtype.
        kind: a key of `KINDS`.
    """
    tile = math.gcd(kernel.shape[0], TILE)
    found = _qwix().quantize(
        kernel.astype(jnp.float32), KINDS[kind], channelwise_axes=[1], tiled_axes={0: tile}
    )
    return found.qvalue, found.scale


def dequantize(codes: Array, scales: Array, kind: str) -> Array:
    """Returns the float32 kernel (I, O) that codes and scales represent."""
    qwix = _qwix()
    return qwix.dequantize(qwix.QArray(codes, scales, None, KINDS[kind]))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def quantized_dot(x: Array, codes: Array, scales: Array, kind: str) -> Array:
    """Multiplies x (..., I) by the kernel, in x's dtype; only x has a gradient."""
    return jnp.dot(x, dequantize(codes, scales, kind).astype(x.dtype))


def _forward(x: Array, codes: Array, scales: Array, kind: str) -> tuple[Array, tuple[Array, Array]]:
    return quantized_dot(x, codes, scales, kind), (codes, scales)


def _backward(kind: str, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, None, None]:
    codes, scales = kept
    kernel = dequantize(codes, scales, kind).astype(gradient.dtype)
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
        self.kind = kind

    def dot(self, x: Array) -> Array:
        """Multiplies x (..., I) by the kernel; returns (..., O)."""
        return quantized_dot(x, self.codes[...], self.scales[...], self.kind)

    def kernel(self) -> Array:
        """Returns the dequantized float32 kernel, (I, O) or (L, I, O)."""
        codes, scales = self.codes[...], self.scales[...]
        if codes.ndim == 2:
            return dequantize(codes, scales, self.kind)
        return jax.lax.map(lambda each: dequantize(each[0], each[1], self.kind), (codes, scales))
