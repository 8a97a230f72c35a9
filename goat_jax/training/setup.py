"""Builds what a run needs besides its data: model, adapters, optimizer and jitted steps."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding

from goat_jax.adapters.spec import AdapterSpec
from goat_jax.config.run import DTYPES, RunConfig
from goat_jax.errors import UserError
from goat_jax.injection.inject import inject
from goat_jax.injection.quantize_base import QuantizeReport, quantize_base
from goat_jax.injection.report import InjectReport
from goat_jax.injection.svd_cache import SvdStore
from goat_jax.models.load import Loaded, load_model
from goat_jax.nn.dense import merge_model, split_model
from goat_jax.nn.model import Model
from goat_jax.nn.named_modules import find_modules, find_stacks
from goat_jax.optim.optimizer import make_optimizer, schedule_of
from goat_jax.optim.pairs import scales_of
from goat_jax.optim.scaling_alignment import align, alignment_ratios, scaling_alignment
from goat_jax.pretrained.fingerprint import fingerprint
from goat_jax.pretrained.resolve import find_model
from goat_jax.sharding.rules import ShardingRules
from goat_jax.training.checks import check, model_options
from goat_jax.training.data import TaskData, load_data, training_batches
from goat_jax.training.init_gradients import kernel_gradients
from goat_jax.training.phase_change import (
    PhaseChange,
    make_phase_change,
    starting_constants,
)
from goat_jax.training.shardings import (
    RunShardings,
    set_activation_shardings,
    sharding_rules_of,
    start_state,
)
from goat_jax.training.state import RunState
from goat_jax.training.step import EvalStep, TrainStep, make_eval_step, make_train_step
from goat_jax.training.task_types import task_type_of
from goat_jax.training.tokens import prepare_tokens, tokens_note, tokens_of
from goat_jax.typing import Array, Batch, Key, PyTree


@dataclasses.dataclass(frozen=True)
class TrainSetup:
    """A model with its adapters, ready to run.

    Attributes:
        graph: the model's static structure (`nn.dense.split_model`).
        base: the frozen arrays.
        state: the run's state at step 0.
        shardings: the shardings of the run's arrays; None on one device.
        train_step: the jitted training step.
        model_step: the training step without rematerialization, which is only traced, to count the
            FLOPs that the model needs; `train_step` itself if nothing is rematerialized.
        eval_step: the jitted evaluation step.
        schedule: number of optimizer steps done -> learning rate of the next one.
        scales: the adapters' scales at initialization (`pairs.scales_of`).
        optimizer_at: (factor of the learning rate, scales) -> the optimizer.
        inject_report: the modules that were adapted, with their parameter counts.
        quantize_report: the cost of quantizing the base; None if it is not quantized.
        names: path of a linear module -> its full name per layer.
        patterns: path of a linear module -> its name with ``{}`` in place of the layer.
        kind: the model's kind, such as "language model".
        vocabulary: the model's vocabulary size; None if it does not read tokens.
        fresh: the names of the parameters that the checkpoint did not have.
        notes: one-line remarks about the checkpoint.
        phase_changes: number of optimizer steps done -> the method's phase change at that step.
        base_fingerprint: the SHA-256 of the pretrained weights.
        residual_norms: module name pattern -> norms of its frozen kernels, one per layer.
    """

    graph: nnx.GraphDef[Model]
    base: PyTree
    state: RunState
    shardings: RunShardings | None
    train_step: TrainStep
    model_step: TrainStep
    eval_step: EvalStep
    schedule: optax.Schedule
    scales: PyTree
    optimizer_at: Callable[[float | Array, PyTree], optax.GradientTransformation]
    inject_report: InjectReport
    quantize_report: QuantizeReport | None
    names: dict[tuple, list[str]]
    patterns: dict[tuple, str]
    kind: str
    vocabulary: int | None
    fresh: tuple[str, ...]
    notes: tuple[str, ...]
    phase_changes: Mapping[int, PhaseChange]
    base_fingerprint: str
    residual_norms: dict[str, list[float]]

    @property
    def batch_parts(self) -> int:
        """The number of parts that the mesh partitions a batch into; 1 without a mesh."""
        return 1 if self.shardings is None else self.shardings.rules.batch_parts

    def put_whole(self, batch: Batch) -> Batch:
        """Puts a complete batch on the mesh, if there is one."""
        return batch if self.shardings is None else self.shardings.put_whole(batch)


def build(
    config: RunConfig,
    data: TaskData | None = None,
    *,
    training: bool = True,
    factors: bool = True,
) -> TrainSetup:
    """Loads the model, injects the adapters and makes the steps; nothing is compiled yet.

    Args:
        config: the run's config.
        data: the run's data, if it is loaded already; its loading has then checked the config.
            Methods that initialize from gradients read their batches from it.
        training: whether the run is to be trained. Without it the state has no optimizer state,
            and a training step changes nothing.
        factors: whether the adapters' factors get their initial values. Without them the state
            holds zeros in their place, for a checkpoint to replace.

    Raises:
        UserError: anything in the config that does not fit.
    """
    if data is None and training:  # a run that was trained has been checked
        check(config)
    spec, rules = config.adapter.spec(), sharding_rules_of(config)
    head_key, adapter_key, run_key = _three(jax.random.key(config.train.seed))
    loaded = _load(config, spec, rules, head_key)
    # Before the adapters: the gradients are those of the pretrained model.
    gradients = _gradients(config, spec, loaded, data)
    svds = config.svd.store
    report = adapt(loaded.model, config, spec, adapter_key, gradients, rules, factors, svds)
    # Before quantization, which removes the kernels.
    norms = residual_norms(loaded.model, None if rules is None else rules.replicated)
    quantized = quantized_base(loaded.model, config, rules)
    set_activation_shardings(loaded.model, rules)
    start = _start(config, spec, loaded.model, rules, run_key, training)
    train_step, model_step, eval_step, phase_changes = _steps(config, spec, start)
    modules = find_modules(loaded.model)
    notes = (*loaded.notes, attention_note(loaded.model, config), svds.note())
    assert loaded.weights is not None  # only a random model has none
    return TrainSetup(
        graph=start.graph,
        base=start.base,
        state=start.state,
        shardings=start.shardings,
        train_step=train_step,
        model_step=model_step,
        eval_step=eval_step,
        scales=start.scales,
        optimizer_at=lambda rate, scales: method_optimizer(config, spec, scales, rate),
        schedule=schedule_of(config.optimizer, config.train.total_steps),
        inject_report=report,
        quantize_report=quantized,
        names={ref.path: ref.names() for ref in modules},
        patterns={ref.path: ref.pattern for ref in modules},
        kind=loaded.kind,
        vocabulary=vocabulary_of(loaded),
        fresh=loaded.fresh,
        notes=tuple(filter(None, notes)),
        phase_changes=phase_changes,
        base_fingerprint=fingerprint(loaded.weights),
        residual_norms=norms,
    )


@jax.jit
def _three(key: Key) -> tuple[Key, ...]:
    return tuple(jax.random.split(key, 3))


def _load(config: RunConfig, spec: AdapterSpec, rules: ShardingRules | None, key: Key) -> Loaded:
    """Loads the pretrained model, each array straight to its devices, with its head and tokens."""
    path = find_model(config.model.path)
    loaded = load_model(
        path,
        key=key,
        dtype=DTYPES[config.model.dtype],
        sharding=None if rules is None else rules.parameter,
        **model_options(config),
    )
    task_type_of(config.task).prepare(config.task, loaded, path)
    tokens, place = tokens_of(config, vocabulary_of(loaded)), None
    if rules is not None:
        place = lambda ref: rules.parameter(ref, ref.module.matrix)  # noqa: E731
    prepare_tokens(loaded.model, config, spec, tokens, place)
    notes = (*loaded.notes, tokens_note(config, tokens))
    return dataclasses.replace(loaded, notes=tuple(filter(None, notes)))


class _Start(NamedTuple):
    """The arrays of a run before its first step.

    Attributes:
        graph: the model's static structure.
        base: the frozen arrays.
        state: the run's state at step 0.
        shardings: the shardings of both; None on one device.
        scales: the adapters' scales before `aligned` moved them into the factors.
        optimizer: the optimizer of the state.
    """

    graph: nnx.GraphDef[Model]
    base: PyTree
    state: RunState
    shardings: RunShardings | None
    scales: PyTree
    optimizer: optax.GradientTransformation


def _start(
    config: RunConfig,
    spec: AdapterSpec,
    model: Model,
    rules: ShardingRules | None,
    key: Key,
    training: bool,
) -> _Start:
    """Splits an adapted model and makes the state; without `training` no optimizer state."""
    graph, trainable, base = split_model(model)
    # Before `aligned`, which moves the scales into the factors.
    scales = scales_of(trainable, base)
    optimizer = method_optimizer(config, spec, scales) if training else optax.set_to_zero()
    trainable, base = aligned(config, trainable, base)
    constants = starting_constants(model, spec.phases)
    state, base, shardings = start_state(model, rules, trainable, base, optimizer, key, constants)
    return _Start(graph, base, state, shardings, scales, optimizer)


def _steps(
    config: RunConfig, spec: AdapterSpec, start: _Start
) -> tuple[TrainStep, TrainStep, EvalStep, dict[int, PhaseChange]]:
    """Makes a run's training step, with and without remat, evaluation step and phase changes."""
    loss_fn, shardings = task_type_of(config.task).loss_fn(config.task), start.shardings

    def step_of(graph: nnx.GraphDef[Model]) -> TrainStep:
        return make_train_step(
            graph,
            loss_fn,
            start.optimizer,
            aux_weight=spec.aux_weight,
            grad_accum_steps=config.train.grad_accum_steps,
            shardings=None if shardings is None else shardings.in_step(),
        )

    train_step = step_of(start.graph)
    model_step = train_step if config.model.remat == "none" else step_of(_without_remat(start))
    eval_step = make_eval_step(
        start.graph, loss_fn, None if shardings is None else shardings.in_evaluation()
    )
    if spec.phases.change_step is None:
        return train_step, model_step, eval_step, {}
    where = None if shardings is None else shardings.state
    change = make_phase_change(start.graph, start.optimizer, spec.phases, where)
    return train_step, model_step, eval_step, {spec.phases.change_step: change}


def _without_remat(start: _Start) -> nnx.GraphDef[Model]:
    """Returns the model's static structure without rematerialization."""
    model = merge_model(start.graph, start.state.trainable, start.base)
    for stack in find_stacks(model):
        stack.remat = "none"
    return split_model(model)[0]


def adapt(
    model: Model,
    config: RunConfig,
    spec: AdapterSpec,
    key: Key,
    gradients: Mapping[str, Array] | None = None,
    rules: ShardingRules | None = None,
    factors: bool = True,
    svds: SvdStore | None = None,
) -> InjectReport:
    """Attaches the adapters of a config to a model, in place.

    Args:
        model: the pretrained model, without adapters.
        config: the run's config.
        spec: the config's adapter spec.
        key: PRNG key of the adapters' initialization.
        gradients: module name -> gradient of its kernel, for methods that initialize from it.
        rules: the sharding rules; None for one device.
        factors: whether the factors get their initial values, as for `build`.
        svds: the store of decompositions; None for a new one of the config.
    """
    set_computation(model, config)
    return inject(
        model,
        spec,
        config.adapter.target_modules,
        key=key,
        overrides=config.adapter.overrides,
        modules_to_save=config.adapter.modules_to_save,
        gradients=gradients,
        sharder=rules,
        svds=svds or config.svd.store,
        factors=factors,
    )


def quantized_base(
    model: nnx.Module, config: RunConfig, rules: ShardingRules | None = None
) -> QuantizeReport | None:
    """Quantizes the frozen kernels in place and reports the cost; None if the config has none."""
    kind = config.model.quantize
    return None if kind == "none" else quantize_base(model, kind, rules)


def set_computation(model: Model, config: RunConfig) -> None:
    """Sets the rematerialization policy of the model's blocks, and its way of attention."""
    for stack in find_stacks(model):
        stack.remat = config.model.remat
    model.attention = dataclasses.replace(model.attention, way=config.model.attention)


def attention_note(model: Model, config: RunConfig) -> str | None:
    """Returns the line that names the run's way of attention; None for the plain one of CPUs.

    Raises:
        UserError: the config names a way that cannot do what the model needs on these devices.
    """
    return model.attention.note(model.attention_need(config.train.max_length, config.model.dtype))


def aligned(
    config: RunConfig, trainable: dict[str, PyTree], base: PyTree
) -> tuple[dict[str, PyTree], PyTree]:
    """Returns trainable and base trees with the adapters' scales moved into the factors.

    That is done only if the config sets a `forward_scale`; otherwise both trees stay as they are.
    """
    forward = config.adapter.forward_scale
    return (trainable, base) if forward is None else align(trainable, base, forward)


def method_optimizer(
    config: RunConfig, spec: AdapterSpec, scales: PyTree, rate: float | Array = 1.0
) -> optax.GradientTransformation:
    """Makes the method's optimizer.

    Args:
        config: the run's config.
        spec: the config's adapter spec.
        scales: the adapters' scales before `aligned` moved them; may be traced.
        rate: the factor of the learning rate; may be traced.
    """
    steps, forward = config.train.total_steps, config.adapter.forward_scale
    optimizer = make_optimizer(config.optimizer, steps, spec.transform, scales, rate)
    if forward is None:
        return optimizer
    return scaling_alignment(optimizer, alignment_ratios(scales, forward))


def _gradients(
    config: RunConfig, spec: AdapterSpec, loaded: Loaded, data: TaskData | None
) -> dict[str, Array] | None:
    """Returns the mean kernel gradients of the run's first training batches.

    None for methods that do not initialize from gradients.
    """
    count = spec.initializer.gradient_batches
    if not count:
        return None
    if jax.process_count() > 1:
        raise UserError(
            f"{config.adapter.method} starts from a gradient that only a single process can "
            "compute: start one process"
        )
    set_computation(loaded.model, config)
    rows = (data or load_data(config)).rows
    batches = itertools.islice(training_batches(config, rows), count)
    loss_fn = task_type_of(config.task).loss_fn(config.task)
    return kernel_gradients(loaded.model, loss_fn, batches, config.adapter.target_modules)


def vocabulary_of(loaded: Loaded) -> int | None:
    """Returns a model's vocabulary size; None if it does not read tokens."""
    return getattr(loaded.model.config, "vocab_size", None)


def residual_norms(
    model: nnx.Module, replicated: NamedSharding | None = None
) -> dict[str, list[float]]:
    """Returns the Frobenius norm of every adapted frozen kernel, per layer.

    A continued run compares the norms, because another residual has other norms.

    Args:
        model: the model with its adapters.
        replicated: the replicated sharding on a mesh; None for one device.

    Returns:
        module name pattern -> one norm per layer.
    """
    norms: dict[str, list[float]] = {}
    for ref in find_modules(model):
        if ref.module.adapter is not None:
            kernel = ref.module.kernel[...]
            layers = np.asarray(_norms(kernel, replicated)).reshape(-1)
            norms.setdefault(ref.pattern, []).extend(map(float, layers))
    return norms


@partial(jax.jit, static_argnums=1)
def _norms(kernel: Array, replicated: NamedSharding | None) -> Array:
    norms = jnp.sqrt(jnp.square(kernel.astype(jnp.float32)).sum(-1).sum(-1))
    return norms if replicated is None else jax.lax.with_sharding_constraint(norms, replicated)
