"""Movement of kernels in runs of the study, beside full fine-tuning with the same rows and order.

For each method one run at its chosen learning rate is trained again. The first step of gradient
descent is compared with full fine-tuning's, and so is what all steps together changed. Kernels of
routed layers are those on average (`goat_jax.analysis.alignment`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np

from goat_jax.analysis.alignment import compared, gradient_alignment, mean_kernels
from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.files import read_json, write_whole
from goat_jax.nn.dense import merge_model
from goat_jax.training.data import load_data, training_batches
from goat_jax.training.setup import TrainSetup, build
from goat_jax.training.state import RunState
from goat_jax.training.task_types import task_type_of
from goat_jax.training.vmapped_runs import RunVariant, with_variant
from studies.runs import SEEDS, TEST, Stages
from studies.tasks import FROZEN, FULL, ROWS, StudyTask

Kernels = Mapping[str, np.ndarray]
"""Module name pattern -> kernels (L, I, O)."""

BLOCKS = 8
"""Equal parts of the pretrained spectrum, largest singular values first."""


@dataclasses.dataclass(frozen=True)
class Movement:
    """Movement of one run's kernels. Numbers of layers are means over the layer's kernels.

    Attributes:
        first_cosine: cosine of the first step and full fine-tuning's, by layer (L,).
        first_length: length of the first step over full fine-tuning's, by layer (L,).
        expert_cosine: cosine of each expert's first step, mean over all kernels (E,).
        expert_length: length of each expert's first step, mean over all kernels (E,).
        cosine: cosine of the whole change and full fine-tuning's, by layer (L,).
        length: length of the whole change over full fine-tuning's, by layer (L,).
        blocks: shares of the change's energy in the parts of the pretrained kernels' left singular
            directions, mean over all kernels (`BLOCKS`,).
        effective_rank: exponential of the entropy of the change's squared singular values, mean
            over all kernels.
        entropy: mean entropy of the routers at every step, in nats.
        largest_load: largest share of tokens that an expert of a layer has at every step, mean
            over layers.
    """

    first_cosine: Sequence[float]
    first_length: Sequence[float]
    expert_cosine: Sequence[float]
    expert_length: Sequence[float]
    cosine: Sequence[float]
    length: Sequence[float]
    blocks: Sequence[float]
    effective_rank: float
    entropy: Sequence[float]
    largest_load: Sequence[float]


def movements(
    task: StudyTask, results: Mapping[str, Stages], data: Path, methods: Sequence[str]
) -> Iterator[tuple[str, Movement]]:
    """Trains a run of each method that the study has results of; full fine-tuning first.

    Full fine-tuning's own is that of another seed, which shows how near a run can be expected.

    Args:
        task: the task.
        results: method -> the study's results on the task.
        data: the folder of data sets.
        methods: labels of methods.
    """

    def trained(method: str, seed: int = SEEDS[0]) -> _Trained:
        return _trained(_chosen(task, method, results, data, seed))

    full = trained(FULL)
    yield FULL, _movement(trained(FULL, SEEDS[1]), full)
    for method in methods:
        if method not in (FROZEN, FULL):
            yield method, _movement(trained(method), full)


def _chosen(
    task: StudyTask, method: str, results: Mapping[str, Stages], data: Path, seed: int
) -> RunConfig:
    """Returns the config of a method's run on the test rows with a seed."""
    if not (runs := results.get(method, {}).get(TEST)):
        raise UserError(f"{method} has no results: run `python train/study.py run` for it first")
    rate = runs[0].variant.learning_rate
    config = with_variant(task.config(method, data), RunVariant(seed, rate))
    # As the study's runs, which share a compiled step.
    return dataclasses.replace(config, train=dataclasses.replace(config.train, num_buckets=1))


@dataclasses.dataclass(frozen=True)
class _Trained:
    first: Mapping[str, Any]
    before: Kernels
    after: Kernels
    entropy: Sequence[float]
    largest_load: Sequence[float]

    @cached_property
    def left(self) -> Kernels:
        """The left singular vectors (L, I, min(I, O)) of the kernels before training."""
        return {
            name: np.linalg.svd(kernels, full_matrices=False)[0]
            for name, kernels in self.before.items()
        }


def _trained(config: RunConfig) -> _Trained:
    data = load_data(config)
    config = config.over(len(data.rows))
    setup = build(config, data)
    batches = training_batches(config, data.rows)
    batch, state = next(batches), setup.state
    model = _model(setup, state)
    first = gradient_alignment(model, task_type_of(config.task).loss_fn(config.task), batch)
    before, entropy, largest = mean_kernels(model), [], []
    for step in range(1, config.train.total_steps + 1):
        state, metrics = setup.train_step(state, setup.base, batch)
        batch = next(batches)
        reports = jax.device_get(metrics["reports"]).values()
        if reports:
            entropy.append(float(np.mean([each.entropy.mean() for each in reports])))
            shares = [each.load / each.load.sum(-1, keepdims=True) for each in reports]
            largest.append(float(np.mean([share.max(-1).mean() for share in shares])))
        if step in setup.phase_changes:
            state = setup.phase_changes[step](state, setup.base)
    return _Trained(first, before, mean_kernels(_model(setup, state)), entropy, largest)


def _model(setup: TrainSetup, state: RunState) -> Any:
    return merge_model(setup.graph, state.trainable, state.frozen(setup.base))


def _movement(run: _Trained, full: _Trained) -> Movement:
    first, change = run.first.values(), _change(run)
    whole = [compared(change[name], of_full) for name, of_full in _change(full).items()]
    return Movement(
        first_cosine=_by_layer([each.mean.cosine for each in first]),
        first_length=_by_layer([each.mean.length for each in first]),
        expert_cosine=_by_expert([each.experts.cosine for each in first]),
        expert_length=_by_expert([each.experts.length for each in first]),
        cosine=_by_layer([each.cosine for each in whole]),
        length=_by_layer([each.length for each in whole]),
        blocks=_numbers(np.mean([_shares(full.left[k], change[k]) for k in change], axis=(0, 1))),
        effective_rank=float(np.mean([effective_rank(each) for each in change.values()])),
        entropy=_numbers(run.entropy),
        largest_load=_numbers(run.largest_load),
    )


def _change(run: _Trained) -> Kernels:
    return {name: run.after[name] - run.before[name] for name in run.before}


def _by_layer(values: Sequence[Any]) -> list[float]:
    return _numbers(np.mean(values, axis=0)) if values else []


def _by_expert(values: Sequence[Any]) -> list[float]:
    return _numbers(np.mean(values, axis=(0, 1))) if values else []


def _numbers(values: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _shares(left: np.ndarray, changes: np.ndarray) -> np.ndarray:
    """Returns the shares of the changes' energy along parts of the kernels' spectra, (L, BLOCKS).

    Args:
        left: the kernels' left singular vectors (L, I, min(I, O)).
        changes: the changes (L, I, O).
    """
    energy = np.square(np.swapaxes(left, -1, -2) @ changes).sum(-1)
    parts = np.stack([each.sum(-1) for each in np.array_split(energy, BLOCKS, axis=-1)], -1)
    return parts / np.maximum(parts.sum(-1, keepdims=True), np.finfo(np.float32).tiny)


def effective_rank(matrices: np.ndarray) -> float:
    """Returns the exponential of the entropy of the squared singular values, mean of (L, I, O).

    >>> effective_rank(np.stack([np.eye(4), np.eye(4)])).__round__(3)
    4.0
    """
    energy = np.square(np.linalg.svd(matrices, compute_uv=False))
    shares = energy / energy.sum(-1, keepdims=True)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(-1)
    return float(np.exp(entropy).mean())


def movement_file(folder: Path, task: str) -> Path:
    """Returns the file with a task's movements."""
    return folder / f"movement_{task}.json"


def keep_movements(found: Mapping[str, Movement], path: Path) -> None:
    """Adds movements to a task's file, one line for each method in the order of `ROWS`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        found = {**read_movements(path), **found}
    lines = [
        f"{json.dumps(method)}: {json.dumps(dataclasses.asdict(found[method]))}"
        for method in ROWS
        if method in found
    ]
    write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n")


def read_movements(path: Path) -> dict[str, Movement]:
    """Reads what `keep_movements` wrote."""
    return {method: Movement(**each) for method, each in read_json(path).items()}
