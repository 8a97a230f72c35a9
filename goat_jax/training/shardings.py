"""Shardings of a run's state, base and batches on a mesh, and functions to put them there."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import NamedSharding

from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.injection.sharded_init import key_everywhere
from goat_jax.nn.mixture import Mixture
from goat_jax.nn.model import Model
from goat_jax.nn.modules import Embedding
from goat_jax.nn.named_modules import ModuleRef, find_modules, find_stacks
from goat_jax.sharding.batches import put_batch, put_whole_batch, share_of_rows
from goat_jax.sharding.rules import (
    ShardingRules,
    make_sharding_rules,
    model_shardings,
    tree_shardings,
)
from goat_jax.training.state import RunState
from goat_jax.training.task_types import task_type_of
from goat_jax.typing import Batch, Key, PyTree


@dataclasses.dataclass(frozen=True)
class RunShardings:
    """Shardings of a run's step.

    Attributes:
        rules: the mesh and its sharding rules.
        known: path of an array in the model -> its sharding.
        base: the shardings of the frozen tree.
        state: a `RunState` with a sharding in place of every array.
    """

    rules: ShardingRules
    known: dict[tuple, Any]
    base: PyTree
    state: RunState

    def put_share(self, batch: Batch, rows: int) -> Batch:
        """Puts a training batch of `rows` rows on the mesh, given this process's shard of it."""
        return put_batch(batch, self.rules, rows)

    def put_whole(self, batch: Batch) -> Batch:
        """Puts a batch on the mesh that every process has completely."""
        return put_whole_batch(batch, self.rules)

    def in_step(self) -> dict[str, Any]:
        """Returns `jax.jit`'s shardings for ``(state, base, batch) -> (state, metrics)``."""
        batch, replicated = self.rules.batch, self.rules.replicated
        return {
            "in_shardings": (self.state, self.base, batch),
            "out_shardings": (self.state, replicated),
        }

    def in_evaluation(self) -> dict[str, Any]:
        """Returns `jax.jit`'s shardings for ``(trainable, base, batch) -> (sums, outputs)``."""
        batch, replicated = self.rules.batch, self.rules.replicated
        return {
            "in_shardings": (self.state.trainable, self.base, batch),
            "out_shardings": replicated,
        }


def sharding_rules_of(config: RunConfig) -> ShardingRules | None:
    """Returns a run's sharding rules on the available devices; None for one device.

    Raises:
        UserError: a mesh that does not fit the devices, or batches that do not fit the mesh.
    """
    rules = make_sharding_rules(config.mesh, processes=jax.process_count())
    if rules is not None:
        check_batches(config, rules)
    return rules


def check_batches(config: RunConfig, rules: ShardingRules) -> None:
    """Raises `UserError` for batches, micro-batches or rows that the mesh cannot split evenly."""
    train = config.train
    rules.check_rows(
        "train.batch_size / train.grad_accum_steps", train.batch_size // train.grad_accum_steps
    )
    rules.check_rows("train.eval_batch_size", train.eval_batch_size)
    if rules.token_parts > 1 and task_type_of(config.task).unit != "tokens":
        raise UserError("mesh.sequence shards the tokens of texts: leave it at 1 for images")
    rules.check_tokens("train.max_length", train.max_length)


def start_state(
    model: nnx.Module,
    rules: ShardingRules | None,
    trainable: dict[str, PyTree],
    base: PyTree,
    optimizer: optax.GradientTransformation,
    key: Key,
    constants: PyTree,
) -> tuple[RunState, PyTree, RunShardings | None]:
    """Creates the state before the first step, on the mesh if there is one.

    Args:
        model: the model that the trees were split from.
        rules: the sharding rules; None for one device.
        trainable: the trained arrays.
        base: the frozen arrays.
        optimizer: the optimizer of the trained arrays.
        key: the run's PRNG key.
        constants: the constants of `RunState`.

    Returns:
        The state, the frozen arrays, and the shardings of both; None on one device.
    """
    if rules is None:
        return RunState.create(trainable, optimizer, key, constants), base, None
    shardings = plan_shardings(model, rules, trainable, base, optimizer, key, constants)
    trainable = jax.device_put(trainable, shardings.state.trainable)
    base = jax.device_put(base, shardings.base)
    key = key_everywhere(key, rules.replicated)
    create = jax.jit(
        lambda trainable, key, constants: RunState.create(trainable, optimizer, key, constants),
        out_shardings=shardings.state,
    )
    return create(trainable, key, constants), base, shardings


def plan_shardings(
    model: nnx.Module,
    rules: ShardingRules,
    trainable: dict[str, PyTree],
    base: PyTree,
    optimizer: optax.GradientTransformation,
    key: Key,
    constants: PyTree,
) -> RunShardings:
    """Returns the shardings of a run's state and base; reads only the arrays' shapes."""
    known = model_shardings(model, rules)
    state = jax.eval_shape(
        lambda t, k, c: RunState.create(t, optimizer, k, c), trainable, key, constants
    )
    replicated = rules.replicated
    return RunShardings(
        rules=rules,
        known=known,
        base=tree_shardings(base, known, replicated),
        state=tree_shardings(state, known, replicated),
    )


def set_activation_shardings(model: Model, rules: ShardingRules | None) -> None:
    """Sets a model's shardings of hidden states, attention, kernels, lookups and output.

    It has to be called before the model is split, since they are part of its static structure.
    """
    for stack in find_stacks(model):
        stack.activation_sharding = None if rules is None else rules.activations
        stack.batch_parts = 1 if rules is None else rules.batch_parts
        stack.token_parts = 1 if rules is None else rules.token_parts
    for ref in find_modules(model):
        if ref.module.adapter is not None:
            ref.module.adapter.in_use = () if rules is None else _in_use(ref, rules)
        quantized = ref.module.quantized
        if quantized is not None:
            shape, in_use = quantized.codes.shape, None
            if rules is not None:
                in_use = tuple(rules.quantized_in_use(ref, shape).values())
            quantized.form = dataclasses.replace(quantized.form, in_use=in_use)
    for ref in find_modules(model, Mixture):
        ref.module.mesh = None if rules is None else rules.mesh
        ref.module.rows = () if rules is None else rules.rules.batch
        ref.module.tokens = () if rules is None else rules.rules.tokens
    for ref in find_modules(model, Embedding):
        ref.module.lookup_shardings = () if rules is None else rules.lookups
    if rules is not None:
        model.attention = dataclasses.replace(
            model.attention,
            device=rules.mesh.devices.flat[0],
            mesh=rules.mesh,
            rows=rules.rules.batch,
            tokens=rules.rules.tokens,
            heads=rules.rules.inner,
        )
    if model.output_shape is not None:
        model.output_sharding = None if rules is None else rules.output(model.output_shape)


def _in_use(ref: ModuleRef, rules: ShardingRules) -> tuple[tuple[str, NamedSharding], ...]:
    """Returns the shardings of a module's adapter arrays where they are used, by name."""
    adapter = ref.module.adapter
    names = (*adapter.names, *adapter.constant_names)
    shapes = {name: getattr(adapter, name).shape for name in names}
    return tuple((name, rules.adapter_in_use(ref, name, shape)) for name, shape in shapes.items())


def process_shard(rules: ShardingRules | None, rows: int) -> tuple[int, int]:
    """Returns (index, count): this process reads shard `index` of `count` of every batch."""
    return (0, 1) if rules is None else share_of_rows(rules, rows)
