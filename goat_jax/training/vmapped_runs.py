"""Trains several runs of one task at once under vmap.

The runs may differ in adapter initialization, seed, learning rate and weight of the auxiliary
loss. All of these are array arguments of the step, so one compiled step trains many runs. Frozen
arrays that are equal in all runs are in memory once. No checkpoints are written, because a
comparison consists of many short runs. Up to rounding, each run's numbers are those of the run
alone, provided that every batch is padded to the same length.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath

from goat_jax.config.run import AdapterConfig, RunConfig
from goat_jax.errors import UserError
from goat_jax.pretrained.resolve import find_model
from goat_jax.training.abstract_run import abstract_run
from goat_jax.training.data import (
    TaskData,
    evaluation_batches,
    load_data,
    load_rows,
    training_batches,
)
from goat_jax.training.evaluate import evaluate
from goat_jax.training.phase_change import check_phase_change
from goat_jax.training.setup import TrainSetup, build
from goat_jax.training.shardings import sharding_rules_of
from goat_jax.training.state import RunState
from goat_jax.training.step import make_train_step
from goat_jax.training.task_types import task_type_of
from goat_jax.typing import Array, Batch, PyTree


@dataclasses.dataclass(frozen=True)
class RunVariant:
    """Variant of a config: the settings by which its runs differ.

    Attributes:
        seed: the seed of the run's initialization, data order and dropout.
        learning_rate: the run's peak learning rate.
    """

    seed: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class RunResult:
    """Result of one run. All its numbers are finite.

    Attributes:
        variant: the run's seed and learning rate.
        losses: the task loss of every step's batch, up to the step at which the run diverged.
        after: the scores after the last step; empty if the run diverged.
        trained_parameters: the number of one run's trained parameters, heads included.
        adapter_share: the number of adapter parameters over the pretrained model's.
        step_seconds: the median time of a step, divided by the number of runs in it.
        temporary_bytes: the compiled step's temporary memory in bytes, divided by the number of
            runs in it.
        diverged: the first step with a loss or gradient that is not finite, or the last step if
            its scores are not finite; None if everything is finite.
    """

    variant: RunVariant
    losses: tuple[float, ...]
    after: dict[str, float]
    trained_parameters: int
    adapter_share: float
    step_seconds: float
    temporary_bytes: int
    diverged: int | None = None


def with_variant(config: RunConfig, variant: RunVariant) -> RunConfig:
    """Returns a config with a variant's seed and learning rate."""
    train = dataclasses.replace(config.train, seed=variant.seed)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=variant.learning_rate)
    return dataclasses.replace(config, train=train, optimizer=optimizer)


def train_vmapped(configs: Sequence[RunConfig], runs_per_step: int = 1) -> Iterator[RunResult]:
    """Trains all runs; up to `runs_per_step` consecutive ones that can share a step run in one.

    Args:
        configs: the runs' configs. Only consecutive configs with the same `shared_step` share a
            compiled step.
        runs_per_step: the largest number of runs per compiled step.

    Yields:
        The runs' outcomes, in the order of the configs.

    Raises:
        UserError: as `check_runs`, before the first is trained.
    """
    check_runs(configs)
    for alike in _groups(configs):
        for first in range(0, len(alike), runs_per_step):
            yield from _train_some(alike[first : first + runs_per_step])


def check_runs(configs: Sequence[RunConfig]) -> None:
    """Checks all runs before the first of them is trained.

    Raises:
        UserError: as for `goat_jax.training.setup.build`, or a config with a mesh.
    """
    for config in configs:
        if sharding_rules_of(config) is not None:
            raise UserError(
                "several runs are trained on one device only: leave mesh at its default"
            )
    data: list[tuple[Any, int]] = []
    # The first group is left out, since training it starts right away with the same checks.
    for config in (alike[0] for alike in _groups(configs)[1:]):
        abstract_run(config, find_model(config.model.path))
        data_of_run = config.task, config.model.path, config.train
        count = next((count for known, count in data if known == data_of_run), None)
        if count is None:
            rows, held_out = load_rows(config, "train", "evaluation")
            training_batches(config, rows)
            evaluation_batches(config, held_out)
            count = len(rows)
            data.append((data_of_run, count))
        steps = config.train.over(count).total_steps
        check_phase_change(config.adapter.spec().phases, steps)


def _groups(configs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    """Groups consecutive configs that can share a compiled step.

    Each config gets a single batch length, so that all of its batches have one shape.
    """
    one_shape = [
        dataclasses.replace(each, train=dataclasses.replace(each.train, num_buckets=1))
        for each in configs
    ]
    return [list(alike) for _, alike in itertools.groupby(one_shape, key=shared_step)]


def shared_step(config: RunConfig) -> tuple[RunConfig, dict[str, Any]]:
    """Returns the settings that two runs must have in common to share a compiled step.

    These are the config without seed, learning rate and the adapter's initialization, and the
    parts of the adapter spec that a step reads.
    """
    spec, adapter_config = config.adapter.spec(), config.adapter
    adapter = AdapterConfig(
        target_modules=adapter_config.target_modules,
        modules_to_save=adapter_config.modules_to_save,
        forward_scale=adapter_config.forward_scale,
        overrides=adapter_config.overrides,
    )
    common = dataclasses.replace(
        with_variant(config, RunVariant(0, 1.0)), adapter=adapter, out="shared"
    )
    return common, spec.after_start() | {"aux_weight": None}


def _train_some(configs: Sequence[RunConfig]) -> Iterator[RunResult]:
    data = load_data(configs[0])
    configs = [config.over(len(data.rows)) for config in configs]
    setups = [build(configs[0], data)]
    for config in configs[1:]:
        setups.append(_sharing(build(config, data), setups[0]))
    yield from _VmappedGroup(configs, setups, data).train()


def _sharing(setup: TrainSetup, first: TrainSetup) -> TrainSetup:
    """Replaces frozen arrays by equal ones of the first run, so that the duplicates are freed."""
    known = dict(jax.tree_util.tree_leaves_with_path(first.base))

    def share(path: KeyPath, array: Array) -> Array:
        other = known.get(path)
        if other is None or array.shape != other.shape or not jnp.array_equal(array, other):
            return array
        return other

    return dataclasses.replace(setup, base=jax.tree_util.tree_map_with_path(share, setup.base))


class _VmappedGroup:
    """Runs that share one compiled step."""

    def __init__(self, configs: Sequence[RunConfig], setups: Sequence[TrainSetup], data: TaskData):
        self.configs, self.config, self.setup = configs, configs[0], setups[0]
        self.base, self.base_axes = _stack_different([setup.base for setup in setups])
        self.start = _stack([setup.state for setup in setups])
        first = self.config.optimizer.learning_rate
        self.numbers = {
            "rate": jnp.asarray([each.optimizer.learning_rate / first for each in configs]),
            "aux_weight": jnp.asarray([each.adapter.spec().aux_weight for each in configs]),
            "scales": _stack([setup.scales for setup in setups]),
        }
        self.batches = [training_batches(each, data.rows) for each in configs]
        self.held_out = data.evaluation

    def train(self) -> list[RunResult]:
        """Trains the runs to the last step, or until all have diverged."""
        state, batch = self.start, self.next_batch()
        step = jax.vmap(self.step, in_axes=(0, self.base_axes, 0, 0))
        compiled = (
            jax.jit(step, donate_argnums=0).lower(state, self.base, batch, self.numbers).compile()
        )
        losses, seconds = [], []
        diverged: dict[int, int] = {}
        for number in range(1, self.config.train.total_steps + 1):
            start = time.perf_counter()
            state, (loss, looked_at) = compiled(state, self.base, batch, self.numbers)
            batch = self.next_batch()  # while the device computes; reading the loss waits for it
            losses.append(np.asarray(loss))
            seconds.append(time.perf_counter() - start)
            for place in np.flatnonzero(~np.isfinite(np.asarray(looked_at)).all(axis=1)):
                diverged.setdefault(int(place), number)
            if len(diverged) == len(self.configs):
                break
            if number in self.setup.phase_changes:
                state = self.switched(state, number)
        live = [place for place in range(len(self.configs)) if place not in diverged]
        after = self.evaluate(state, live)
        for place, scores in after.items():
            if len(scores) > len(finite_only(scores)):
                diverged[place] = len(losses)
        memory: Any = compiled.memory_analysis()
        count, report = len(self.configs), self.setup.inject_report

        def kept(i: int) -> int:
            return diverged[i] - 1 if i in diverged else len(losses)

        return [
            RunResult(
                variant=RunVariant(config.train.seed, config.optimizer.learning_rate),
                losses=tuple(float(loss[i]) for loss in losses[: kept(i)]),
                after={} if i in diverged else after[i],
                trained_parameters=report.trained_parameters,
                adapter_share=report.adapter_share,
                step_seconds=float(np.median(seconds)) / count,
                temporary_bytes=int(memory.temp_size_in_bytes) // count,
                diverged=diverged.get(i),
            )
            for i, config in enumerate(self.configs)
        ]

    def next_batch(self) -> Batch:
        """Returns the runs' next batches, stacked along a new first axis."""
        return _stack([next(batches) for batches in self.batches], np)

    def step(
        self, state: RunState, base: PyTree, batch: Batch, numbers: dict[str, PyTree]
    ) -> tuple[RunState, Any]:
        """Takes one run's step.

        Returns:
            The new state, and a pair: the task loss, and the metrics that must be finite for the
            run to count as not diverged.
        """
        step_function = make_train_step(
            self.setup.graph,
            task_type_of(self.config.task).loss_fn(self.config.task),
            self.setup.optimizer_at(numbers["rate"], numbers["scales"]),
            aux_weight=numbers["aux_weight"],
            grad_accum_steps=self.config.train.grad_accum_steps,
        )
        state, metrics = step_function(state, base, batch)
        looked_at = [metrics[name] for name in ("task_loss", "loss", "grad_norm")]
        return state, (metrics["task_loss"], jnp.stack(looked_at))

    def switched(self, state: RunState, number: int) -> RunState:
        """Applies the method's phase change after step `number` to every run."""
        change, runs = self.setup.phase_changes[number], range(len(self.configs))
        return _stack([change(_one(state, i), self.base_of(i)) for i in runs])

    def base_of(self, i: int) -> PyTree:
        """Returns the frozen arrays of run `i`."""
        return jax.tree.map(
            lambda leaf, axis: leaf if axis is None else leaf[i], self.base, self.base_axes
        )

    def evaluate(
        self, state: RunState, places: Sequence[int] | None = None
    ) -> dict[int, dict[str, float]]:
        """Returns the scores of all runs, or of those with the indices `places`."""
        places = range(len(self.configs)) if places is None else places
        if not places:
            return {}
        step = jax.jit(self.eval_step)
        outputs = [step(state, self.base, batch) for batch in self.held_out]
        scores = {}
        for place in places:
            # The step has run for all runs at once, so `evaluate` only collects this run's results.
            run_outputs = iter([_one(each, place) for each in outputs])
            done = evaluate(
                lambda *_, run_outputs=run_outputs: next(run_outputs),
                {},
                None,
                self.held_out,
                self.config.task,
            )
            scores[place] = done.scores
        return scores

    def eval_step(self, state: RunState, base: PyTree, batch: Batch) -> Any:
        """Returns all runs' sums and outputs on one batch."""
        step = self.setup.eval_step

        def one(state: RunState, base: PyTree) -> Any:
            return step(state.trainable, state.frozen(base), batch)

        return jax.vmap(one, in_axes=(0, self.base_axes))(state, base)


def finite_only(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns the scores that are finite.

    >>> finite_only({"loss": float("nan"), "accuracy": 0.5})
    {'accuracy': 0.5}
    """
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def _one(stacked: PyTree, i: int) -> PyTree:
    return jax.tree.map(lambda a: a[i], stacked)


def _stack(trees: Sequence[PyTree], library: ModuleType = jnp) -> PyTree:
    return jax.tree.map(lambda *leaves: library.stack(leaves), *trees)


def _stack_different(trees: Sequence[PyTree]) -> tuple[PyTree, PyTree]:
    """Stacks trees of the same shapes; returns the stacked tree and its vmap axes.

    A leaf that is the same array object in all trees is kept unstacked, with axis None.
    """

    def is_one(leaves: tuple) -> bool:
        return all(leaf is leaves[0] for leaf in leaves)

    def stack(*leaves: Any) -> Any:
        return leaves[0] if is_one(leaves) else jnp.stack(leaves)

    axes = jax.tree.map(lambda *leaves: None if is_one(leaves) else 0, *trees)
    return jax.tree.map(stack, *trees), axes
