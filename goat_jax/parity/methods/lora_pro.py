"""Replays a LoRA-Pro case: its adjusted gradients, and its optimizers on one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from goat_jax.optim.lora_pro import adjust, lora_pro
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.optim.transforms import LoraPro, Stages, Transform
from goat_jax.parity.bundle import Arrays, Record
from goat_jax.parity.checks import GIVEN, METHOD, Check, Comparison, Note
from goat_jax.parity.layer_bundle import read_adamw
from goat_jax.parity.layer_steps import LayerOptimizer, run_layer
from goat_jax.parity.methods.cases import ONE_PAIR, SINGLE, CaseFile
from goat_jax.parity.methods.layer import LayerPlan, check_seen, read_layer
from goat_jax.typing import PyTree


@dataclasses.dataclass(frozen=True)
class ProSgd:
    """LoRA-Pro without Adam.

    Attributes:
        x: the choice of the free matrix, as in `lora_pro`.
    """

    x: str
    length_matters: ClassVar[bool] = False

    def __call__(
        self, stages: Stages, scales: PyTree, total_steps: int
    ) -> optax.GradientTransformation:
        del total_steps
        return optax.chain(lora_pro(scales, self.x), stages.finish)


OPTIMIZERS: Mapping[str, Transform] = {
    "sgd": ProSgd("sylvester"),
    "sgd_zero": ProSgd("zero"),
    "adamw": LoraPro(),
    "full": LoraPro(moments="full"),
    "full32": LoraPro(moments="full"),
}
"""Prefix of a trajectory's names in the file -> the optimizer's transform."""


def replay_pro(entry: CaseFile, arrays: Arrays) -> Iterator[Check | Note]:
    """Compares the first step, the adjusted gradients, and the trajectories of all optimizers."""
    plan = read_layer(entry, arrays)
    compare = Comparison(METHOD, str(entry.folder), entry.name, GIVEN)
    yield compare.check("scale", plan.scale, np.full(1, entry.record.number("scale")))
    for number, (name, transform) in enumerate(OPTIMIZERS.items()):
        recipe, steps = _recipe(entry.record.record("optimizer").record(name), transform)
        if name.startswith("full") and recipe.config.weight_decay:
            yield compare.note(f"{name}: decays the frozen kernel, too, which is not done here")
            continue
        run = dataclasses.replace(plan.run, optimizer=recipe, steps=steps)
        factors = {key: jnp.asarray(value) for key, value in plan.factors.items()}
        outcome = run_layer(run, plan.frozen, factors, jnp.asarray(plan.scale))
        if number == 0:
            yield from check_seen(plan.case, outcome.first, arrays, compare)
        yield compare.check(f"{name}_losses", outcome.losses, arrays.get(f"{name}_losses"))
        yield compare.check(f"{name}_y_final", outcome.y_final, arrays.get(f"{name}_y_final"))
        for tensor, (our_name, form) in SINGLE.items():
            ours = form.write(outcome.factors[our_name])
            theirs = arrays.get(f"{name}_{tensor}_final")
            yield compare.check(f"{name}_{tensor}_final", ours, theirs)
    yield from _check_adjusted(plan, arrays, compare)
    yield compare.note(
        "adj_symmetry is not compared: the published code multiplies by A A^T where the algebra "
        "has its inverse"
    )


def _recipe(record: Record, transform: Transform) -> tuple[LayerOptimizer, int]:
    """Reads the settings of an AdamW, or the learning rate of an SGD, and the number of steps."""
    if "betas" in record.values:
        recipe, steps = read_adamw(record)
        return dataclasses.replace(recipe, transform=transform), steps
    config = OptimizerConfig(record.number("lr"), "constant", warmup_steps=0, max_grad_norm=None)
    return LayerOptimizer(config, transform), record.integer("steps")


def _check_adjusted(plan: LayerPlan, arrays: Arrays, compare: Comparison) -> Iterator[Check]:
    a, b = (jnp.asarray(plan.factors[name]) for name in ("a", "b"))
    grads = [jnp.asarray(ONE_PAIR.read(arrays.floats(f"grad_{name}"))) for name in "AB"]
    for x in ("sylvester", "zero"):
        adjusted = jax.jit(partial(adjust, x=x))(a, b, *grads, jnp.asarray(plan.scale))
        for name, value in zip("AB", adjusted, strict=True):
            ours = ONE_PAIR.write(np.asarray(value))
            yield compare.check(f"adj_{name}_{x}", ours, arrays.get(f"adj_{name}_{x}"))
