"""Abstract runs: model, adapters, optimizer and steps at full size, as shapes without weights.

Everything is traced as in a real run and nothing is computed. The parameters and memory of a model
of any size can therefore be counted, checked and planned on a small machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from goat_jax.adapters.spec import AdapterSpec
from goat_jax.config.run import DTYPES, RunConfig
from goat_jax.injection.inject import inject
from goat_jax.injection.report import InjectReport
from goat_jax.injection.targets import ALL_LINEAR, Targets
from goat_jax.models.known_sizes import model_config
from goat_jax.models.load import random_model
from goat_jax.models.registry import architecture_of
from goat_jax.nn.dense import split_model
from goat_jax.nn.named_modules import find_modules
from goat_jax.optim.pairs import scales_of
from goat_jax.sharding.rules import ShardingRules, model_shardings, tree_shardings
from goat_jax.training.checks import model_options
from goat_jax.training.phase_change import starting_constants
from goat_jax.training.setup import (
    adapt,
    aligned,
    attention_note,
    method_optimizer,
    quantized_base,
    vocabulary_of,
)
from goat_jax.training.shardings import RunShardings, set_activation_shardings
from goat_jax.training.state import RunState
from goat_jax.training.step import EvalStep, TrainStep, make_eval_step, make_train_step
from goat_jax.training.task_types import check_model, task_type_of
from goat_jax.training.tokens import abstract_tokens, prepare_tokens
from goat_jax.typing import Array, Batch, PyTree


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """A run whose arrays are `jax.ShapeDtypeStruct`.

    Attributes:
        graph: the model's static structure, as in `setup.TrainSetup`.
        base: the frozen arrays.
        state: the state at step 0, optimizer state included.
        batch: a training batch of the greatest length.
        eval_batch: an evaluation batch of the greatest length.
        train_step: the jitted training step; unlike in a real run, it computes the optimizer's
            constants inside.
        eval_step: the jitted evaluation step.
        inject_report: the modules that were adapted, with their parameter counts.
        kind: the model's kind, such as "language model".
        attention: the line of `setup.attention_note`.
    """

    graph: nnx.GraphDef
    base: PyTree
    state: RunState
    batch: Batch
    eval_batch: Batch
    train_step: TrainStep
    eval_step: EvalStep
    inject_report: InjectReport
    kind: str
    attention: str | None

    def check(self) -> dict[str, Any]:
        """Traces a training and an evaluation step; returns the shapes of the training metrics.

        Raises:
            ValueError: the training step changes a shape or dtype of the state.
        """
        after, metrics = jax.eval_shape(self.train_step, self.state, self.base, self.batch)
        jax.eval_shape(self.eval_step, self.state.trainable, self.base, self.eval_batch)
        if jax.tree.map(_type, after) != jax.tree.map(_type, self.state):
            raise ValueError("a training step changes the shapes or types of the run's state")
        return metrics


def _type(array: jax.ShapeDtypeStruct) -> tuple:
    return array.shape, array.dtype


def abstract_run(
    config: RunConfig,
    model: str | Path | None = None,
    rules: ShardingRules | None = None,
    device: Any = None,
) -> AbstractRun:
    """Traces the run that `setup.build` would build, at full size and within seconds.

    Args:
        config: the run's config.
        model: the model whose sizes are used (`models.known_sizes.model_config`): a folder with a
            config.json, or a name such as "roberta-large"; ``config.model.path`` if None.
        rules: the sharding rules of the steps' mesh, whose devices need not exist; None for
            one device.
        device: the device that the attention is chosen for, which need not exist; None for the
            mesh's first, or jax's default.

    Raises:
        UserError: anything in the config that does not fit.

    >>> from goat_jax.config.run import AdapterConfig, ModelConfig
    >>> from goat_jax.data.tasks.registry import language_files
    >>> config = RunConfig(
    ...     ModelConfig("llama-2-7b", dtype="bfloat16"), language_files("a.jsonl", "b.jsonl"),
    ...     AdapterConfig("goat", total_rank=32, modules_to_save=()))
    >>> run = abstract_run(config)
    >>> run.inject_report.total_parameters, run.batch["input_ids"].shape
    (6827479040, (32, 128))
    """
    config = config.over(config.train.batch_size)  # no shape depends on the number of steps
    source = config.model.path if model is None else model
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(source)))
    hf = model_config(source)
    kind = architecture_of(hf, Path(source)).kind
    check_model(config.task, kind, str(source))
    spec, problem = config.adapter.spec(), task_type_of(config.task)
    traced: dict[str, Any] = {}

    def start() -> tuple[RunState, PyTree]:  # in the order of `setup.build`, which says why
        head_key, adapter_key, run_key = jax.random.split(jax.random.key(config.train.seed), 3)
        dtype = DTYPES[config.model.dtype]
        loaded = random_model(hf, key=head_key, dtype=dtype, **model_options(config))
        tokens = abstract_tokens(config, vocabulary_of(loaded))
        prepare_tokens(loaded.model, config, spec, tokens)
        gradients = _Gradients(loaded.model) if spec.initializer.gradient_batches else None
        traced["report"] = adapt(loaded.model, config, spec, adapter_key, gradients)
        quantized_base(loaded.model, config)
        loaded.model.attention = dataclasses.replace(loaded.model.attention, device=device)
        set_activation_shardings(loaded.model, rules)
        traced["attention"] = attention_note(loaded.model, config)
        if rules is not None:
            traced["known"] = model_shardings(loaded.model, rules)
        traced["graph"], trainable, base = split_model(loaded.model)
        optimizer = method_optimizer(config, spec, scales_of(trainable, base))
        trainable, base = aligned(config, trainable, base)
        constants = starting_constants(loaded.model, spec.phases)
        return RunState.create(trainable, optimizer, run_key, constants), base

    state, base = jax.eval_shape(start)
    graph, loss_fn = traced["graph"], problem.loss_fn(config.task)
    shardings = None
    if rules is not None:
        known, replicated = traced["known"], rules.replicated
        where = tree_shardings(state, known, replicated)
        shardings = RunShardings(rules, known, tree_shardings(base, known, replicated), where)
    return AbstractRun(
        graph=graph,
        base=base,
        state=state,
        batch=batch_shapes(config, config.train.batch_size),
        eval_batch=batch_shapes(config, config.train.eval_batch_size),
        train_step=_train_step(config, graph, spec, shardings),
        eval_step=make_eval_step(
            graph, loss_fn, None if shardings is None else shardings.in_evaluation()
        ),
        inject_report=traced["report"],
        kind=kind,
        attention=traced["attention"],
    )


def count(
    model: str | Path, spec: AdapterSpec, target_modules: Targets = ALL_LINEAR, **options: Any
) -> InjectReport:
    """Counts the parameters that a method adds to a model, from the model's config alone.

    Args:
        model: a folder or a name, as for `abstract_run`.
        spec: the adapter spec.
        target_modules: the modules to adapt, as for `goat_jax.injection.inject.inject`.
        options: fields of the model's config, such as num_labels.

    >>> from goat_jax.adapters.methods import method_spec
    >>> f"{count('roberta-large', method_spec('goat', total_rank=32)).adapter_share:.2%}"
    '4.48%'
    """
    hf, traced = model_config(model), {}

    def start() -> None:
        key = jax.random.key(0)
        loaded = random_model(hf, key=key, dtype=jax.numpy.bfloat16, **options)
        gradients = _Gradients(loaded.model) if spec.initializer.gradient_batches else None
        traced["report"] = inject(loaded.model, spec, target_modules, key=key, gradients=gradients)

    jax.eval_shape(start)
    return traced["report"]


def _train_step(
    config: RunConfig, graph: nnx.GraphDef, spec: AdapterSpec, shardings: RunShardings | None
) -> TrainStep:
    """Makes the run's training step.

    A real run's optimizer has the adapters' scales as constants. Here the scales have no values
    outside of the trace, so the optimizer is made inside the step.
    """

    def step(state: RunState, base: PyTree, batch: Batch) -> tuple[RunState, dict[str, Any]]:
        optimizer = method_optimizer(config, spec, scales_of(state.trainable, base))
        step_function = make_train_step(
            graph,
            task_type_of(config.task).loss_fn(config.task),
            optimizer,
            aux_weight=spec.aux_weight,
            grad_accum_steps=config.train.grad_accum_steps,
        )
        return step_function(state, base, batch)

    return jax.jit(step, donate_argnums=0, **({} if shardings is None else shardings.in_step()))


def batch_shapes(config: RunConfig, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch with `rows` rows of the greatest length.

    >>> from goat_jax.config.run import ModelConfig
    >>> from goat_jax.data.tasks.registry import digits
    >>> batch_shapes(RunConfig(ModelConfig("m"), digits(image_size=8)), 5)["pixel_values"].shape
    (5, 8, 8, 3)
    """
    length = config.train.max_length
    blank = task_type_of(config.task).one_row(config.task, config.model.path, length)
    one = blank.gather(np.zeros(1, int), length)
    return {
        name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
        for name, array in one.items()
    }


class _Gradients(Mapping[str, Array]):
    """Mapping from linear layers to zero gradients, each made on access."""

    def __init__(self, model: nnx.Module):
        self._refs = {name: ref for ref in find_modules(model) for name in ref.names()}

    def __getitem__(self, name: str) -> Array:
        kernel = self._refs[name].module.kernel
        return jax.numpy.zeros(kernel.shape[-2:], jax.numpy.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)


def abstract_model(config: RunConfig) -> nnx.Module:
    """Returns a config's model with shapes in place of arrays; reads no weights."""
    hf, options, key = model_config(config.model.path), model_options(config), jax.random.key(0)
    return nnx.eval_shape(lambda: random_model(hf, key=key, **options).model)


def kernel_shapes(config: RunConfig) -> dict[str, tuple[int, int]]:
    """Returns the kernel shapes (I, O) of a config's model by module name; reads no weights."""
    return {
        name: (ref.module.kernel.shape[-2], ref.module.kernel.shape[-1])
        for ref in find_modules(abstract_model(config))
        for name in ref.names()
    }
