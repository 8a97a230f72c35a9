"""Shardings of a run's state, base and batches on a mesh, and functions to put them there."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax
from flax import nnx

from goat_jax.config.run import RunConfig
from goat_jax.injection.sharded_init import key_everywhere
from goat_jax.models.decoder.model import Decoder
from goat_jax.nn.model import Model
from goat_jax.nn.modules import Embedding
from goat_jax.nn.named_modules import find_modules, find_stacks
from goat_jax.sharding.batches import put_batch, put_whole_batch, share_of_rows
from goat_jax.sharding.rules import (
    ShardingRules,
    make_sharding_rules,
    model_shardings,
    tree_shardings,
)
from goat_jax.training.state import RunState
from goat_jax.typing import Batch, Key, PyTree


@dataclasses.dataclass(frozen=True)
class RunShardings:
    """Shardings of a run's step.

    Attributes:
        placement: the mesh and its sharding rules.
        known: path of an array in the model -> its sharding.
        base: the shardings of the frozen tree.
        state: a `RunState` with a sharding in place of every array.
    """

    placement: ShardingRules
    known: dict[tuple, Any]
    base: PyTree
    state: RunState

    def put_share(self, batch: Batch, rows: int) -> Batch:
        """Puts a training batch of `rows` rows on the mesh, given this process's shard of it."""
        return put_batch(batch, self.placement, rows)

    def put_whole(self, batch: Batch) -> Batch:
        """Puts a batch on the mesh that every process has completely."""
        return put_whole_batch(batch, self.placement)

    def in_step(self) -> dict[str, Any]:
        """Returns `jax.jit`'s shardings for ``(state, base, batch) -> (state, metrics)``."""
        rows, whole = self.placement.rows, self.placement.whole
        return {
            "in_shardings": (self.state, self.base, rows),
            "out_shardings": (self.state, whole),
        }

    def in_evaluation(self) -> dict[str, Any]:
        """Returns `jax.jit`'s shardings for ``(trainable, base, batch) -> (sums, outputs)``."""
        rows, whole = self.placement.rows, self.placement.whole
        return {
            "in_shardings": (self.state.trainable, self.base, rows),
            "out_shardings": whole,
        }


def sharding_rules_of(config: RunConfig) -> ShardingRules | None:
    """Returns a run's sharding rules on the available devices; None for one device.

    Raises:
        UserError: a mesh that does not fit the devices, or batches that do not fit the mesh.
    """
    placement = make_sharding_rules(config.mesh, processes=jax.process_count())
    if placement is not None:
        check_batches(config, placement)
    return placement


def check_batches(config: RunConfig, placement: ShardingRules) -> None:
    """Raises `UserError` for batches or micro-batches that the mesh cannot split evenly."""
    train = config.train
    placement.check_rows(
        "train.batch_size / train.grad_accum_steps", train.batch_size // train.grad_accum_steps
    )
    placement.check_rows("train.eval_batch_size", train.eval_batch_size)


def start_state(
    model: nnx.Module,
    placement: ShardingRules | None,
    trainable: dict[str, PyTree],
    base: PyTree,
    optimizer: optax.GradientTransformation,
    key: Key,
    constants: PyTree,
) -> tuple[RunState, PyTree, RunShardings | None]:
    """Creates the state before the first step, on the mesh if there is one.

    Args:
        model: the model that the trees were split from.
        placement: the sharding rules; None for one device.
        trainable: the trained arrays.
        base: the frozen arrays.
        optimizer: the optimizer of the trained arrays.
        key: the run's PRNG key.
        constants: the constants of `RunState`.

    Returns:
        The state, the frozen arrays, and the shardings of both; None on one device.
    """
    if placement is None:
        return RunState.create(trainable, optimizer, key, constants), base, None
    placed = plan_placement(model, placement, trainable, base, optimizer, key, constants)
    trainable = jax.device_put(trainable, placed.state.trainable)
    base = jax.device_put(base, placed.base)
    key = key_everywhere(key, placement.whole)
    create = jax.jit(
        lambda trainable, key, constants: RunState.create(trainable, optimizer, key, constants),
        out_shardings=placed.state,
    )
    return create(trainable, key, constants), base, placed


def plan_placement(
    model: nnx.Module,
    placement: ShardingRules,
    trainable: dict[str, PyTree],
    base: PyTree,
    optimizer: optax.GradientTransformation,
    key: Key,
    constants: PyTree,
) -> RunShardings:
    """Returns the shardings of a run's state and base; reads only the arrays' shapes."""
    known = model_shardings(model, placement)
    state = jax.eval_shape(
        lambda t, k, c: RunState.create(t, optimizer, k, c), trainable, key, constants
    )
    whole = placement.whole
    return RunShardings(
        placement=placement,
        known=known,
        base=tree_shardings(base, known, whole),
        state=tree_shardings(state, known, whole),
    )


def keep_rows(model: nnx.Module, placement: ShardingRules | None) -> None:
    """Sets a model's shardings of hidden states, attention, adapters in use, lookups and output.

    It has to be called before the model is split, since they are part of its static structure.
    """
    for stack in find_stacks(model):
        stack.rows = None if placement is None else placement.rows
        stack.row_parts = 1 if placement is None else placement.row_parts
    for site in find_modules(model):
        adapter = site.module.adapter
        if adapter is not None:
            names = () if placement is None else (*adapter.names, *adapter.constant_names)
            adapter.in_use = tuple(
                (name, placement.adapter_in_use(site, name, getattr(adapter, name).shape))
                for name in names
            )
    for site in find_modules(model, Embedding):
        site.module.steps = () if placement is None else placement.lookups
    if isinstance(model, Model) and placement is not None:
        device, rules = placement.mesh.devices.flat[0], placement.rules
        model.attention = dataclasses.replace(
            model.attention, device=device, mesh=placement.mesh, rows=rules.batch, heads=rules.inner
        )
    if isinstance(model, Decoder):
        shape = (model.config.hidden_size, model.config.vocab_size)
        model.output_lies = None if placement is None else placement.output(shape)


def share_of_process(placement: ShardingRules | None, rows: int) -> tuple[int, int]:
    """Returns (index, count): this process reads shard `index` of `count` of every batch."""
    return (0, 1) if placement is None else share_of_rows(placement, rows)
