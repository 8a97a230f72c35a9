"""Replays a layer case: a `Dense` with an adapter, its gradients and AdamW steps on one batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.adapters.adapter import init_adapter
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.parity.align import LARGEST_NOISE, agreeing_steps, align_signs, svd_noise
from goat_jax.parity.checks import GIVEN, LAYER, OWN, Check, Comparison, Note
from goat_jax.parity.layer_bundle import LayerCase, LayerReplay, read_plan, swap
from goat_jax.parity.layer_steps import StepsResult, run_layer
from goat_jax.parity.reference_code import scale_note
from goat_jax.typing import Array, Factors


def replay_case(case: LayerCase) -> list[Check | Note]:
    """Runs a case from the given factors and from our initialization, and compares every quantity.

    Raises:
        UserError: the case or one of its arrays cannot be read.
    """
    plan = read_plan(case)
    from_given = Comparison(LAYER, str(case.folder), case.name, GIVEN)
    from_ours = Comparison(LAYER, str(case.folder), case.name, OWN)
    with jax.default_matmul_precision("highest"):
        start = _given_factors(plan)
        outcome = _run_plan(plan, plan.residual, start)
        return [
            *_check_start(plan, start, from_given),
            *_check_outcome(plan, outcome, from_given),
            *_check_from_ours(plan, outcome, from_ours),
        ]


def _given_factors(plan: LayerReplay) -> Factors:
    return {name: jnp.asarray(value) for name, value in plan.factors.items()}


def _check_start(
    plan: LayerReplay, factors: Factors, compare: Comparison
) -> Iterator[Check | Note]:
    """Compares the residual of the given factors, and the scale if its rule is known."""
    residual = _edit_base(plan.spec, jnp.asarray(plan.kernel), factors, jnp.asarray(_scale(plan)))
    yield compare.check("W_res", np.asarray(residual), plan.residual)
    rule = np.asarray(plan.kind.scale(plan.kernel.shape[0], None, plan.spec))
    if plan.kind.fixed:
        yield compare.check("scale", rule, _scale(plan))
    elif not np.allclose(rule, _scale(plan), rtol=1e-6):
        yield compare.note(scale_note(_scale(plan), rule))


def _scale(plan: LayerReplay) -> np.ndarray:
    return np.asarray(plan.spec.scale(plan.kernel.shape[0], None, plan.spec))


@partial(jax.jit, static_argnums=0)
def _edit_base(spec: AdapterSpec, kernel: Array, factors: Factors, scale: Array) -> Array:
    return spec.kernel_edit(kernel, factors, scale, spec)


@partial(jax.jit, static_argnums=0)
def _our_init(spec: AdapterSpec, kernel: Array) -> tuple[Array, Array, Array]:
    start = init_adapter(kernel, spec, jax.random.key(0))
    return start.kernel, start.factors["a"], start.factors["b"]


def _check_from_ours(
    plan: LayerReplay, reference: StepsResult, compare: Comparison
) -> Iterator[Check | Note]:
    """Compares our initialization, and the case run from it with the given router."""
    residual, a, b = map(np.asarray, _our_init(plan.spec, jnp.asarray(plan.kernel)))
    factors_given = plan.factors
    if plan.kind.segments is None:
        # a is random, so only two facts can be compared: the kernel is unchanged, and b is zero.
        yield compare.check("W_res", residual, plan.residual)
        yield compare.check("init B", b, factors_given["b"])
        return
    noise = svd_noise(plan.kernel, plan.kind.segments, plan.spec.num_experts, plan.spec.rank)
    if noise > LARGEST_NOISE:
        yield compare.note(
            f"no run from our own start: W0 has singular values too near each other (noise "
            f"{noise:.1e}) for its singular vectors to be comparable"
        )
        return
    a, b = align_signs(a, b, factors_given["a"], factors_given["b"])
    compare = compare.with_noise(noise)
    yield compare.check("W_res", residual, plan.residual)
    yield compare.check("init A", a, factors_given["a"])
    yield compare.check("init B", b, factors_given["b"])
    factors = {
        "a": jnp.asarray(a),
        "b": jnp.asarray(b),
        "router": jnp.asarray(factors_given["router"]),
    }
    outcome = _run_plan(plan, residual, factors)
    agree = agreeing_steps(outcome.loads, reference.loads)
    yield from _check_outcome(plan, outcome, compare, agree)


def _check_outcome(
    plan: LayerReplay, outcome: StepsResult, compare: Comparison, agree: int | None = None
) -> Iterator[Check | Note]:
    """Compares all results, but only the first `agree` forward passes of the training."""
    first, expected = outcome.first, plan.expected
    ours = {
        "y": first.y,
        "aux": first.aux,
        "loss": first.loss,
        "grad_x": first.grad_x,
        "grad_A": swap(np.asarray(first.grads["a"])),
        "grad_B": swap(np.asarray(first.grads["b"])),
        "grad_router": first.grads["router"].T,
    }
    for name, value in ours.items():
        yield compare.check(name, np.asarray(value), expected[name])
    yield compare.check("adamw_losses", outcome.losses[:agree], expected["adamw_losses"][:agree])
    if agree is None or agree > plan.steps:
        yield compare.check("y_final", outcome.y_final, expected["y_final"])
    else:
        yield compare.note(
            f"own start: a token changes its experts at step {agree}, a near-tie that the SVD's "
            "rounding decides; losses are compared up to there"
        )


def _run_plan(plan: LayerReplay, residual: np.ndarray, factors: Factors) -> StepsResult:
    return run_layer(plan.run, residual, factors, jnp.asarray(_scale(plan)))
