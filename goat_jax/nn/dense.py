"""The seam: a `Dense` that an adapter can be attached to, and the variable types that tell the
trained pytrees from the frozen one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.adapter import apply_adapter
from goat_jax.adapters.context import Context
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.nn.quantized_kernel import QuantizedKernel
from goat_jax.typing import Array, Factors, PyTree


class Factor(nnx.Param):
    """A trained array of an adapter."""


class Head(nnx.Param):
    """A parameter of a task head (or of any other module) that is trained in full."""


class Frozen(nnx.Variable):
    """A constant of an adapter, such as its scales."""


class Constant(Frozen):
    """A frozen array that a method may exchange between two steps."""


class Sown(nnx.Intermediate):
    """What adapters report of a forward pass; captured, never stored."""


def sow(module: nnx.Module, name: str, value: Any) -> None:
    """Hands a value to `run_model`; does nothing in a plain call, which so leaves no trace."""
    if hasattr(module, "__captures__"):  # set by nnx.capture, which `Module.sow` asks for
        module.sow(Sown, name, value)


class Adapter(nnx.Module):
    """The arrays of one adapter, hanging at the `Dense` that it changes.

    Args:
        factors: trained arrays by name; in a stack each has a leading layer axis.
        scale: (E,), or (L, E) in a stack.
        spec: the method; static.
        salt: a number of its own for the dropout key, the same wherever the layer runs.
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

    def factors(self) -> Factors:
        """The trained arrays by name."""
        return {name: getattr(self, name)[...] for name in self.names}

    def constants(self) -> Factors:
        """The frozen arrays by name, but for the scale."""
        return {name: getattr(self, name)[...] for name in self.constant_names}

    @property
    def replaces(self) -> bool:
        """Whether it stands in place of ``x @ kernel``."""
        return self.spec.combine.replaces

    def __call__(self, x: Array, kernel: Array, ctx: Context) -> Array:
        scale = self.scale[...]
        arrays = self.factors() | self.constants()
        delta, report = apply_adapter(x, kernel, arrays, scale, self.spec, ctx.fold(self.salt))
        sow(self, "report", report)
        return delta


class Dense(nnx.Module):
    """``x @ kernel + bias``, plus the adapter's delta if one is attached.

    A few adapters stand in place of ``x @ kernel`` instead (`Adapter.replaces`). Computes in x's
    dtype; the kernel (I, O) may be stored in another one, or in few bits (`quantized`; then
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
        self.kernel = nnx.Param(kernel)  # None once it is quantized
        self.quantized: QuantizedKernel | None = nnx.data(None)
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if use_bias else None
        self.adapter: Adapter | None = nnx.data(None)

    def __call__(self, x: Array, ctx: Context) -> Array:
        adapter = self.adapter
        if adapter is not None and adapter.replaces:
            return self._add_bias(adapter(x, self.weights(), ctx))
        y = self._add_bias(self._product(x))
        return y if adapter is None else y + adapter(x, self.weights(), ctx)

    def weights(self) -> Array:
        """The kernel as numbers, (I, O) or (L, I, O), however it is stored."""
        if self.quantized is not None:
            return self.quantized.kernel()
        return self.kernel[...]

    def _product(self, x: Array) -> Array:
        if self.quantized is not None:
            return self.quantized.dot(x)
        return jnp.dot(x, self.weights().astype(x.dtype))

    def _add_bias(self, y: Array) -> Array:
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(self.bias[...].astype(y.dtype), y.shape)


def split_model(model: nnx.Module) -> tuple[Any, dict[str, PyTree], PyTree]:
    """The model as (graph, trainable, base): static structure and two pytrees with the same paths.

    ``trainable = {"adapter": ..., "head": ...}`` is all that is optimised; ``base`` is everything
    frozen: residual kernels, embeddings, norms, scales.
    """
    graph, adapter, head, base = nnx.split(model, Factor, Head, ...)
    pure = nnx.to_pure_dict
    return graph, {"adapter": pure(adapter), "head": pure(head)}, pure(base)


def merge_model(graph: Any, trainable: dict[str, PyTree], base: PyTree) -> Any:
    """The model again, from the three things `split_model` gave."""
    return nnx.merge(graph, trainable["adapter"], trainable["head"], base)


def run_model(model: nnx.Module, *args: Any, **kwargs: Any) -> tuple[Any, PyTree]:
    """Calls the model and returns its output and all that its adapters reported.

    The second value is a nested dict of lists of `Report`, see
    `goat_jax.nn.named_modules.reports_by_name`.
    """
    output, sown = nnx.capture(model, Sown)(*args, **kwargs)
    return output, nnx.to_pure_dict(sown)
