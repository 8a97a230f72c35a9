"""Adapters on any Flax NNX model: adapted layers change class, in place.

Parameters keep their paths, so checkpoints of the model still fit. The trained arrays are of the
variable type `Factor`: ``nnx.Optimizer(model, tx, wrt=Factor)``, ``nnx.DiffState(0, Factor)``.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeGuard

import jax
import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.adapter import Report, merge_adapter
from goat_jax.adapters.context import EVAL, Context
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError
from goat_jax.injection.targets import ALL_LINEAR, Targets
from goat_jax.integrations.attach import (
    Adapted,
    choose,
    name_of,
    start_layer,
    sum_of_losses,
)
from goat_jax.integrations.matmul_views import Axes, MatmulView, read_einsum
from goat_jax.nn.dense import Adapter, Factor, Sown
from goat_jax.nn.named_modules import name_number
from goat_jax.typing import Array, Factors, Key


@dataclasses.dataclass(frozen=True)
class LinearLayer:
    """Rule by which the layers of a class are adapted.

    Attributes:
        view: function from a layer to its view as a matrix product: `Axes` or `read_einsum`.
        kernel: name of the layer's parameter that holds the kernel.
    """

    view: Callable[[Any], MatmulView]
    kernel: str = "kernel"


class _AdaptedLayer(Protocol):
    """A layer of a class of `_adapted_class`."""

    kernel_name: str
    adapter: Adapter
    view: MatmulView


_CONTEXT = contextvars.ContextVar("goat_jax context of a call", default=EVAL)
"""Context of the current `run_adapted` call; the model's layers cannot pass it to the adapters."""


def adapt_nnx(
    model: nnx.Module,
    spec: AdapterSpec,
    target_modules: Targets = ALL_LINEAR,
    *,
    key: Key,
    layers: Mapping[type, LinearLayer] = MappingProxyType({}),
) -> Adapted:
    """Attaches an adapter to every targeted layer of an NNX model, in place.

    Args:
        model: a model of any class; `nnx.Linear`, `nnx.LinearGeneral`, `nnx.Einsum` and their
            subclasses are adapted, also stacked ones (`nnx.vmap`, `nnx.scan`).
        spec: the method (`goat_jax.method_spec`).
        target_modules: a regular expression over paths such as "blocks.0.attention.query", a list
            of endings, or "all-linear".
        key: PRNG key; every layer's key is derived from it by name.
        layers: further classes of layers and how to adapt them.

    Raises:
        UserError: a target that matches nothing or cannot be adapted, with the reason.

    >>> from goat_jax import method_spec
    >>> model = nnx.Sequential(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.relu)
    >>> adapt_nnx(model, method_spec("lora", total_rank=2), key=jax.random.key(0)).modules
    ('layers.0',)
    >>> model(jnp.ones((3, 8))).shape
    (3, 16)
    """
    modules = {name_of(path): module for path, module in nnx.iter_modules(model)}
    if any(isinstance(module, Adapter) for module in modules.values()):
        raise UserError("the model has adapters already: start from a new one")
    kinds = {**layers, **LAYERS}
    views_or_reasons = {
        name: _view(module, kinds) for name, module in modules.items() if _has_kernel(module)
    }
    chosen, left = choose(views_or_reasons, spec, target_modules)
    for name, view in chosen.items():
        module: Any = modules[name]
        kind = _kind_of(module, kinds)
        kernel = getattr(module, kind.kernel)
        start, edited = start_layer(kernel[...], view, spec, key, name)
        kernel.set_value(edited)
        salt = name_number(name)
        module.adapter = Adapter(start.factors, start.scale, spec, salt, start.constants)
        module.view = view
        module.__class__ = _adapted_class(type(module), kind.kernel)
    trained = jax.tree.leaves(nnx.state(model, Factor))
    return Adapted(tuple(chosen), left, sum(leaf.size for leaf in trained))


def run_adapted(
    model: nnx.Module, *args: Any, ctx: Context = EVAL, **kwargs: Any
) -> tuple[Any, Array]:
    """Returns the model's output and the weighted sum of its adapters' auxiliary losses.

    A plain call ``model(...)`` returns the output alone, without dropout.

    Args:
        model: a model that `adapt_nnx` has adapted.
        args: positional arguments of the model.
        ctx: dropout key, padding mask, tasks. Layers that the model scans see the same key.
        kwargs: keyword arguments of the model.

    >>> from goat_jax import method_spec
    >>> model = nnx.Sequential(nnx.Linear(8, 16, rngs=nnx.Rngs(0)))
    >>> _ = adapt_nnx(model, method_spec("goat", total_rank=8), key=jax.random.key(0))
    >>> y, aux = run_adapted(model, jnp.ones((3, 8)))
    >>> y.shape, aux.shape
    ((3, 16), ())
    """
    token = _CONTEXT.set(ctx)
    try:
        y, sown = nnx.capture(model, Sown)(*args, **kwargs)
    finally:
        _CONTEXT.reset(token)
    is_report = lambda value: isinstance(value, Report)  # noqa: E731
    reports = jax.tree.leaves(nnx.to_pure_dict(sown), is_leaf=is_report)
    modules = (module for _, module in nnx.iter_modules(model))
    spec = next(module.adapter.spec for module in modules if _is_adapted(module))
    return y, sum_of_losses([r for r in reports if is_report(r)], spec)


def merge_nnx(model: nnx.Module) -> None:
    """Folds every adapter into its kernel, in place, and restores the layers' original classes.

    Raises:
        UserError: experts whose weights differ by token or task, a kernel that qwix has quantized.
    """
    for _, module in list(nnx.iter_modules(model)):
        if _is_adapted(module):
            kernel = _kernel(module)
            if not isinstance(kernel, nnx.Param):
                raise UserError(f"{module.kernel_name} is quantized: merge before quantize_model")
            kernel.set_value(_folded(module))
            module.__class__ = getattr(type(module), PLAIN)
            del module.adapter, module.view


def _kernel(module: _AdaptedLayer) -> nnx.Param[Array]:
    return getattr(module, module.kernel_name)


def _kernel_array(module: _AdaptedLayer) -> Array:
    """Returns the kernel, also if qwix has put codes in its place; most methods never read it."""
    kernel = _kernel(module)[...]
    if isinstance(kernel, jax.Array):
        return kernel
    import qwix

    return qwix.dequantize(kernel.array)


def _folded(module: _AdaptedLayer) -> Array:
    adapter, view = module.adapter, module.view

    def fold(kernel: Array, arrays: Factors, scale: Array) -> Array:
        return view.kernel(merge_adapter(view.matrix(kernel), arrays, scale, adapter.spec))

    kernel = _kernel(module)[...]
    for _ in range(kernel.ndim - len(view.kernel_shape)):
        fold = jax.vmap(fold)
    return fold(kernel, adapter.factors() | adapter.constants(), adapter.scale[...])


@functools.cache
def _adapted_class(kind: type, kernel_name: str) -> type:
    """Returns a subclass whose call adds the adapter's delta; both classes have the same layout."""

    def call(self: _AdaptedLayer, x: Array, *args: Any, **kwargs: Any) -> Array:
        y = kind.__call__(self, x, *args, **kwargs)
        tokens = self.view.tokens(x).astype(y.dtype)
        delta = self.adapter(tokens, self.view.matrix(_kernel_array(self)), _CONTEXT.get())
        return y + self.view.output(delta).astype(y.dtype)

    attributes = {
        "__module__": __name__,
        "__call__": call,
        "kernel_name": kernel_name,
        PLAIN: kind,
    }
    return type(f"Adapted{kind.__name__}", (kind,), attributes)


PLAIN = "class_without_adapter"
"""Attribute of an adapted class that holds the layer's original class."""


def _is_adapted(module: object) -> TypeGuard[_AdaptedLayer]:
    return hasattr(type(module), PLAIN)


def _has_kernel(module: object) -> bool:
    """True if a module directly holds a parameter of two axes or more."""
    values = (value for value in vars(module).values() if isinstance(value, nnx.Param))
    return any(jnp.ndim(value[...]) >= 2 for value in values)


def _kind_of(module: object, kinds: Mapping[type, LinearLayer]) -> LinearLayer:
    return next(kinds[kind] for kind in kinds if isinstance(module, kind))


def _view(module: object, kinds: Mapping[type, LinearLayer]) -> MatmulView | str:
    """Returns a module's view as a matrix product, or the reason why it has none."""
    if not isinstance(module, tuple(kinds)):
        return f"{type(module).__name__} is none of {', '.join(map(_class_name, kinds))}"
    kind = _kind_of(module, kinds)
    kernel = getattr(module, kind.kernel, None)
    if not isinstance(kernel, nnx.Param) or not hasattr(kernel[...], "shape"):
        return f"{type(module).__name__} has no array {kind.kernel}"
    try:
        view = kind.view(module)
    except UserError as error:
        return str(error)
    shape = kernel[...].shape
    if shape[len(shape) - len(view.kernel_shape) :] != view.kernel_shape:
        return (
            f"its {kind.kernel} has the shape {shape}, a single layer's {view.kernel_shape}: the "
            "axis of stacked layers has to come first"
        )
    return view


def _class_name(kind: type) -> str:
    return f"nnx.{kind.__name__}" if kind in LAYERS else kind.__name__


def _linear(module: nnx.Linear) -> MatmulView:
    return Axes((module.in_features,), (module.out_features,))


def _general(module: nnx.LinearGeneral) -> MatmulView:
    if module.batch_axis:
        raise UserError(f"a separate kernel along batch_axis {dict(module.batch_axis)}")
    return Axes(tuple(module.in_features), tuple(module.out_features), tuple(module.axis))


def _einsum(module: nnx.Einsum) -> MatmulView:
    if module.einsum_str is None:
        raise UserError(
            "its einsum equation is given at call time, so its kernel axes are unknown before"
        )
    return read_einsum(module.einsum_str, tuple(module.kernel_shape))


LAYERS: dict[type, LinearLayer] = {
    nnx.Linear: LinearLayer(_linear),
    nnx.LinearGeneral: LinearLayer(_general),
    nnx.Einsum: LinearLayer(_einsum),
}
"""Flax's classes of layers that are adapted."""
