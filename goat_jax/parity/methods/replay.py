"""Replays a case of another method with the layer, gradients and AdamW steps of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.adapters.adapter import AdapterInit, init_adapter
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError, nearest
from goat_jax.parity.bundle import Arrays, Record, read_npz
from goat_jax.parity.checks import GIVEN, METHOD, OWN, Check, Comparison, Note
from goat_jax.parity.layer_steps import StepsResult, run_layer
from goat_jax.parity.methods.cases import CASES, CaseFile
from goat_jax.parity.methods.layer import LayerPlan, check_seen, read_layer
from goat_jax.parity.methods.lora_dash import replay_dash
from goat_jax.parity.methods.lora_pro import replay_pro
from goat_jax.parity.methods.lorahub import replay_hub, replay_kasa_loss
from goat_jax.parity.methods.rank_budget import replay_budget
from goat_jax.typing import Array


def replay_entry(entry: CaseFile) -> list[Check | Note]:
    """Runs a case from the given arrays, checks our initialization, and compares every quantity.

    Raises:
        UserError: the case or an array cannot be read, or the method is unknown to parity.
    """
    if entry.formula not in REPLAYS:
        raise UserError(
            f"{entry.record.where}: formula {entry.formula!r} is not known"
            f"{nearest(entry.formula, REPLAYS)}: give one of {', '.join(REPLAYS)}"
        )
    arrays = read_npz(entry.folder / f"{entry.name}.npz")
    try:
        with jax.default_matmul_precision("highest"):
            return list(REPLAYS[entry.formula](entry, arrays))
    except UserError as error:
        known = str(entry.folder) in str(error)
        raise error if known else UserError(f"{entry.record.where}: {error}") from None


Replay = Callable[[CaseFile, Arrays], Iterator[Check | Note]]


def _replay_layer(entry: CaseFile, arrays: Arrays) -> Iterator[Check | Note]:
    plan = read_layer(entry, arrays)
    from_given = Comparison(METHOD, str(entry.folder), entry.name, GIVEN)
    yield from_given.check("scale", plan.scale, _scale_of(entry.record, plan))
    yield from _check_our_init(entry, plan, arrays)
    factors = {name: jnp.asarray(value) for name, value in plan.factors.items()}
    outcome = run_layer(plan.run, plan.frozen, factors, jnp.asarray(plan.scale))
    yield from check_seen(plan.case, outcome.first, arrays, from_given)
    yield from _check_trained(plan, outcome, arrays, from_given)


def _scale_of(record: Record, plan: LayerPlan) -> np.ndarray:
    return np.full(plan.scale.shape, record.number("scale"))


def _check_trained(
    plan: LayerPlan, outcome: StepsResult, arrays: Arrays, compare: Comparison
) -> Iterator[Check]:
    yield compare.check("adamw_losses", outcome.losses, arrays.get("adamw_losses"))
    yield compare.check("y_final", outcome.y_final, arrays.get("y_final"))
    for name, (our_name, form) in plan.case.tensors.items():
        if f"{name}_final" in arrays.values:
            ours = form.write(outcome.factors[our_name])
            yield compare.check(f"{name}_final", ours, arrays.get(f"{name}_final"))


def _check_our_init(entry: CaseFile, plan: LayerPlan, arrays: Arrays) -> Iterator[Check]:
    """Compares our initialization if it is not random: the frozen kernel and products of factors.

    Only a case with a residual kernel has such an initialization.
    """
    if "W_res" not in arrays.values:
        return
    from_ours = Comparison(METHOD, str(entry.folder), entry.name, OWN)
    gradient = jnp.asarray(arrays.floats("G").T) if "G" in arrays.values else None
    start = _our_init(plan.run.spec, jnp.asarray(plan.kernel), gradient)
    a, b = (np.asarray(start.factors[name][0]) for name in ("a", "b"))
    products = {
        "BA_init": lambda: np.asarray(start.scale)[0] * (a @ b).T,
        "AtA_init": lambda: a @ a.T,
        "BBt_init": lambda: b.T @ b,
    }
    # With factors from different triplets, their product and so the residual depend on the signs of
    # the SVD. The residual is then compared from the given factors.
    arbitrary = "AtA_init" in arrays.values
    if arbitrary:
        from_given = Comparison(METHOD, str(entry.folder), entry.name, GIVEN)
        factors = {name: jnp.asarray(value) for name, value in plan.factors.items()}
        residual = _edit_base(plan.run.spec, jnp.asarray(plan.kernel), factors, start.scale)
        yield from_given.check("W_res", np.asarray(residual).T, arrays.get("W_res"))
        del products["BA_init"]
    else:
        yield from_ours.check("W_res", np.asarray(start.kernel).T, arrays.get("W_res"))
    for name, product in products.items():
        if name in arrays.values:
            yield from_ours.check(name, product(), arrays.get(name))


@partial(jax.jit, static_argnums=0)
def _our_init(spec: AdapterSpec, kernel: Array, gradient: Array | None) -> AdapterInit:
    return init_adapter(kernel, spec, jax.random.key(0), gradient)


@partial(jax.jit, static_argnums=0)
def _edit_base(spec: AdapterSpec, kernel: Array, factors: dict[str, Array], scale: Array) -> Array:
    return spec.kernel_edit(kernel, factors, scale, spec)


REPLAYS: dict[str, Replay] = {formula: _replay_layer for formula in CASES} | {
    "lora_dash": replay_dash,
    "lora_pro": replay_pro,
    "lorahub": replay_hub,
    "kasa_aux": replay_kasa_loss,
    "adalora_trajectory": replay_budget,
}
"""Formula of methods.json -> the function that replays it."""
