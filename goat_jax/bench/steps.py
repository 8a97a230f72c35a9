"""Whole training steps of a config, method by method, with random weights of the real shapes."""

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
    """Steps of several methods.

    Attributes:
        measured: of each; temporaries are those of the compiled step.
        peak: operations per second of a plain matrix product, in the same process.
    """

    measured: tuple[Measured, ...]
    peak: float

    def share_of_peak(self, one: Measured) -> float:
        """Matrix products of a step per second, over what a plain product reaches."""
        return one.flops / one.seconds / self.peak


def measure_steps(
    configs: Mapping[str, RunConfig], model: str | None = None, turns: int = 5
) -> Steps:
    """Optimizer steps on batches of the configs' greatest length, taking turns.

    Args:
        configs: by the name of what they stand for; the first is what the ratios are to.
        model: whose sizes to take, as for `training.abstract_run.abstract_run`.
    """
    made = {name: step_of(config, model) for name, config in configs.items()}
    first = next(iter(configs.values()))
    size = f"{first.train.batch_size} x {first.train.max_length}"
    return Steps(measure(size, made, turns), measured_peak(DTYPES[first.model.dtype]))


def step_of(config: RunConfig, model: str | None) -> Contender:
    """An optimizer step, compiled."""
    run = abstract_run(config, model)
    state, base = (_numbers(tree) for tree in (run.state, run.base))
    batch = _batch(run)
    flops = matmul_flops(run.train_step, run.state, run.base, run.batch)
    compiled = run.train_step.lower(state, base, batch).compile()  # type: ignore[attr-defined]
    held = [state]

    def step() -> Any:
        held[0], metrics = compiled(held[0], base, batch)
        return metrics["loss"]

    return Contender(step, temporary_bytes(compiled), flops)


def _numbers(tree: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [random_like(leaf, i) for i, leaf in enumerate(leaves)])


def _batch(run: AbstractRun) -> dict[str, np.ndarray]:
    """Full rows: every token counts; its ids are below 1000."""
    random = np.random.default_rng(0)
    filled = {
        "input_ids": lambda s: random.integers(0, 1000, s.shape),
        "pixel_values": lambda s: random.normal(size=s.shape),
    }
    ones = ("attention_mask", "weights", "learnt", "segments")
    return {
        name: (filled[name](s) if name in filled else np.full(s.shape, name in ones)).astype(
            s.dtype
        )
        for name, s in run.batch.items()
    }
