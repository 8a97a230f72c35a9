"""Phase change: the one change of constants that a method may make between two steps.

The methods' phases are in `goat_jax.adapters.parts.phases`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from goat_jax.adapters.parts.phases import Phases
from goat_jax.errors import UserError
from goat_jax.nn.dense import Constant, merge_model
from goat_jax.nn.named_modules import find_modules
from goat_jax.optim.late_start import restart
from goat_jax.training.state import RunState
from goat_jax.typing import Array, Factors, PyTree

PhaseChange = Callable[[RunState, PyTree], RunState]


def check_phase_change(phases: Phases, steps: int) -> None:
    """Raises `UserError` unless a method's phase change comes before the last step."""
    after = phases.change_step
    if after is not None and not 0 < after < steps:
        raise UserError(
            f"this method changes after step {after}, and the run has {steps}: give "
            f"adapter.change_step a number in 1..{steps - 1}"
        )


def starting_constants(model: nnx.Module, phases: Phases) -> PyTree:
    """Returns copies of the adapters' constants, for the run's state; none if they never change."""
    if phases.change_step is None:
        return {}
    # Copied, because steps donate the state, and the originals are still part of the base.
    return jax.tree.map(jnp.copy, _constants(model))


def make_phase_change(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    phases: Phases,
    shardings: RunState | None = None,
) -> PhaseChange:
    """Makes a function ``(state, base) -> state`` that gives every adapter its new constants.

    The trained arrays stay as they are. Arrays that are trained only from now on
    (`optim.late_start`) get a new optimizer state.

    Args:
        graph: the model's static structure.
        optimizer: the run's optimizer.
        phases: the method's phases.
        shardings: the state's shardings on a mesh; None for one device.
    """

    def change(state: RunState, base: PyTree) -> RunState:
        model = merge_model(graph, state.trainable, state.frozen(base))
        for ref in find_modules(model):
            dense, adapter = ref.module, ref.module.adapter
            if adapter is None:
                continue
            arrays = adapter.factors() | adapter.constants()
            layers = jax.tree.map(ref.each, (dense.weights(), arrays, adapter.scale[...]))
            for name, value in _exchange(phases, layers).items():
                getattr(adapter, name).set_value(ref.joined(value))
        changed = dataclasses.replace(
            state,
            constants=_constants(model),
            opt_state=restart(optimizer, state.opt_state, state.trainable),
        )
        # With other shardings than it was compiled for, the step would be compiled again.
        return changed if shardings is None else jax.device_put(changed, shardings)

    return change


@partial(jax.jit, static_argnums=0)
def _exchange(phases: Phases, layers: tuple[Array, Factors, Array]) -> Factors:
    # Not a vmap: one layer's SVD is in memory at a time.
    return jax.lax.map(lambda each: phases.constants(*each), layers)


def _constants(model: nnx.Module) -> PyTree:
    return nnx.to_pure_dict(nnx.state(model, Constant))
