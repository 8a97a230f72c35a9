"""Benchmark of complete training steps of several methods, with random weights of real shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from goat_jax.bench.measured import Contender, Measured, measure, temporary_bytes
from goat_jax.bench.turns import random_like
from goat_jax.config.run import DTYPES, RunConfig
from goat_jax.training.abstract_run import AbstractRun, abstract_run
from goat_jax.training.logging.flops import matmul_flops
from goat_jax.training.logging.mfu import measured_peak
from goat_jax.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Steps:
    """Measured training steps of several methods.

    Attributes:
        measured: the measurement of each method's step.
        peak: the FLOP/s of a plain matrix product, measured in the same process.
    """

    measured: tuple[Measured, ...]
    peak: float

    def share_of_peak(self, one: Measured) -> float:
        """Returns a step's FLOP/s in matrix products over the FLOP/s of a plain product."""
        return one.flops / one.seconds / self.peak


def measure_steps(
    configs: Mapping[str, RunConfig], model: str | None = None, turns: int = 5
) -> Steps:
    """Measures optimizer steps on batches of the configs' greatest length, interleaved.

    Args:
        configs: name -> config; ratios are to the first one.
        model: the model whose sizes are used, as for `training.abstract_run.abstract_run`.
        turns: the number of timed steps of each config.
    """
    made = {name: step_of(config, model) for name, config in configs.items()}
    first = next(iter(configs.values()))
    size = f"{first.train.batch_size} x {first.train.max_length}"
    return Steps(measure(size, made, turns), measured_peak(DTYPES[first.model.dtype]))


def step_of(config: RunConfig, model: str | None) -> Contender:
    """Compiles an optimizer step; each call updates the state of the previous one."""
    run = abstract_run(config, model)
    state, base = (_numbers(tree) for tree in (run.state, run.base))
    batch = full_batch(run)
    flops = matmul_flops(run.train_step, run.state, run.base, run.batch)
    compiled = run.train_step.lower(state, base, batch).compile()
    held = [state]

    def step() -> Any:
        held[0], metrics = compiled(held[0], base, batch)
        return metrics["loss"]

    return Contender(step, temporary_bytes(compiled), flops)


def _numbers(tree: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [random_like(leaf, i) for i, leaf in enumerate(leaves)])


def full_batch(run: AbstractRun) -> dict[str, np.ndarray]:
    """Makes a batch without padding; token ids are below 1000, so that any vocabulary has them."""
    random = np.random.default_rng(0)
    filled = {
        "input_ids": lambda s: random.integers(0, 1000, s.shape),
        "pixel_values": lambda s: random.normal(size=s.shape),
    }
    ones = ("attention_mask", "weights", "loss_mask", "segments")
    return {
        name: (filled[name](s) if name in filled else np.full(s.shape, name in ones)).astype(
            s.dtype
        )
        for name, s in run.batch.items()
    }
