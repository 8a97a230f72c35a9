"""Trains a model on a bundle's batches with the package's train step and records the results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.interop.modules import ModuleStart, read_head, read_starts, write_head, write_starts
from goat_jax.nn.dense import merge_model, split_model
from goat_jax.optim.optimizer import OptimizerConfig, make_optimizer
from goat_jax.parity.model_bundle import ModelRun
from goat_jax.parity.model_inputs import Inputs
from goat_jax.training.losses import LossFn
from goat_jax.training.state import RunState
from goat_jax.training.step import (
    EvalStep,
    Metrics,
    TrainStep,
    make_eval_step,
    make_train_step,
    sum_of_aux,
)


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The results of a run.

    Attributes:
        per_step: loss, task_loss, aux_loss (unweighted) and grad_norm by name, each (steps,).
        loads: the fraction of the tokens at every expert of every module, (steps, ...).
        logits_first: the logits of batch 0 before the first step.
        logits_after: the logits of batch 0 after the last step.
        loss_after: the task loss on batch 0 after the last step.
        starts: the adapters after the last step, by module.
        head: the tensors of the head after the last step, by PyTorch name.
    """

    per_step: dict[str, np.ndarray]
    loads: np.ndarray
    logits_first: np.ndarray
    logits_after: np.ndarray
    loss_after: np.ndarray
    starts: dict[str, ModuleStart]
    head: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A model with adapters and its jitted steps, to train from any initial values.

    Attributes:
        run: the model run of the bundle.
        model: the model with adapters; every training overwrites their values.
        batches: the completed batches.
        train_step: the jitted train step, shared by all trainings.
        eval_step: the jitted eval step, shared by all trainings.
    """

    run: ModelRun
    model: nnx.Module
    batches: list[Inputs]
    train_step: TrainStep
    eval_step: EvalStep

    @classmethod
    def create(
        cls, run: ModelRun, model: nnx.Module, loss_fn: LossFn, batches: list[Inputs]
    ) -> Trainer:
        """Makes a trainer with its steps, which are not compiled yet."""
        graph, _, _ = split_model(model)
        steps = _make_steps(graph, loss_fn, run.optimizer, run.steps, run.aux_coef)
        return cls(run, model, batches, *steps)

    def train(self, starts: Mapping[str, ModuleStart]) -> TrainingResult:
        """Trains from these adapters and the bundle's initial head on all batches, in order."""
        write_starts(self.model, starts)
        write_head(self.model, self.run.head, self.run.initial.floats)
        graph, trainable, base = split_model(self.model)
        batches = [{k: jnp.asarray(v) for k, v in batch.items()} for batch in self.batches]
        _, logits_first = self.eval_step(trainable, base, batches[0])
        optimizer = make_optimizer(self.run.optimizer, self.run.steps)
        state = RunState.create(trainable, optimizer, jax.random.key(0))
        history = []
        for batch in batches:
            state, metrics = self.train_step(state, base, batch)
            history.append(_numbers(metrics))
        sums, logits_after = self.eval_step(state.trainable, base, batches[0])
        trained = merge_model(graph, state.trainable, base)
        return TrainingResult(
            per_step={name: np.stack([one[name] for one in history]) for name in _PER_STEP},
            loads=np.stack([one["loads"] for one in history]),
            logits_first=np.asarray(logits_first),
            logits_after=np.asarray(logits_after),
            loss_after=np.asarray(sums["loss"] / sums["count"]),
            starts=read_starts(trained),
            head=read_head(trained, self.run.head),
        )


@lru_cache(maxsize=4)
def _make_steps(
    graph: nnx.GraphDef,
    loss_fn: LossFn,
    config: OptimizerConfig,
    total_steps: int,
    aux_coef: float,
) -> tuple[TrainStep, EvalStep]:
    """Makes the jitted steps; bundles that differ only in their numbers share compiled steps."""
    optimizer = make_optimizer(config, total_steps)
    train_step = make_train_step(graph, loss_fn, optimizer, aux_weight=aux_coef)
    return train_step, make_eval_step(graph, loss_fn)


_PER_STEP = ("loss", "task_loss", "aux_loss", "grad_norm")


def _numbers(metrics: Metrics) -> dict[str, np.ndarray]:
    reports = metrics["reports"]
    loads = [np.asarray(report.load).ravel() for report in reports.values()]
    per_step = {name: np.asarray(metrics[name]) for name in _PER_STEP}
    return per_step | {
        "aux_loss": np.asarray(sum_of_aux(reports)),
        "loads": np.concatenate(loads),
    }
