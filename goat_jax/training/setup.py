"""Builds everything a run needs from its `RunConfig`: model, data, optimizer, jitted steps."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding

from goat_jax.adapters.spec import AdapterSpec
from goat_jax.config.run import DTYPES, RunConfig
from goat_jax.data.pipeline.batching import choose_buckets
from goat_jax.data.pipeline.dataset import Rows, with_known_ids
from goat_jax.data.pipeline.fingerprint import fingerprint as rows_fingerprint
from goat_jax.data.pipeline.loader import BatchIterator, eval_batches, train_iterator
from goat_jax.data.pipeline.overlap import note_of
from goat_jax.data.pipeline.token_ids import table_sizes
from goat_jax.data.pipeline.tokenize import late_tokenizer, load_tokenizer
from goat_jax.errors import UserError
from goat_jax.injection.inject import InjectReport, check_choices, inject
from goat_jax.injection.quantize_base import QuantizeReport, quantize_base
from goat_jax.models.load import Loaded, load_model
from goat_jax.models.registry import architecture_of
from goat_jax.nn.dense import split_model
from goat_jax.nn.model import Model
from goat_jax.nn.named_modules import find_modules, find_stacks
from goat_jax.optim.optimizer import make_optimizer, schedule_of, shortened_warmup
from goat_jax.optim.pairs import scales_of
from goat_jax.optim.scaling_alignment import align, alignment_ratios, scaling_alignment
from goat_jax.pretrained.end_tokens import token_ids
from goat_jax.pretrained.fingerprint import fingerprint
from goat_jax.pretrained.resolve import find_model, open_checkpoint
from goat_jax.sharding.rules import ShardingRules
from goat_jax.training.init_gradients import kernel_gradients
from goat_jax.training.phase_change import (
    PhaseChange,
    check_phase_change,
    make_phase_change,
    starting_constants,
)
from goat_jax.training.shardings import (
    RunShardings,
    keep_rows,
    sharding_rules_of,
    share_of_process,
    start_state,
)
from goat_jax.training.state import RunState
from goat_jax.training.step import EvalStep, TrainStep, make_eval_step, make_train_step
from goat_jax.training.task_types import check_model, task_type_of
from goat_jax.typing import Array, Batch, Key, PyTree, Tokenizer


@dataclasses.dataclass(frozen=True)
class TrainSetup:
    """A model with its adapters, ready to run.

    Attributes:
        graph: the model's static structure (`nn.dense.split_model`).
        base: the frozen arrays.
        state: the run's state at step 0.
        placed: the shardings of the run's arrays; None on one device.
        train_step: the jitted training step.
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
    placed: RunShardings | None
    train_step: TrainStep
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

    def put_whole(self, batch: Batch) -> Batch:
        """Puts a complete batch on the mesh, if there is one."""
        return batch if self.placed is None else self.placed.put_whole(batch)


def check(config: RunConfig) -> Any:
    """Checks everything that needs neither rows nor weights, including the model's shapes.

    Returns:
        The config of the model's architecture.

    Raises:
        UserError: anything in the config that does not fit.
    """
    spec = config.adapter.spec()
    sharding_rules_of(config)
    check_phase_change(spec.phases, config.train.steps)
    options, path = model_options(config), find_model(config.model.path)
    hf, _ = open_checkpoint(path)
    architecture = architecture_of(hf, path)
    check_model(config.task, architecture.kind, str(path))
    try:
        own = architecture.config_of(hf, **options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    shapes = nnx.eval_shape(lambda: architecture.build(own, rngs=nnx.Rngs(0)))
    adapter = config.adapter
    check_choices(shapes, spec, adapter.target_modules, adapter.overrides, adapter.modules_to_save)
    return own


def build(config: RunConfig, data: TaskData | None = None) -> TrainSetup:
    """Loads the model, injects the adapters and makes the steps; nothing is compiled yet.

    Args:
        config: the run's config.
        data: the run's data, if it is loaded already; its loading has then checked the config.
            Methods that initialize from gradients read their batches from it.

    Raises:
        UserError: anything in the config that does not fit.
    """
    if data is None:
        check(config)
    path = find_model(config.model.path)
    problem = task_type_of(config.task)
    spec, placement = config.adapter.spec(), sharding_rules_of(config)
    head_key, adapter_key, run_key = jax.random.split(jax.random.key(config.train.seed), 3)
    loaded = load_model(
        path,
        key=head_key,
        dtype=DTYPES[config.model.dtype],
        sharding=None if placement is None else placement.parameter,
        **model_options(config),
    )
    problem.prepare(config.task, loaded, path)
    # Before the adapters: the gradients are those of the pretrained model.
    gradients = _gradients(config, spec, loaded, data)
    report = adapt(loaded.model, config, spec, adapter_key, gradients, placement)
    # Before quantization, which removes the kernels.
    norms = residual_norms(loaded.model, None if placement is None else placement.whole)
    quantized = quantized_base(loaded.model, config)
    graph, trainable, base = split_model(loaded.model)
    # Before `aligned`, which moves the scales into the factors.
    scales = scales_of(trainable, base)
    optimizer = method_optimizer(config, spec, scales)
    trainable, base = aligned(config, trainable, base)
    constants = starting_constants(loaded.model, spec.phases)
    state, base, placed = start_state(
        loaded.model, placement, trainable, base, optimizer, run_key, constants
    )
    change_step = spec.phases.change_step
    state_lies = None if placed is None else placed.state
    loss_fn = problem.loss_fn(config.task)
    assert loaded.weights is not None  # only a random model has none
    return TrainSetup(
        graph=graph,
        base=base,
        state=state,
        placed=placed,
        train_step=make_train_step(
            graph,
            loss_fn,
            optimizer,
            aux_weight=spec.aux_weight,
            grad_accum_steps=config.train.grad_accum_steps,
            shardings=None if placed is None else placed.in_step(),
        ),
        eval_step=make_eval_step(
            graph, loss_fn, None if placed is None else placed.in_evaluation()
        ),
        scales=scales,
        optimizer_at=lambda rate, scales: method_optimizer(config, spec, scales, rate),
        schedule=schedule_of(config.optimizer, config.train.steps),
        inject_report=report,
        quantize_report=quantized,
        names={site.path: site.names() for site in find_modules(loaded.model)},
        patterns={site.path: site.pattern for site in find_modules(loaded.model)},
        kind=loaded.kind,
        vocabulary=vocabulary_of(loaded),
        fresh=loaded.fresh,
        notes=loaded.notes,
        phase_changes={}
        if change_step is None
        else {change_step: make_phase_change(graph, optimizer, spec.phases, state_lies)},
        base_fingerprint=fingerprint(loaded.weights),
        residual_norms=norms,
    )


def adapt(
    model: nnx.Module,
    config: RunConfig,
    spec: AdapterSpec,
    key: Key,
    gradients: Mapping[str, Array] | None = None,
    placement: ShardingRules | None = None,
) -> InjectReport:
    """Attaches the adapters of a config to a model, in place.

    Args:
        model: the pretrained model, without adapters.
        config: the run's config.
        spec: the config's adapter spec.
        key: PRNG key of the adapters' initialization.
        gradients: module name -> gradient of its kernel, for methods that initialize from it.
        placement: the sharding rules; None for one device.
    """
    set_remat(model, config)
    report = inject(
        model,
        spec,
        config.adapter.target_modules,
        key=key,
        overrides=config.adapter.overrides,
        modules_to_save=config.adapter.modules_to_save,
        gradients=gradients,
        sharder=placement,
        svds=config.svd.store,
    )
    keep_rows(model, placement)
    return report


def quantized_base(model: nnx.Module, config: RunConfig) -> QuantizeReport | None:
    """Quantizes the frozen kernels in place and reports the cost; None if the config has none."""
    kind = config.model.quantize
    return None if kind == "none" else quantize_base(model, kind)


def set_remat(model: nnx.Module, config: RunConfig) -> None:
    """Sets the rematerialization policy of the model's blocks."""
    for stack in find_stacks(model):
        stack.remat = config.model.remat


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
    steps, forward = config.train.steps, config.adapter.forward_scale
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
            f"{config.adapter.method} starts from the gradient of batches that one process reads: "
            "run it in one"
        )
    set_remat(loaded.model, config)
    rows = (data or load_data(config)).rows
    batches = itertools.islice(training_batches(config, rows), count)
    loss_fn = task_type_of(config.task).loss_fn(config.task)
    return kernel_gradients(loaded.model, loss_fn, batches, config.adapter.target_modules)


def vocabulary_of(loaded: Loaded) -> int | None:
    """Returns a model's vocabulary size; None if it does not read tokens."""
    return getattr(loaded.model.config, "vocab_size", None)


def model_options(config: RunConfig) -> dict[str, Any]:
    """Returns fields of the model's config: those fixed by the task, dropout and the user's.

    Raises:
        UserError: the user set a field that the task fixes.
    """
    settled = task_type_of(config.task).model_options(config.task)
    for name in config.model.options:
        if name in settled:
            raise UserError(f"model.options has {name}: it follows from the task, drop it")
    dropout = {"dropout": config.model.dropout} if config.model.dropout else {}
    return settled | dropout | dict(config.model.options)


def residual_norms(model: nnx.Module, whole: NamedSharding | None = None) -> dict[str, list[float]]:
    """Returns the Frobenius norm of every adapted frozen kernel, per layer.

    A continued run compares the norms, because another residual has other norms.

    Args:
        model: the model with its adapters.
        whole: the replicated sharding on a mesh; None for one device.

    Returns:
        module name pattern -> one norm per layer.
    """
    norms: dict[str, list[float]] = {}
    for site in find_modules(model):
        if site.module.adapter is not None:
            kernel = site.module.kernel[...]
            layers = np.asarray(_norms(kernel, whole)).reshape(-1)
            norms.setdefault(site.pattern, []).extend(map(float, layers))
    return norms


@partial(jax.jit, static_argnums=1)
def _norms(kernel: Array, whole: NamedSharding | None) -> Array:
    norms = jnp.sqrt(jnp.square(kernel.astype(jnp.float32)).sum(-1).sum(-1))
    return norms if whole is None else jax.lax.with_sharding_constraint(norms, whole)


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task's rows as batches.

    Attributes:
        rows: the training rows.
        train: an endless, checkpointable iterator of this process's shard of the training batches.
        evaluation: the evaluation batches, which hold every row once.
        notes: one-line remarks about the rows and the run's length.
        identity: split -> number and digest of its rows, for run.json.
        shares: the number of shards of a training batch; `train` yields one of them.
    """

    rows: Rows
    train: BatchIterator
    evaluation: Sequence[Batch]
    notes: tuple[str, ...]
    identity: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    shares: int = 1


def load_data(config: RunConfig) -> TaskData:
    """Reads, tokenizes and batches the task's rows, and checks the config; reads no weights.

    Cheap checks come first: columns and labels, then the rest of the config (`check`), then tokens.

    Raises:
        UserError: rows that cannot be read, ids outside the model's tables, or anything else in
            the config that does not fit.
    """
    train, held_out = load_rows(config, "train", "evaluation")
    share = share_of_process(sharding_rules_of(config), config.train.batch_size)
    notes = (
        describe("training", train),
        describe("held-out", held_out),
        note_of(train.marks, held_out.marks),
        *task_type_of(config.task).notes(config.task),
        shortened_warmup(config.optimizer, config.train.steps),
    )
    return TaskData(
        rows=train,
        train=training_batches(config, train, share),
        evaluation=evaluation_batches(config, held_out),
        notes=tuple(filter(None, notes)),
        identity={"training": identity_of(train), "held-out": identity_of(held_out)},
        shares=share[1],
    )


def identity_of(rows: Rows) -> dict[str, Any]:
    """Returns the number and the digest of some rows, as JSON."""
    return {"rows": len(rows), "sha256": rows_fingerprint(rows)}


def training_batches(
    config: RunConfig, rows: Rows, share: tuple[int, int] = (0, 1)
) -> BatchIterator:
    """Returns an endless, checkpointable iterator of batches, in the order of the run's seed.

    Args:
        config: the run's config.
        rows: the training rows.
        share: (index, count): the shard of each batch that is read.
    """
    size, length = config.train.batch_size, config.train.max_length
    buckets = choose_buckets(rows.lengths, size, length, max_buckets=config.train.num_buckets)
    return train_iterator(rows, size, config.train.seed, length, *share, buckets=buckets)


def load_rows(config: RunConfig, *splits: str) -> list[Rows]:
    """Reads the rows of some of the splits "train" and "evaluation", checked as in `load_data`.

    All splits are read before the model is looked up, which may mean a download, and before the
    first row is tokenized.
    """
    problem, task = task_type_of(config.task), config.task
    tokenizer = late_tokenizer(lambda: tokenizer_of(find_model(config.model.path)))
    read = [problem.read(task, split, tokenizer) for split in splits]
    own = check(config)
    length = config.train.max_length
    rows = [
        problem.encode(task, split, each, tokenizer, length, config.model.path)
        for split, each in zip(splits, read, strict=True)
    ]
    sizes = table_sizes(own, config.adapter.spec().router)
    return [with_known_ids(each, sizes) for each in rows]


def tokenizer_of(path: Path) -> Tokenizer:
    """Loads a checkpoint's tokenizer.

    If the tokenizer has no end-of-text token, it gets the first one that the checkpoint names.
    """
    tokenizer, ends = load_tokenizer(path), token_ids(open_checkpoint(path)[0])
    if tokenizer.eos_token_id is None and ends:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    return tokenizer


def describe(what: str, rows: Rows) -> str:
    """Returns the number of rows in words, with how many were truncated or left out."""
    counts = {"cut short": rows.truncated, "left out": rows.dropped}
    lost = [f"{count:,} {how}" for how, count in counts.items() if count]
    return ", ".join([f"{len(rows):,} {what} rows", *lost])


def evaluation_batches(config: RunConfig, rows: Rows) -> Sequence[Batch]:
    """Returns every row once, in batches of the run's evaluation batch size."""
    size, length = config.train.eval_batch_size, config.train.max_length
    buckets = choose_buckets(rows.lengths, size, length, max_buckets=config.train.num_buckets)
    return eval_batches(rows, size, length, buckets=buckets)
