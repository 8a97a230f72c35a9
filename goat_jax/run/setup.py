"""From a `RunConfig` to everything a run needs: model, data, optimizer, jitted steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from goat_jax.config import DTYPES, RunConfig
from goat_jax.data.batching import choose_buckets
from goat_jax.data.packaged_models import PACKAGED_MODELS
from goat_jax.data.pipeline import batches_per_epoch, eval_batches, train_iterator
from goat_jax.data.tasks import load_examples
from goat_jax.data.tokenize import Encoded, encode, load_tokenizer
from goat_jax.errors import UserError, nearest
from goat_jax.inject import InjectReport, inject
from goat_jax.layers import split_model
from goat_jax.models.fingerprint import fingerprint
from goat_jax.models.load import load_model
from goat_jax.models.safetensors import open_weights
from goat_jax.optim.optimizer import make_optimizer, schedule_of
from goat_jax.run.objectives import CLASSIFICATION, REGRESSION, Objective
from goat_jax.run.state import RunState
from goat_jax.run.step import EvalStep, TrainStep, make_eval_step, make_train_step
from goat_jax.sites import adapted_layers, find_sites, find_stacks
from goat_jax.typing import Batch, PyTree

PACKAGE = "package:"


@dataclasses.dataclass(frozen=True)
class Built:
    """A model with its adapters, ready to run.

    Attributes:
        graph, base: static structure and frozen arrays.
        state: at step 0.
        train_step, eval_step: jitted.
        schedule: optimizer steps done before -> learning rate.
        inject_report: what was adapted.
        layers: name pattern -> the layers that have an adapter.
        names: path of a linear module -> its full name per layer.
        fresh: parameters the checkpoint did not have.
        base_fingerprint: sha256 of the pretrained weights.
        residual_norms: module name -> norm of its frozen kernel per layer.
    """

    graph: Any
    base: PyTree
    state: RunState
    train_step: TrainStep
    eval_step: EvalStep
    schedule: optax.Schedule
    inject_report: InjectReport
    layers: dict[str, list[int]]
    names: dict[tuple, list[str]]
    fresh: tuple[str, ...]
    base_fingerprint: str
    residual_norms: dict[str, list[float]]


def model_folder(path: str) -> Path:
    """The folder of a model: a path, or ``package:NAME`` for one that a package brings.

    >>> model_folder("some/folder")
    PosixPath('some/folder')
    """
    if not path.startswith(PACKAGE):
        return Path(path).expanduser()
    name = path.removeprefix(PACKAGE)
    if name not in PACKAGED_MODELS:
        raise UserError(
            f"no packaged model {name!r}{nearest(name, PACKAGED_MODELS)}; "
            f"there are: {', '.join(PACKAGED_MODELS)}"
        )
    return PACKAGED_MODELS[name]()


def build(config: RunConfig) -> Built:
    """Loads the model, injects the adapters and makes the steps; nothing is compiled yet.

    Raises:
        UserError: anything in the config that does not fit.
    """
    folder = model_folder(config.model.path)
    spec = config.adapter.spec()
    head_key, adapter_key, run_key = jax.random.split(jax.random.key(config.train.seed), 3)
    if "num_labels" in config.model.options:
        raise UserError("model.options has num_labels: it follows from the task's labels, drop it")
    loaded = load_model(
        folder,
        key=head_key,
        dtype=DTYPES[config.model.dtype],
        num_labels=max(1, len(config.task.labels)),
        **config.model.options,
    )
    report = inject(
        loaded.model,
        spec,
        config.adapter.targets,
        key=adapter_key,
        overrides=config.adapter.overrides,
        train=config.adapter.train,
    )
    for stack in find_stacks(loaded.model):
        stack.remat = config.model.remat
    norms = residual_norms(loaded.model)
    graph, trainable, base = split_model(loaded.model)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    objective = objective_of(config)
    return Built(
        graph=graph,
        base=base,
        state=RunState.create(trainable, optimizer, run_key),
        train_step=make_train_step(
            graph,
            objective,
            optimizer,
            aux_weight=spec.aux_weight,
            accumulate=config.train.accumulate,
        ),
        eval_step=make_eval_step(graph, objective),
        schedule=schedule_of(config.optimizer, config.train.steps),
        inject_report=report,
        layers=adapted_layers(loaded.model),
        names={site.path: site.names() for site in find_sites(loaded.model)},
        fresh=loaded.fresh,
        base_fingerprint=fingerprint(open_weights(folder)),
        residual_norms=norms,
    )


def objective_of(config: RunConfig) -> Objective:
    """Classification, or regression for a task without class names."""
    return CLASSIFICATION if config.task.labels else REGRESSION


def residual_norms(model: Any) -> dict[str, list[float]]:
    """Frobenius norm of every adapted frozen kernel, per layer: tells one residual from another."""
    norms: dict[str, list[float]] = {}
    for site in find_sites(model):
        if site.module.adapter is not None:  # type: ignore[attr-defined]
            kernel = np.asarray(site.module.kernel[...], np.float64)  # type: ignore[attr-defined]
            layers = kernel.reshape(-1, *kernel.shape[-2:])
            norms.setdefault(site.pattern, []).extend(
                float(np.linalg.norm(layer)) for layer in layers
            )
    return norms


@dataclasses.dataclass(frozen=True)
class Data:
    """The task's rows as batches.

    Attributes:
        train: endless iterator of training batches, checkpointable.
        evaluation: every evaluation row once.
        train_rows, evaluation_rows, batches_per_epoch: sizes.
        truncated: training rows that lost their end.
    """

    train: Any
    evaluation: Sequence[Batch]
    train_rows: int
    evaluation_rows: int
    batches_per_epoch: int
    truncated: int


def load_data(config: RunConfig) -> Data:
    """Reads, tokenises and batches the task."""
    train, evaluation = (encode_split(config, split) for split in ("train", "evaluation"))
    size, length, shapes = (
        config.train.batch_size,
        config.train.max_length,
        config.train.shapes,
    )
    buckets = choose_buckets(train.lengths, size, length, max_shapes=shapes)
    return Data(
        train=train_iterator(train, size, config.train.seed, length, buckets=buckets),
        evaluation=evaluation_batches(config, evaluation),
        train_rows=len(train),
        evaluation_rows=len(evaluation),
        batches_per_epoch=batches_per_epoch(train, size),
        truncated=train.truncated,
    )


def evaluation_batches(config: RunConfig, rows: Encoded) -> Sequence[Batch]:
    """Every row once, in batches of the run's evaluation size."""
    size, length = config.train.eval_batch_size, config.train.max_length
    buckets = choose_buckets(rows.lengths, size, length, max_shapes=config.train.shapes)
    return eval_batches(rows, size, length, buckets=buckets)


def encode_split(config: RunConfig, split: str) -> Encoded:
    """The tokenised rows of the "train" or "evaluation" split."""
    tokenizer = load_tokenizer(model_folder(config.model.path))
    return encode(tokenizer, load_examples(config.task, split), config.train.max_length)
