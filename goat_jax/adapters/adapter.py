"""The three functions every method is: init, apply, merge. Arrays in, arrays out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from goat_jax.adapters.context import Context, dropout
from goat_jax.adapters.spec import AdapterSpec, Given
from goat_jax.core.aux_losses import expert_load, mean_weights, router_entropy
from goat_jax.core.products import narrow_products
from goat_jax.core.svd import Svd
from goat_jax.errors import UserError
from goat_jax.typing import Array, Factors, Key


class AdapterStart(NamedTuple):
    """What `init_adapter` makes of a pretrained kernel.

    Attributes:
        kernel: the frozen kernel (I, O), pretrained minus what the adapter starts with.
        factors: the trained arrays by name, float32.
        scale: (E,) float32, frozen.
        constants: further frozen arrays by name, which few methods have.
    """

    kernel: Array
    factors: Factors
    scale: Array
    constants: Factors


class Report(NamedTuple):
    """What one adapter tells of a forward pass.

    Attributes:
        aux_loss: its auxiliary loss, a scalar, not yet weighted.
        load: (E,) share of the real tokens that select each expert; sums to K.
        entropy: mean entropy of the router's probabilities over the real tokens, in nats, a scalar.
        weights: (..., E) of the experts for every token, if the context asks for them; else None.
        mean_weights: (E,) their mean over the real tokens, likewise.
    """

    aux_loss: Array
    load: Array
    entropy: Array
    weights: Array | None = None
    mean_weights: Array | None = None


def init_adapter(
    kernel: Array,
    spec: AdapterSpec,
    key: Key,
    gradient: Array | None = None,
    segments: Svd | None = None,
) -> AdapterStart:
    """Start of an adapter on a pretrained kernel (I, O) of any float dtype.

    Args:
        gradient: of the loss with respect to the kernel, (I, O), for starts that need it.
        segments: the triplets of the kernel's SVD that `segment_index` names, if they are known;
            else they are computed.

    >>> from goat_jax.adapters.methods import METHODS
    >>> kernel = jax.random.normal(jax.random.key(0), (16, 8))
    >>> start = init_adapter(kernel, METHODS["goat"].spec, jax.random.key(1))
    >>> {name: array.shape for name, array in start.factors.items()}
    {'a': (8, 16, 1), 'b': (8, 1, 8), 'router': (16, 8)}
    """
    segment_key, factor_key, router_key = jax.random.split(key, 3)
    dropped = None
    if _chooser(spec) is spec.base_edit:
        segments, dropped = None, segments
    if segments is None:
        segments = spec.initializer.segments(kernel, spec, segment_key)
    scale = spec.scale(kernel.shape[0], segments, spec)
    given = Given(kernel, segments, scale, gradient)
    factors = spec.initializer.factors(given, spec, factor_key)
    if dropped is None:
        frozen = spec.base_edit(kernel, factors, scale, spec)
    else:
        frozen = spec.base_edit.without(kernel, dropped)  # type: ignore[attr-defined]
    extra_key = jax.random.fold_in(router_key, 1)
    extras = spec.combine.extras(frozen, factors, scale, spec, extra_key)
    routed = spec.router.init(kernel.shape[0], spec, router_key)
    return AdapterStart(frozen, factors | extras.trained | routed, scale, extras.constants)


def segment_index(h: int, spec: AdapterSpec, key: Key) -> Array | None:
    """Which of a kernel's h singular triplets `init_adapter` needs with this key, by expert: those
    the experts start from, or those the base edit drops.

    Returns:
        (E, R), or None for a start that needs none.
    """
    chooser = _chooser(spec)
    return None if chooser is None else chooser.triplets(h, spec, jax.random.split(key, 3)[0])


def _chooser(spec: AdapterSpec) -> Any:
    """The part that says which triplets a start needs, None if no part does."""
    parts = (spec.initializer, spec.base_edit)
    return next((part for part in parts if hasattr(part, "triplets")), None)


def apply_adapter(
    x: Array, kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec, ctx: Context
) -> tuple[Array, Report]:
    """What the adapter adds to ``x @ kernel``: (..., O) in x's dtype, and its report.

    For the few methods whose ``spec.combine.replaces`` is true it is the whole output instead.

    Args:
        x: tokens (..., I).
        kernel: the frozen kernel (I, O); most methods do not look at it.
        arrays: factors, and constants if the method has any.  scale: (E,).
        ctx: dropout key (None in eval mode), padding mask, tasks.
    """
    dropped = dropout(x, spec.dropout, ctx.key, spec.combine.dropout_copies(spec))
    router, hidden, logits = spec.router.matrix(arrays), None, None
    if router is not None and dropped is x:
        inner = spec.combine.inner(arrays)
        if inner is not None:
            hidden, logits = narrow_products(x, inner, router)
    routing = spec.router(x, arrays, spec, ctx, logits)
    delta = spec.combine(dropped, kernel, arrays, scale, routing, hidden)
    report = Report(
        aux_loss=spec.aux_loss(routing, arrays, ctx),
        load=expert_load(routing, ctx.mask),
        entropy=router_entropy(routing, ctx.mask),
        weights=routing.weights if ctx.per_token else None,
        mean_weights=mean_weights(routing, ctx.mask) if ctx.per_token else None,
    )
    return delta, report


def apply_layer(
    x: Array, kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec, ctx: Context
) -> tuple[Array, Report]:
    """Output (..., O) of frozen kernel and adapter together, for every method, and the report."""
    delta, report = apply_adapter(x, kernel, arrays, scale, spec, ctx)
    if spec.combine.replaces:
        return delta, report
    return jnp.dot(x, kernel.astype(x.dtype)) + delta, report


def merge_adapter(kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec) -> Array:
    """One kernel (I, O) that does what frozen kernel and adapter do together.

    Raises:
        UserError: when the experts' weights differ by token or task, so that there is none.
    """
    if not spec.router.mergeable:
        raise UserError(
            f"{type(spec.router).__name__} weighs the experts {spec.router.varies}, so no single "
            "kernel equals this adapter: keep it as an adapter"
        )
    return spec.combine.merge(kernel, arrays, scale, spec)
