"""Replays a LoRA-Dash case: the LoRA phase, the phase change, and the phase with directions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from goat_jax.adapters.adapter import init_adapter
from goat_jax.adapters.parts.lora_dash import Directions, find_directions
from goat_jax.nn.dense import split_model
from goat_jax.optim.late_start import restart
from goat_jax.parity.bundle import Arrays
from goat_jax.parity.checks import GIVEN, METHOD, Check, Comparison
from goat_jax.parity.layer_steps import (
    LayerOptimizer,
    ObservedStep,
    batch_of,
    layer_step,
    make_layer,
)
from goat_jax.parity.methods.cases import SAME, SINGLE, CaseFile, read_factors
from goat_jax.parity.methods.layer import LayerPlan, check_seen, read_layer
from goat_jax.typing import Array, Factors

LATE = "coefficients"


def replay_dash(entry: CaseFile, arrays: Arrays) -> Iterator[Check]:
    """Trains through both phases and compares them, then compares the second at other values."""
    plan = read_layer(entry, arrays)
    compare = Comparison(METHOD, str(entry.folder), entry.name, GIVEN)
    yield compare.check("scale", plan.scale, np.full(1, entry.record.number("scale")))
    start = init_adapter(jnp.asarray(plan.kernel), plan.run.spec, jax.random.key(0))
    factors = start.factors | {k: jnp.asarray(value) for k, value in plan.factors.items()}
    training = Training(plan, factors, start.constants)
    losses = []
    for step in range(plan.run.steps):
        if step == entry.record.integer("t0"):
            yield from _check_directions(training.switch(), training.factors, arrays, compare)
            observed = training.step()
            yield from check_seen(plan.case, observed, arrays, compare, "_switch")
        else:
            observed = training.step()
        if step == 0:
            yield from _check_first(plan, observed, arrays, compare)
        losses.append(np.asarray(observed.loss))
    final = training.factors
    yield compare.check("adamw_losses", np.stack(losses), arrays.get("adamw_losses"))
    yield from _check_factors("final", final, arrays, compare)
    yield compare.check("y_final", np.asarray(training.step().y), arrays.get("y_final"))
    yield from _check_second_phase(plan, entry, training.constants, arrays, compare)


class Training:
    """Training of a layer whose constants can be replaced between steps.

    Args:
        plan: the case.
        factors: the adapter's initial trained arrays.
        constants: the adapter's initial frozen arrays.
    """

    def __init__(self, plan: LayerPlan, factors: Factors, constants: Factors):
        self.plan, self.constants = plan, constants
        self.recipe = LayerOptimizer(plan.run.optimizer.config, transform=plan.run.spec.transform)
        self.graph, self.trainable, self.base = self._split(factors)
        self.opt_state = self._optimizer().init(self.trainable)

    def _split(self, factors: Factors):
        scale = jnp.asarray(self.plan.scale)
        layer = make_layer(self.plan.run, self.plan.frozen, factors, scale, self.constants)
        return split_model(layer)

    def _optimizer(self) -> optax.GradientTransformation:
        return self.recipe.make(self.trainable, self.base)

    @property
    def factors(self) -> Factors:
        """Current trained arrays of the adapter."""
        return self.trainable["adapter"]["adapter"]

    def switch(self) -> Directions:
        """Finds the directions and restarts the optimizer state of their coefficients."""
        count = self.factors[LATE].shape[0]
        kernel, scale = jnp.asarray(self.plan.frozen), jnp.asarray(self.plan.scale)
        directions = _find(kernel, self.factors, scale, count)
        self.constants = {"u": directions.u, "vt": directions.vt}
        _, _, self.base = self._split(self.factors)
        self.opt_state = restart(self._optimizer(), self.opt_state, self.trainable)
        return directions

    def step(self) -> ObservedStep:
        """Takes one step of the package's optimizer."""
        state = (self.trainable, self.opt_state)
        state, observed = layer_step(
            self.graph, self.recipe, state, self.base, *batch_of(self.plan.run)
        )
        self.trainable, self.opt_state = state
        return observed


@partial(jax.jit, static_argnums=3)
def _find(kernel: Array, factors: Factors, scale: Array, count: int) -> Directions:
    return find_directions(kernel, factors, scale, count)


def _check_first(
    plan: LayerPlan, observed: ObservedStep, arrays: Arrays, compare: Comparison
) -> Iterator[Check]:
    """Compares the first step, which in PyTorch has no coefficients before the phase change."""
    grads = {name: value for name, value in observed.grads.items() if name != LATE}
    yield from check_seen(plan.case, observed._replace(grads=grads), arrays, compare)


def _check_directions(
    directions: Directions, factors: Factors, arrays: Arrays, compare: Comparison
) -> Iterator[Check]:
    yield from _check_factors("switch", factors, arrays, compare)
    yield compare.check("sigma", np.asarray(directions.values), arrays.get("sigma"))
    yield compare.check("change_rate", np.asarray(directions.rates), arrays.get("change_rate"))
    yield compare.check("top_index", np.asarray(directions.indices), arrays.get("top_index"))
    # The sign of each pair of singular vectors is arbitrary, so their products are compared.
    ours = np.einsum("IK,KO->KOI", np.asarray(directions.u), np.asarray(directions.vt))
    theirs = np.einsum("OK,KI->KOI", arrays.get("U_top"), arrays.get("Vt_top"))
    yield compare.check("directions", ours, theirs)


def _check_factors(
    when: str, factors: Factors, arrays: Arrays, compare: Comparison
) -> Iterator[Check]:
    for name, (our_name, form) in {**SINGLE, "coef": (LATE, SAME)}.items():
        if f"{name}_{when}" in arrays.values:
            ours = form.write(np.asarray(factors[our_name]))
            yield compare.check(f"{name}_{when}", ours, arrays.get(f"{name}_{when}"))


def _check_second_phase(
    plan: LayerPlan, entry: CaseFile, constants: Factors, arrays: Arrays, compare: Comparison
) -> Iterator[Check]:
    """Compares one step at given factors and coefficients, along the directions found before."""
    factors = read_factors(arrays, plan.case, entry.record, "_p2")
    other = Training(plan, {k: jnp.asarray(v) for k, v in factors.items()}, constants)
    yield from check_seen(plan.case, other.step(), arrays, compare, "_p2")
