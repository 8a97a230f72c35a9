"""Parts shared by linen and NNX: choice of layers, their initialization, the delta of one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from goat_jax.adapters.adapter import AdapterInit, Report, apply_adapter, init_adapter
from goat_jax.adapters.context import Context
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError
from goat_jax.injection.targets import ALL_LINEAR, Targets, check_all_match, matches
from goat_jax.integrations.matmul_views import MatmulView
from goat_jax.nn.named_modules import name_number
from goat_jax.typing import Array, Factors, Key

ROOT = "(model)"
"""Name of a model among its modules; no attribute can have this name."""


def name_of(path: Sequence[Any]) -> str:
    """Returns the name of the module at a path.

    >>> name_of(["blocks", 0, "query"]), name_of([])
    ('blocks.0.query', '(model)')
    """
    return ".".join(map(str, path)) or ROOT


@dataclasses.dataclass(frozen=True)
class Adapted:
    """Summary of which layers of a model were adapted.

    Attributes:
        modules: names of the modules that got an adapter; the model itself is `ROOT`.
        left: name of a module with a kernel that got no adapter -> the reason.
        parameters: total number of trained parameters.
    """

    modules: tuple[str, ...]
    left: Mapping[str, str]
    parameters: int


def choose(
    views_or_reasons: Mapping[str, MatmulView | str], spec: AdapterSpec, target_modules: Targets
) -> tuple[dict[str, MatmulView], dict[str, str]]:
    """Selects the modules to adapt, and gives the reason for each of the others.

    Args:
        views_or_reasons: module name -> its view as a matrix product, or why it has none.
        spec: the method.
        target_modules: the modules to adapt.

    Returns:
        The views of the modules to adapt, and module name -> reason for the others.

    Raises:
        UserError: a target that matches nothing or cannot be adapted, a method that does not fit.
    """
    if spec.combine.replaces:
        raise UserError(
            f"{type(spec.combine).__name__} computes the complete layer, which only goat_jax.Dense "
            "supports: choose a method that adds to the layer"
        )
    if spec.whole_model:
        raise UserError(
            "whole_model is not available for your own model, where you choose what is trained: "
            "set whole_model=false"
        )
    views = {name: view for name, view in views_or_reasons.items() if not isinstance(view, str)}
    left = {name: reason for name, reason in views_or_reasons.items() if isinstance(reason, str)}
    if target_modules != ALL_LINEAR:
        check_all_match(
            list(views_or_reasons), "target", target_modules, what="module with a kernel"
        )
        targeted = [name for name in left if matches(name, target_modules)]
        if targeted:
            raise UserError(f"{targeted[0]} cannot be adapted: {left[targeted[0]]}")
    chosen = {}
    for name, view in views.items():
        smaller = min(jax.eval_shape(view.matrix, _blank(view)).shape)
        if not matches(name, target_modules):
            left[name] = "not a target"
        elif spec.total_rank > smaller:
            left[name] = f"total rank {spec.total_rank} is above its smaller side {smaller}"
        else:
            chosen[name] = view
    if not chosen:
        reasons = "; ".join(sorted({f"{name}: {reason}" for name, reason in left.items()}))
        raise UserError(f"no module could be adapted: {reasons or 'no module has a kernel'}")
    return chosen, left


def _blank(view: MatmulView) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(view.kernel_shape, jnp.float32)


def start_layer(
    kernel: Array, view: MatmulView, spec: AdapterSpec, key: Key, name: str
) -> tuple[AdapterInit, Array]:
    """Initializes an adapter on a layer's kernel.

    Leading axes that the view does not have belong to stacked layers; each layer is initialized
    separately.

    Args:
        kernel: the layer's kernel, in the layer's shape.
        view: the layer as a matrix product.
        spec: the method.
        key: PRNG key; the layer's key is derived from it by name.
        name: the layer's name.

    Returns:
        The initialized adapter, and the kernel to train on, in the layer's shape.
    """
    lead = kernel.shape[: kernel.ndim - len(view.kernel_shape)]

    def start(kernel: Array, key: Key) -> tuple[AdapterInit, Array]:
        initialized = init_adapter(view.matrix(kernel), spec, key)
        return initialized, view.kernel(initialized.kernel)

    keys = jax.random.fold_in(key, name_number(name))
    run: Callable = start
    if lead:
        keys = jax.random.split(keys, lead)
    for _ in lead:
        run = jax.vmap(run)
    return jax.jit(run)(kernel, keys)


def delta_of(
    x: Array,
    kernel: Array,
    view: MatmulView,
    arrays: Factors,
    scale: Array,
    spec: AdapterSpec,
    ctx: Context,
    like: Array,
) -> tuple[Array, Report]:
    """Computes an adapter's addition to a layer's output `like`, and its report."""
    tokens = view.tokens(x).astype(like.dtype)
    delta, report = apply_adapter(tokens, view.matrix(kernel), arrays, scale, spec, ctx)
    return view.output(delta).astype(like.dtype), report


def sum_of_losses(reports: Sequence[Report], spec: AdapterSpec) -> Array:
    """Returns the weighted sum of the adapters' auxiliary losses."""
    losses = [report.aux_loss.sum() for report in reports]
    return spec.aux_weight * sum(losses, jnp.zeros((), jnp.float32))
