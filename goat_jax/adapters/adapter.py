"""Initializes, applies and merges an adapter: pure functions of arrays, for every method."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from goat_jax.adapters.context import Context
from goat_jax.adapters.protocols import (
    ChoosesTriplets,
    CombineInputs,
    DropsTriplets,
    InitInputs,
    RouterInputs,
)
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core.aux_losses import expert_load, mean_weights, router_entropy
from goat_jax.core.column_norms import SUM
from goat_jax.core.dispatch import HIDDEN
from goat_jax.core.dropout import mask_bits, masked
from goat_jax.core.gate_fit import gate_equations
from goat_jax.core.products import narrow_products
from goat_jax.core.residual import delta_weight
from goat_jax.core.routers import CHOICE, Routing
from goat_jax.core.svd import Svd
from goat_jax.errors import UserError
from goat_jax.typing import Array, Factors, Key


class AdapterInit(NamedTuple):
    """Arrays of a newly initialized adapter, made by `init_adapter` from a pretrained kernel.

    Attributes:
        kernel: the frozen kernel (I, O): the pretrained one after the method's kernel edit.
        factors: the trained arrays by name, float32.
        scale: the experts' scales (E,), float32, frozen.
        constants: further frozen arrays by name; few methods have any.
    """

    kernel: Array
    factors: Factors
    scale: Array
    constants: Factors


class Report(NamedTuple):
    """Diagnostics and auxiliary loss of one adapter in a forward pass.

    Attributes:
        aux_loss: the auxiliary loss, a scalar, before `AdapterSpec.aux_weight`.
        load: the fraction of real tokens that select each expert, (E,); sums to K.
        entropy: mean entropy of the router's probabilities over the real tokens, in nats, a scalar.
        weights: the experts' weights for every token, (..., E); None unless `Context.per_token`.
        mean_weights: the mean of `weights` over the real tokens, (E,); None unless
            `Context.per_token`.
        gate_equations: the equations of the best constant weights, (E, 1 + E); None unless
            `Context.fit_gates`.
    """

    aux_loss: Array
    load: Array
    entropy: Array
    weights: Array | None = None
    mean_weights: Array | None = None
    gate_equations: Array | None = None


def init_adapter(
    kernel: Array,
    spec: AdapterSpec,
    key: Key,
    gradient: Array | None = None,
    segments: Svd | None = None,
) -> AdapterInit:
    """Initializes an adapter for a pretrained kernel.

    Args:
        kernel: the pretrained kernel (I, O), of any float dtype.
        spec: the method and its sizes.
        key: PRNG key of everything random in the initialization.
        gradient: the gradient of the loss with respect to the kernel, (I, O); needed only by
            initializers that start from it.
        segments: the kernel's singular triplets at `segment_index`, if already computed; None
            computes them here.

    >>> from goat_jax.adapters.methods import METHODS
    >>> kernel = jax.random.normal(jax.random.key(0), (16, 8))
    >>> start = init_adapter(kernel, METHODS["goat"].spec, jax.random.key(1))
    >>> {name: array.shape for name, array in start.factors.items()}
    {'a': (8, 16, 1), 'b': (8, 1, 8), 'router': (16, 8)}
    """
    segment_key, factor_key, router_key = jax.random.split(key, 3)
    dropped, dropper = None, _chooser(spec)
    # Triplets passed in belong to the part that selects them, here the kernel edit.
    if isinstance(dropper, DropsTriplets):
        segments, dropped = None, segments
    if segments is None:
        segments = spec.initializer.decompose(kernel, spec, segment_key)
    scale = spec.scale(kernel.shape[0], segments, spec)
    inputs = InitInputs(kernel, segments, scale, gradient)
    factors = spec.initializer.factors(inputs, spec, factor_key)
    if isinstance(dropper, DropsTriplets) and dropped is not None:
        frozen = dropper.without(kernel, dropped)
    else:
        frozen = spec.kernel_edit(kernel, factors, scale, spec)
    # After the kernel edit: extras such as column magnitudes depend on the frozen kernel.
    extra_key = jax.random.fold_in(router_key, 1)
    extras = spec.combine.extras(frozen, factors, scale, spec, extra_key)
    routed = spec.router.init(kernel.shape[0], spec, router_key)
    return AdapterInit(frozen, factors | extras.trained | routed, scale, extras.constants)


def segment_index(h: int, spec: AdapterSpec, key: Key) -> Array | None:
    """Returns the indices of the singular triplets that `init_adapter` needs with this key.

    They are the triplets that the experts start from, or those that the kernel edit drops.

    Args:
        h: the number of singular values of the kernel.
        spec: the method and its sizes.
        key: the key that `init_adapter` gets.

    Returns:
        The indices (E, R), or None if no part of the method uses the SVD.
    """
    chooser = _chooser(spec)
    return None if chooser is None else chooser.triplets(h, spec, jax.random.split(key, 3)[0])


def needs_svd(spec: AdapterSpec) -> bool:
    """Returns whether a part of the method uses the kernels' singular triplets."""
    return _chooser(spec) is not None


def _chooser(spec: AdapterSpec) -> ChoosesTriplets | None:
    """Returns the part that selects singular triplets, or None if no part does."""
    parts = (spec.initializer, spec.kernel_edit)
    return next((part for part in parts if isinstance(part, ChoosesTriplets)), None)


def apply_adapter(
    x: Array,
    kernel: Array,
    arrays: Factors,
    scale: Array,
    spec: AdapterSpec,
    ctx: Context,
    product: Array | None = None,
) -> tuple[Array, Report]:
    """Computes what the adapter adds to ``x @ kernel``, (..., O) in x's dtype, and its report.

    For the few methods whose ``spec.combine.replaces`` is true, the result is the layer's complete
    output instead.

    Args:
        x: tokens (..., I).
        kernel: the frozen kernel (I, O); most methods do not use it.
        arrays: factors, and constants if the method has any.
        scale: the experts' scales (E,).
        spec: the method and its sizes.
        ctx: dropout key (None in eval mode), padding mask, tasks.
        product: ``x @ kernel`` if it is computed already, so that no method computes it twice.
    """
    return _applied(spec.combine, x, kernel, arrays, scale, spec, ctx, product)


def adapter_products(
    x: Array, kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec, ctx: Context
) -> tuple[tuple[tuple[Array, Array], ...], Report]:
    """Returns what `apply_adapter` returns, the first value as factors (`Combine.products`)."""
    return _applied(spec.combine.products, x, kernel, arrays, scale, spec, ctx, None)


def look_up_adapter(
    ids: Array,
    table: Array,
    arrays: Factors,
    scale: Array,
    spec: AdapterSpec,
    ctx: Context,
    product: Array,
) -> tuple[Array, Report]:
    """Computes what the adapter of a table adds to its vectors, and its report.

    An index stands for a one-hot x, whose products are rows of the matrices. As in PEFT, there is
    no dropout.

    Args:
        ids: indices (...,).
        table: the frozen table (V, D).
        arrays: factors, and constants if the method has any.
        scale: the experts' scales (E,).
        spec: the method and its sizes, with a combine that `looks_up`.
        ctx: padding mask, tasks.
        product: the table's vectors (..., D).
    """
    inner, router = spec.combine.inner(arrays), spec.router.matrix(arrays)
    assert spec.combine.looks_up and inner is not None
    x = product[..., :0]  # nothing is left to multiply
    logits = None if router is None else jnp.take(router, ids, axis=0)
    routing = spec.router(RouterInputs(x, arrays, spec, ctx, logits))
    hidden = checkpoint_name(jnp.take(inner, ids, axis=0), HIDDEN)
    inputs = CombineInputs(x, table, arrays, scale, routing, hidden, product)
    report = _report(routing, arrays, spec, ctx)
    if ctx.fit_gates:
        a = jnp.moveaxis(spec.combine.pairs(arrays)[0], 0, 1)
        report = _with_equations(report, jnp.take(a, ids, axis=0), inputs, spec, ctx)
    return spec.combine(inputs), report


def _applied(
    combine: Callable[[CombineInputs], Any],
    x: Array,
    kernel: Array,
    arrays: Factors,
    scale: Array,
    spec: AdapterSpec,
    ctx: Context,
    product: Array | None,
) -> tuple[Any, Report]:
    run: Callable[..., tuple[Any, Routing]] = partial(_apply, combine)
    bits = None
    if _drops(spec, ctx):
        assert ctx.key is not None
        bits = mask_bits(x, spec.dropout, ctx.key, spec.combine.dropout_copies(spec))
        # The backward pass makes the dropped copy again from x, which is kept anyway, and its mask.
        run = jax.checkpoint(run, policy=KEPT, static_argnums=5)
    delta, routing = run(x, bits, kernel, arrays, scale, spec, ctx, product)
    report = _report(routing, arrays, spec, ctx)
    if ctx.fit_gates:
        inputs = CombineInputs(x, kernel, arrays, scale, routing, None, None)
        a = spec.combine.pairs(arrays)[0]
        hidden = jnp.einsum("...i,eir->...er", x.astype(jnp.float32), a)
        report = _with_equations(report, hidden, inputs, spec, ctx)
    return delta, report


def _drops(spec: AdapterSpec, ctx: Context) -> bool:
    """Returns whether the adapter reads another input than the frozen kernel."""
    return spec.dropout > 0 and ctx.key is not None


def _with_equations(
    report: Report, hidden: Array, inputs: CombineInputs, spec: AdapterSpec, ctx: Context
) -> Report:
    """Adds the equations of the best constant weights to a report.

    Args:
        report: the report.
        hidden: the tokens in rank space, (..., E, R), without the experts' scales.
        inputs: what the combine reads.
        spec: the method, of sums over experts.
        ctx: the padding mask.
    """
    scaled = hidden * jnp.broadcast_to(inputs.scale[:, None], hidden.shape)
    b = spec.combine.pairs(inputs.arrays)[1]
    equations = gate_equations(scaled, b, inputs.routing.weights, ctx.mask)
    return report._replace(gate_equations=equations)


def _report(routing: Routing, arrays: Factors, spec: AdapterSpec, ctx: Context) -> Report:
    return Report(
        aux_loss=spec.aux_loss(routing, arrays, ctx),
        load=expert_load(routing, ctx.mask),
        entropy=router_entropy(routing, ctx.mask),
        weights=routing.weights if ctx.per_token else None,
        mean_weights=mean_weights(routing, ctx.mask) if ctx.per_token else None,
    )


KEPT = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_saveable,
    jax.checkpoint_policies.save_only_these_names(HIDDEN, CHOICE, SUM),
)
"""Policy by which an adapter with dropout repeats neither products nor the choice of experts."""


def _apply(
    combine: Callable[[CombineInputs], Any],
    x: Array,
    bits: Array | None,
    kernel: Array,
    arrays: Factors,
    scale: Array,
    spec: AdapterSpec,
    ctx: Context,
    product: Array | None,
) -> tuple[Any, Routing]:
    """Computes the addition of `apply_adapter`, and the routing; `bits` is the dropout mask."""
    router, hidden, logits = spec.router.matrix(arrays), None, None
    # Without dropout, adapter and router multiply the same x, so both products are made at once.
    if router is not None and bits is None:
        inner = spec.combine.inner(arrays)
        if inner is not None:
            hidden, logits = checkpoint_name(narrow_products(x, inner, router), HIDDEN)
    routing = spec.router(RouterInputs(x, arrays, spec, ctx, logits))
    if bits is not None:
        x, product = masked(x, bits, spec.dropout), None
    inputs = CombineInputs(x, kernel, arrays, scale, routing, hidden, product)
    return combine(inputs), routing


def apply_layer(
    x: Array,
    kernel: Array,
    arrays: Factors,
    scale: Array,
    spec: AdapterSpec,
    ctx: Context,
    product: Array | None = None,
) -> tuple[Array, Report]:
    """Computes the output (..., O) of frozen kernel plus adapter, and the adapter's report.

    The arguments are those of `apply_adapter`.
    """
    if spec.combine.replaces:
        return apply_adapter(x, kernel, arrays, scale, spec, ctx)
    product = jnp.dot(x, kernel.astype(x.dtype)) if product is None else product
    if spec.combine.scales and not _drops(spec, ctx):
        return _applied(spec.combine.output, x, kernel, arrays, scale, spec, ctx, product)
    delta, report = apply_adapter(x, kernel, arrays, scale, spec, ctx, product)
    return product + delta, report


def merge_adapter(kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec) -> Array:
    """Returns one kernel (I, O) equivalent to the frozen kernel and the adapter together.

    Raises:
        UserError: the experts' weights differ by token or task, so that no such kernel exists.
    """
    if not spec.router.mergeable:
        raise UserError(
            f"{type(spec.router).__name__} weights the experts {spec.router.varies}, so no single "
            "kernel equals this adapter: keep it as an adapter"
        )
    return spec.combine.merge(kernel, arrays, scale, spec)


def mean_kernel(kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec) -> Array:
    """Returns the kernel (I, O) that frozen kernel and adapter form together on average.

    It is exact for methods that merge. For the others every expert has the weight that a router
    without preference gives it (paper, lemma 3.3).

    Args:
        kernel: the frozen kernel (I, O).
        arrays: factors, and constants if the method has any.
        scale: the experts' scales (E,).
        spec: the method and its sizes.

    >>> from goat_jax.adapters.methods import METHODS
    >>> kernel, spec = jax.random.normal(jax.random.key(0), (16, 8)), METHODS["goat"].spec
    >>> start = init_adapter(kernel, spec, jax.random.key(1))
    >>> mean = mean_kernel(start.kernel, start.factors, start.scale, spec)
    >>> bool(jnp.allclose(mean, kernel, atol=1e-6))  # theorem 3.4
    True
    """
    if spec.router.mergeable:
        return spec.combine.merge(kernel, arrays, scale, spec)
    a, b = spec.combine.pairs(arrays)
    weights = jnp.asarray(spec.router.mean_weight(spec))
    return kernel + delta_weight(a, b, scale, weights).astype(kernel.dtype)
