"""Quantizes the frozen kernels of a model, after its adapters have been initialized."""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from goat_jax.errors import UserError
from goat_jax.injection.sharded_init import Sharder
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
        # By numpy: on a mesh of several processes, only one of them may print this.
        errors = {name: np.asarray(error) for name, error in self.errors.items()}
        values = {name: float(error.max()) for name, error in errors.items()}
        mean = float(np.concatenate(list(errors.values())).mean())
        worst = max(values, key=values.__getitem__)
        return (
            f"quantised base: {self.kind}, {self.before / 2**20:.0f} -> {self.after / 2**20:.0f} "
            f"MiB, relative error {mean:.4f} on average, at most {values[worst]:.4f} ({worst})"
        )


def quantize_base(model: nnx.Module, kind: str, sharder: Sharder | None = None) -> QuantizeReport:
    """Quantizes every frozen kernel of the model's linear layers, in place.

    It works layer by layer, so the extra memory is one layer's kernel, or a device's shard of it.
    Modules that are trained in full stay as they are, and so do the tables and outputs of
    vocabularies.

    Args:
        model: the model, changed in place.
        kind: a key of `goat_jax.nn.quantized_kernel.KINDS`.
        sharder: sharding of the arrays on a mesh; None for one device.

    Raises:
        UserError: qwix is not installed, or no kernel is frozen.
    """
    before = after = 0
    errors: dict[str, list[Array]] = {}
    for ref in find_modules(model):
        dense = ref.module
        if dense.vocabulary_axis is not None or isinstance(dense.kernel, Head):
            continue
        kernel = dense.kernel[...]
        if not kernel.size:  # trained in full by its adapter
            continue
        stacked = kernel if ref.axes else kernel[None]
        where = None
        if sharder is not None:
            where = tuple(sharder.quantized(ref, stacked.shape).values())
        codes, scales, error = _compiled(kind, where)(stacked)
        before += kernel.size * kernel.dtype.itemsize
        after += codes.size * KINDS[kind].bits // 8 + scales.size * scales.dtype.itemsize
        errors.setdefault(ref.pattern, []).append(error)
        if not ref.axes:
            codes, scales = codes[0], scales[0]
        dense.quantized = nnx.data(QuantizedKernel(codes, scales, kind))
        dense.kernel = None  # pyright: ignore[reportAttributeAccessIssue]  (not read any more)
    if not errors:
        raise UserError(
            f"model.quantize {kind!r} finds no frozen kernel: leave it at none, or train fewer "
            "modules in full"
        )
    return QuantizeReport(
        kind, before, after, {name: jnp.concatenate(e) for name, e in errors.items()}
    )


@lru_cache(maxsize=64)
def _compiled(kind: str, where: tuple[NamedSharding, ...] | None) -> Any:
    """Returns the jitted `_quantize_layers`; on a mesh, given the shardings of codes and scales."""
    if where is None:
        return jax.jit(partial(_quantize_layers, kind, ()))
    # Every device quantizes the blocks of its scales, which no shard of the kernel divides.
    mesh, blocks, replicated = where[1].mesh, where[1].spec, PartitionSpec()
    axes = tuple(jax.tree.leaves(tuple(blocks)))
    quantized = jax.shard_map(
        partial(_quantize_layers, kind, axes),
        mesh=mesh,
        in_specs=blocks,
        out_specs=(blocks, blocks, replicated),
        check_vma=False,
    )
    return jax.jit(quantized, out_shardings=(*where, NamedSharding(mesh, replicated)))


def _quantize_layers(
    kind: str, axes: tuple[str, ...], kernels: Array
) -> tuple[Array, Array, Array]:
    """Returns codes, scales and relative errors of kernels (L, I, O), or (L, X, I, O) of experts.

    Args:
        kind: a key of `KINDS`.
        axes: the mesh axes that kernels are sharded over, of which this is one shard.
        kernels: (L, I, O) or (L, X, I, O).
    """

    def one(kernel: Array) -> tuple[Array, Array, Array]:
        codes, scales = quantize(kernel, kind)
        exact = kernel.astype(jnp.float32)
        off = exact - dequantize(codes, scales, kind)
        squares = jnp.stack([jnp.square(off).sum(), jnp.square(exact).sum()])
        return codes, scales, squares

    lead = kernels.shape[:-2]
    codes, scales, squares = jax.lax.map(one, kernels.reshape(-1, *kernels.shape[-2:]))
    codes, scales = (array.reshape(*lead, *array.shape[1:]) for array in (codes, scales))
    off, exact = jnp.sqrt(jax.lax.psum(squares, axes)).T
    return codes, scales, off / jnp.maximum(exact, 1e-30)
