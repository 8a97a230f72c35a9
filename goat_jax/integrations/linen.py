"""Adapters on any Flax linen model: a method interceptor adds their deltas.

The model's variables and the trained arrays are two pytrees with the same paths. They are joined
inside the call only, so linen's scans and remats slice and save the trained arrays like kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.module import Interceptor, InterceptorContext

from goat_jax.adapters.adapter import Report, merge_adapter
from goat_jax.adapters.context import EVAL, Context
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError
from goat_jax.injection.targets import ALL_LINEAR, Targets
from goat_jax.integrations.attach import (
    Adapted,
    choose,
    delta_of,
    name_of,
    start_layer,
    sum_of_losses,
)
from goat_jax.integrations.matmul_views import Axes, MatmulView, read_einsum
from goat_jax.nn.named_modules import name_number
from goat_jax.typing import Array, Factors, Key, PyTree

PREFIX = "adapter_"
"""Prefix of the names of adapter arrays, which are stored beside the layer's kernel."""
REPORT = PREFIX + "report"
INTERMEDIATES = "intermediates"


@dataclasses.dataclass(frozen=True, eq=False)
class LinenAdapter:
    """A linen model with adapters; a pure function of two pytrees.

    Attributes:
        model: the user's model.
        spec: the method.
        views: path of a layer -> its view as a matrix product.
        report: summary of which layers were adapted.
    """

    model: nn.Module
    spec: AdapterSpec
    views: Mapping[tuple[str, ...], MatmulView]
    report: Adapted

    def __call__(
        self, frozen: PyTree, factors: PyTree, *args: Any, ctx: Context = EVAL, **kwargs: Any
    ) -> tuple[Any, Array]:
        """Returns the model's output and the weighted sum of the adapters' auxiliary losses.

        Args:
            frozen: the variables that `adapt_linen` returned.
            factors: the trained arrays that `adapt_linen` returned.
            args: positional arguments of ``model.apply`` after the variables.
            ctx: dropout key, padding mask, tasks. Layers of an ``nn.scan`` see the same key.
            kwargs: keyword arguments of ``model.apply``, except `mutable`.

        Raises:
            UserError: an ``nn.scan`` that loses the auxiliary losses of the layers in it.
        """
        variables = {**frozen, "params": _joined(frozen["params"], factors)}
        with nn.intercept_methods(self._interceptor(ctx)):
            y, state = self.model.apply(variables, *args, mutable=[INTERMEDIATES], **kwargs)
        reports = list(_reports(state.get(INTERMEDIATES) or {}))
        if len(reports) < len(self.views) and self.spec.num_experts > 1:
            raise UserError(
                f"{len(self.views) - len(reports)} adapted layers reported nothing: give their "
                "nn.scan variable_axes={'params': 0, 'intermediates': 0}"
            )
        return y, sum_of_losses(reports, self.spec)

    def _interceptor(self, ctx: Context) -> Interceptor:
        def intercept(
            call: Callable[..., Any], args: tuple, kwargs: dict, where: InterceptorContext
        ) -> Any:
            module, y = where.module, call(*args, **kwargs)
            view = self.views.get(module.path) if where.method_name == "__call__" else None
            if view is None:
                return y
            x = args[0] if args else kwargs["inputs"]
            module_params = module.variables["params"]
            arrays = {
                n.removeprefix(PREFIX): a for n, a in module_params.items() if n.startswith(PREFIX)
            }
            scale = arrays.pop("scale")
            salted = ctx.fold(name_number(name_of(module.path)))
            delta, report = delta_of(
                x, module_params["kernel"], view, arrays, scale, self.spec, salted, y
            )
            module.sow(INTERMEDIATES, REPORT, report)
            return y + delta

        return intercept

    def merge(self, frozen: PyTree, factors: PyTree) -> PyTree:
        """Returns the model's variables with the adapters folded into the kernels.

        Args:
            frozen: the variables that `adapt_linen` returned.
            factors: the trained arrays.

        Raises:
            UserError: experts whose weights differ by token or task.
        """
        params = frozen["params"]
        for path, view in self.views.items():
            module_params = _at(params, path)
            arrays = {**module_params, **_at(factors, path)}
            arrays = {n.removeprefix(PREFIX): a for n, a in arrays.items() if n.startswith(PREFIX)}
            scale = arrays.pop("scale")
            kernel = _fold(module_params["kernel"], arrays, scale, view, self.spec)
            kept = {
                name: array for name, array in module_params.items() if not name.startswith(PREFIX)
            }
            params = _with(params, path, {**kept, "kernel": kernel})
        return {**frozen, "params": params}


def adapt_linen(
    model: nn.Module,
    variables: PyTree,
    spec: AdapterSpec,
    *args: Any,
    target_modules: Targets = ALL_LINEAR,
    key: Key,
    **kwargs: Any,
) -> tuple[LinenAdapter, PyTree, PyTree]:
    """Creates adapters for a linen model: ``(apply, frozen, factors)``.

    Args:
        model: a model of any class; `nn.Dense`, `nn.DenseGeneral` and `nn.Einsum` are adapted, also
            in ``nn.scan``, ``nn.vmap`` and ``nn.remat``.
        variables: the model's pretrained variables, which are not changed.
        spec: the method (`goat_jax.method_spec`).
        args: example positional arguments of the model; only their shapes matter.
        target_modules: a regular expression over paths such as "encoder.block_0.mlp.up", a list of
            endings, or "all-linear".
        key: PRNG key; every layer's key is derived from it by name.
        kwargs: example keyword arguments of the model.

    Returns:
        ``apply(frozen, factors, *args) -> (output, aux)``, the variables it is trained on, and
        the trained arrays.

    Raises:
        UserError: a target that matches nothing or cannot be adapted, with the reason.

    >>> from goat_jax import method_spec
    >>> model, x = nn.Dense(16), jnp.ones((3, 8))
    >>> variables = model.init(jax.random.key(0), x)
    >>> spec = method_spec("goat", total_rank=8)
    >>> apply, frozen, factors = adapt_linen(model, variables, spec, x, key=jax.random.key(1))
    >>> y, aux = apply(frozen, factors, x)
    >>> y.shape, sorted(factors)
    ((3, 16), ['adapter_a', 'adapter_b', 'adapter_router'])
    """
    variables = nn.meta.unbox(variables)
    views_or_reasons = _find(model, variables, args, kwargs)
    chosen, left = choose(
        {name_of(path): view for path, view in views_or_reasons.items()}, spec, target_modules
    )
    params, factors, views = variables["params"], {}, {}
    for path in views_or_reasons:
        name = name_of(path)
        if name not in chosen:
            continue
        module_params = _at(params, path)
        start, kernel = start_layer(module_params["kernel"], chosen[name], spec, key, name)
        fixed = {"scale": start.scale, **start.constants}
        frozen = {PREFIX + name: array for name, array in fixed.items()}
        params = _with(params, path, {**module_params, "kernel": kernel, **frozen})
        trained = {PREFIX + name: array for name, array in start.factors.items()}
        factors = _with(factors, path, trained)
        views[path] = chosen[name]
    size = sum(leaf.size for leaf in jax.tree.leaves(factors))
    report = Adapted(tuple(name_of(path) for path in views), left, size)
    return LinenAdapter(model, spec, views, report), {**variables, "params": params}, factors


def _find(
    model: nn.Module, variables: PyTree, args: tuple, kwargs: dict
) -> dict[tuple[str, ...], MatmulView | str]:
    """Finds every module with a parameter of two axes or more, in the order of the calls."""
    views: dict[tuple[str, ...], MatmulView | str] = {}

    def look(
        call: Callable[..., Any], arguments: tuple, named: dict, where: InterceptorContext
    ) -> Any:
        y, module = call(*arguments, **named), where.module
        module_params = module.variables.get("params", {})
        arrays = [value for value in module_params.values() if not isinstance(value, Mapping)]
        if where.method_name == "__call__" and any(jnp.ndim(array) >= 2 for array in arrays):
            x = arguments[0] if arguments else named.get("inputs")
            views[module.path] = _view(module, module_params, x)
        return y

    with nn.intercept_methods(look):
        jax.eval_shape(lambda: model.apply(variables, *args, mutable=[INTERMEDIATES], **kwargs))
    return views


def _view(module: object, params: Mapping[str, Any], x: object) -> MatmulView | str:
    """Returns a module's view as a matrix product, or the reason why it has none."""
    for kind, view in VIEWS.items():
        if isinstance(module, kind):
            try:
                return view(module, params["kernel"].shape, x)
            except UserError as error:
                return str(error)
    known = ", ".join(f"nn.{kind.__name__}" for kind in VIEWS)
    return f"{type(module).__name__} is none of {known}"


def _dense(module: nn.Dense, shape: tuple[int, ...], x: object) -> MatmulView:
    return Axes(shape[:1], shape[1:])


def _general(module: nn.DenseGeneral, shape: tuple[int, ...], x: object) -> MatmulView:
    if module.batch_dims:
        raise UserError(f"a separate kernel along batch_dims {module.batch_dims}")
    axes = (module.axis,) if isinstance(module.axis, int) else tuple(module.axis)
    return Axes(shape[: len(axes)], shape[len(axes) :], axes)


def _einsum(module: nn.Einsum, shape: tuple[int, ...], x: object) -> MatmulView:
    if module.einsum_str is None:
        raise UserError(
            "its einsum equation is given at call time, so its kernel axes are unknown before"
        )
    return read_einsum(module.einsum_str, shape)


VIEWS: dict[type, Callable[[Any, tuple[int, ...], object], MatmulView]] = {
    nn.Dense: _dense,
    nn.DenseGeneral: _general,
    nn.Einsum: _einsum,
}
"""Class of a layer -> function from (layer, kernel shape, input) to its view."""


def _fold(
    kernel: Array, arrays: Factors, scale: Array, view: MatmulView, spec: AdapterSpec
) -> Array:
    def fold(kernel: Array, arrays: Factors, scale: Array) -> Array:
        return view.kernel(merge_adapter(view.matrix(kernel), arrays, scale, spec))

    for _ in range(kernel.ndim - len(view.kernel_shape)):
        fold = jax.vmap(fold)
    return fold(kernel, arrays, scale)


def _reports(tree: Mapping[str, Any]) -> Iterator[Report]:
    """Yields all reports of a call; a module that is called several times has several."""
    for name, value in tree.items():
        if name == REPORT:
            yield from value
        elif isinstance(value, Mapping):
            yield from _reports(value)


def _joined(params: Mapping, factors: Mapping) -> dict:
    """Merges the two trees into one."""
    return {
        **params,
        **{
            name: _joined(params[name], value) if name in params else value
            for name, value in factors.items()
        },
    }


def _at(tree: PyTree, path: tuple[str, ...]) -> PyTree:
    for part in path:
        tree = tree[part]
    return tree


def _with(tree: Mapping, path: tuple[str, ...], value: dict) -> dict:
    """Returns a copy of a nested dict with another value at a path."""
    if not path:
        return value
    return {**tree, path[0]: _with(tree.get(path[0], {}), path[1:], value)}
