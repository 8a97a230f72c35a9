"""Quantizes the frozen kernels of a model, after its adapters have been initialized."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from goat_jax.nn.dense import Head
from goat_jax.nn.named_modules import find_modules
from goat_jax.nn.quantized_kernel import KINDS, QuantizedKernel, dequantize, quantize
from goat_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class QuantizeReport:
    """Memory saved by a quantization, and its error.

    Attributes:
        kind: a key of `goat_jax.nn.quantized_kernel.KINDS`.
        before: bytes of the kernels before quantization.
        after: bytes after it, scales included, with a 4-bit code as half a byte.
        errors: name pattern -> relative error per layer, ||W - W'|| / ||W|| (Frobenius).
    """

    kind: str
    before: int
    after: int
    errors: dict[str, Array]

    def __str__(self) -> str:
        values = {name: float(jnp.max(error)) for name, error in self.errors.items()}
        mean = float(jnp.mean(jnp.concatenate(list(self.errors.values()))))
        worst = max(values, key=values.__getitem__)
        return (
            f"quantised base: {self.kind}, {self.before / 2**20:.0f} -> {self.after / 2**20:.0f} "
            f"MiB, relative error {mean:.4f} on average, at most {values[worst]:.4f} ({worst})"
        )


def quantize_base(model: nnx.Module, kind: str) -> QuantizeReport:
    """Quantizes every frozen kernel of the model's linear layers, in place.

    It works layer by layer, so the extra memory is one layer's kernel. Modules that are trained in
    full stay as they are.

    Args:
        model: the model, changed in place.
        kind: a key of `goat_jax.nn.quantized_kernel.KINDS`.

    Raises:
        UserError: qwix is not installed.
    """
    before = after = 0
    errors: dict[str, list[Array]] = {}
    for ref in find_modules(model):
        dense = ref.module
        if isinstance(dense.kernel, Head):
            continue
        kernel = dense.kernel[...]
        stacked = kernel if ref.layers is not None else kernel[None]
        codes, scales, error = _quantize_layers(stacked, kind)
        before += kernel.size * kernel.dtype.itemsize
        after += codes.size * _bits(kind) // 8 + scales.size * scales.dtype.itemsize
        errors.setdefault(ref.pattern, []).append(error)
        if ref.layers is None:
            codes, scales = codes[0], scales[0]
        dense.quantized = nnx.data(QuantizedKernel(codes, scales, kind))
        dense.kernel = None  # pyright: ignore[reportAttributeAccessIssue]  (not read any more)
    return QuantizeReport(
        kind, before, after, {name: jnp.concatenate(e) for name, e in errors.items()}
    )


def _bits(kind: str) -> int:
    return 4 if KINDS[kind] == "nf4" else 8


@partial(jax.jit, static_argnums=1)
def _quantize_layers(kernels: Array, kind: str) -> tuple[Array, Array, Array]:
    """Returns codes, scales and relative errors of kernels (L, I, O)."""

    def one(kernel: Array) -> tuple[Array, Array, Array]:
        codes, scales = quantize(kernel, kind)
        wide = kernel.astype(jnp.float32)
        off = jnp.linalg.norm(wide - dequantize(codes, scales, kind))
        return codes, scales, off / jnp.maximum(jnp.linalg.norm(wide), 1e-30)

    return jax.lax.map(one, kernels)
