"""`Dense`, the linear layer with an attachable adapter, and the variable types of what is trained.

The types separate the trained pytrees (`Factor`, `Head`) from the frozen one.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from goat_jax.adapters.adapter import (
    adapter_products,
    apply_adapter,
    apply_layer,
    look_up_adapter,
)
from goat_jax.adapters.context import Context
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.nn.quantized_kernel import QuantizedKernel
from goat_jax.typing import Array, Factors, PyTree


class Factor(nnx.LoRAParam):
    """A trained array of an adapter.

    Trainers that look for Flax's `LoRAParam`, such as tunix's, train and save these arrays alone.
    """


class Head(nnx.Param):
    """A fully trained parameter of a task head or of any other module."""


class Frozen(nnx.Variable):
    """A frozen array of an adapter, such as its scales."""


class Constant(Frozen):
    """A frozen array that a method may replace between two training steps."""


class Sown(nnx.Intermediate):
    """A value that an adapter reports from a forward pass; captured, never stored."""


def sow(module: nnx.Module, name: str, value: object) -> None:
    """Passes a value to `run_model`; does nothing in a plain call, so no trace of it is left."""
    if hasattr(module, "__captures__"):  # set by nnx.capture; `Module.sow` needs it
        module.sow(Sown, name, value)


class Adapter(nnx.Module):
    """The arrays of one adapter, attached to the `Dense` that it changes.

    Args:
        factors: trained arrays by name; in a stack each has a leading layer axis.
        scale: scales of the experts, (E,), or (L, E) in a stack.
        spec: the method; static.
        salt: number folded into the dropout key, fixed for this layer wherever it runs.
        constants: further frozen arrays by name.
    """

    def __init__(
        self,
        factors: Factors,
        scale: Array,
        spec: AdapterSpec,
        salt: int,
        constants: Factors | None = None,
    ):
        self.names, self.constant_names = tuple(factors), tuple(constants or {})
        for name, value in factors.items():
            setattr(self, name, Factor(value))
        for name, value in (constants or {}).items():
            setattr(self, name, Constant(value))
        self.scale = Frozen(scale)
        self.spec = spec
        self.salt = salt
        # On a mesh, pairs of an array's name and its sharding in a product; the last axes count.
        self.in_use: tuple[tuple[str, NamedSharding], ...] = ()

    def factors(self) -> Factors:
        """Returns the trained arrays by name."""
        return {name: getattr(self, name)[...] for name in self.names}

    def constants(self) -> Factors:
        """Returns the frozen arrays by name, except the scale."""
        return {name: getattr(self, name)[...] for name in self.constant_names}

    @property
    def replaces(self) -> bool:
        """True if the adapter's output replaces ``x @ kernel`` instead of being added to it."""
        return self.spec.combine.replaces

    @property
    def completes(self) -> bool:
        """True if `output` should compute the complete output, from ``x @ kernel`` if it helps."""
        return self.replaces or self.spec.combine.scales

    def __call__(
        self, x: Array, kernel: Array, ctx: Context, product: Array | None = None
    ) -> Array:
        delta, report = apply_adapter(x, kernel, *self._settings(ctx), product)
        sow(self, "report", report)
        return delta

    def output(self, x: Array, kernel: Array, ctx: Context, product: Array | None) -> Array:
        """Returns the layer's output before its bias; `product` is ``x @ kernel`` if known."""
        output, report = apply_layer(x, kernel, *self._settings(ctx), product)
        sow(self, "report", report)
        return output

    def products(self, x: Array, kernel: Array, ctx: Context) -> tuple[tuple[Array, Array], ...]:
        """Returns factors whose products add up to what a call returns (`Combine.products`)."""
        products, report = adapter_products(x, kernel, *self._settings(ctx))
        sow(self, "report", report)
        return products

    def look_up(self, ids: Array, table: Array, ctx: Context, product: Array) -> Array:
        """Returns what is added to a table's vectors (..., D) of the indices (...,)."""
        delta, report = look_up_adapter(ids, table, *self._settings(ctx), product)
        sow(self, "report", report)
        return delta

    def _settings(self, ctx: Context) -> tuple[Factors, Array, AdapterSpec, Context]:
        arrays = self._gathered(self.factors() | self.constants())
        return arrays, self.scale[...], self.spec, ctx.fold(self.salt)

    def _gathered(self, arrays: Factors) -> Factors:
        for name, whole in self.in_use:
            axes = whole.spec[-arrays[name].ndim :]  # a scanned layer has no layer axis
            sharding = NamedSharding(whole.mesh, PartitionSpec(*axes))
            arrays[name] = jax.lax.with_sharding_constraint(arrays[name], sharding)
        return arrays


class Adaptable(nnx.Module):
    """A module with a matrix (I, O) that an adapter can be attached to.

    Attributes:
        matrix: the name of the matrix among its parameters.
        vocabulary_axis: the axis of the matrix that is the vocabulary; None if neither is. Modules
            with one are never quantized, and "all-linear" leaves them out.
        adapter: the adapter; None without one.
        quantized: the quantized matrix; None if it is not quantized.
    """

    matrix: ClassVar[str] = "kernel"
    vocabulary_axis: ClassVar[int | None] = None
    kernel: Any
    adapter: Adapter | None
    quantized: QuantizedKernel | None

    def spec_for(self, spec: AdapterSpec) -> tuple[AdapterSpec | None, str]:
        """Returns the spec of an adapter here, or None and the reason why it takes none."""
        return spec, ""

    def weights(self) -> Array:
        """Returns the matrix, (I, O) or (L, I, O), dequantized if needed."""
        if self.quantized is not None:
            return self.quantized.kernel()
        return self.kernel[...]


class Dense(Adaptable):
    """Linear layer ``x @ kernel + bias``, plus the adapter's delta if one is attached.

    A few adapters replace ``x @ kernel`` instead (`Adapter.replaces`). The layer computes in x's
    dtype. The kernel (I, O) may be stored in another dtype, or quantized (`quantized`; then
    `kernel` is None).

    >>> layer = Dense(4, 3, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((2, 4)), Context()).shape
    (2, 3)
    """

    def __init__(
        self, in_features: int, out_features: int, *, use_bias: bool = True, rngs: nnx.Rngs
    ):
        std = in_features**-0.5
        kernel = jax.random.normal(rngs.params(), (in_features, out_features), jnp.float32) * std
        self.kernel = nnx.Param(kernel)  # None once the layer is quantized
        self.quantized: QuantizedKernel | None = nnx.data(None)
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if use_bias else None
        self.adapter: Adapter | None = nnx.data(None)

    def __call__(self, x: Array, ctx: Context) -> Array:
        adapter = self.adapter
        if adapter is not None and adapter.completes:
            known = None if adapter.replaces else self._product(x)
            return self._add_bias(adapter.output(x, self.weights(), ctx, known))
        product = self._product(x)
        y = self._add_bias(product)
        return y if adapter is None else y + adapter(x, self.weights(), ctx, product)

    def _product(self, x: Array) -> Array:
        if self.quantized is not None:
            return self.quantized.dot(x)
        return jnp.dot(x, self.weights().astype(x.dtype))

    def _add_bias(self, y: Array) -> Array:
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(self.bias[...].astype(y.dtype), y.shape)


M = TypeVar("M", bound=nnx.Module)


def split_model(model: M) -> tuple[nnx.GraphDef[M], dict[str, PyTree], PyTree]:
    """Splits a model into (graph, trainable, base): static structure and two disjoint pytrees.

    ``trainable = {"adapter": ..., "head": ...}`` is all that is optimized; ``base`` is everything
    frozen: residual kernels, embeddings, norms, scales. Both keep the model's paths.
    """
    graph, adapter, head, base = nnx.split(model, Factor, Head, ...)
    pure = nnx.to_pure_dict
    return graph, {"adapter": pure(adapter), "head": pure(head)}, pure(base)


def merge_model(graph: nnx.GraphDef[M], trainable: dict[str, PyTree], base: PyTree) -> M:
    """Rebuilds the model from the three values that `split_model` returned."""
    return nnx.merge(graph, trainable["adapter"], trainable["head"], base)


def run_model(model: nnx.Module, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
    """Calls the model and returns its output and everything that its adapters reported.

    The second value is a nested dict of lists of `Report`, see
    `goat_jax.nn.named_modules.reports_by_name`.
    """
    output, sown = nnx.capture(model, Sown)(*args, **kwargs)
    return output, nnx.to_pure_dict(sown)
