"""Replays AdaLoRA's pruning: a chain of layers, trained and pruned step by step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.adapters.rank_budget import (
    RankBudget,
    Scores,
    init_scores,
    pruned_cores,
    triplet_scores,
    update_scores,
)
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.layers import Adapter, Dense, merge_model, run_model, split_model
from goat_jax.parity.bundle import Arrays, Record
from goat_jax.parity.checks import GIVEN, METHOD, Check, Comparison, worst
from goat_jax.parity.layer_bundle import read_adamw
from goat_jax.parity.layer_steps import Recipe
from goat_jax.parity.method_cases import CASES, SINGLE, Entry, method_spec
from goat_jax.typing import Array, Factors, PyTree

TENSORS = CASES["adalora"].tensors


def replay_budget(entry: Entry, arrays: Arrays) -> Iterator[Check]:
    """Losses, budgets, masks, scores and cores of every step, and what is left at the end."""
    record = entry.record
    compare = Comparison(METHOD, str(entry.folder), entry.name, GIVEN)
    spec, budget = _spec(record), _budget(record)
    recipe, _ = read_adamw(record.record("optimizer"))
    layers = len(record.get("dims")) - 1
    graph, trainable, base = split_model(_chain(spec, arrays, layers))
    opt_state = recipe.make(trainable, base).init(trainable)
    state = State(trainable, opt_state, init_scores(_adapters(trainable)))
    batch = jnp.asarray(arrays.floats("x")), jnp.asarray(arrays.floats("target"))
    weight = record.number("orth_reg_weight") / layers
    steps = []
    for step in range(budget.total_steps):
        state, seen = _step(graph, recipe, budget, state, base, *batch, weight, jnp.asarray(step))
        steps.append(seen)
    yield from _check_steps(budget, steps, layers, arrays, compare)
    y = run_model(merge_model(graph, state.trainable, base), batch[0])[0]
    yield compare.check("y_final", np.asarray(y), arrays.get("y_final"))
    for name, (own, form) in SINGLE.items():
        yield worst(
            [
                compare.check(
                    f"{name}_final",
                    form.write(np.asarray(factors[own])),
                    arrays.get(f"{name}_final_{layer}"),
                    f"layer {layer}",
                )
                for layer, factors in enumerate(_adapters(state.trainable).values())
            ]
        )


def _spec(record: Record) -> AdapterSpec:
    return method_spec(
        "adalora",
        total_rank=record.integer("init_r"),
        target_rank=record.integer("target_r"),
        alpha=record.number("alpha"),
    )


def _budget(record: Record) -> RankBudget:
    return RankBudget(
        start_rank=record.integer("init_r"),
        target_rank=record.integer("target_r"),
        total_steps=record.integer("total_step"),
        warmup=record.integer("tinit", least=0),
        cooldown=record.integer("tfinal", least=0),
        every=record.integer("deltaT"),
        beta1=record.number("beta1"),
        beta2=record.number("beta2"),
    )


class Chain(nnx.Module):
    """Layers ``l0``, ``l1`` ... with tanh between them."""

    def __init__(self, layers: list[Dense]):
        self.count = len(layers)
        for number, layer in enumerate(layers):
            setattr(self, f"l{number}", layer)

    def __call__(self, x: Array, ctx: Context = EVAL) -> Array:
        for number in range(self.count):
            x = getattr(self, f"l{number}")(jnp.tanh(x) if number else x, ctx)
        return x


def _chain(spec: AdapterSpec, arrays: Arrays, layers: int) -> Chain:
    return Chain([_layer(spec, arrays, number) for number in range(layers)])


def _layer(spec: AdapterSpec, arrays: Arrays, number: int) -> Dense:
    kernel, bias = arrays.floats(f"W0_{number}").T, arrays.floats(f"bias_{number}")
    sizes, with_bias = kernel.shape, bias.size > 0
    dense = nnx.eval_shape(lambda: Dense(*sizes, use_bias=with_bias, rngs=nnx.Rngs(0)))
    dense.kernel.set_value(jnp.asarray(kernel))
    if dense.bias is not None:
        dense.bias.set_value(jnp.asarray(bias))
    factors = {
        own: jnp.asarray(form.read(arrays.floats(f"{name}0_{number}")))
        for name, (own, form) in TENSORS.items()
    }
    dense.adapter = Adapter(factors, spec.scale(sizes[0], None, spec), spec, number)
    return dense


class State(NamedTuple):
    """What crosses a step."""

    trainable: PyTree
    opt_state: Any
    scores: Scores


class Seen(NamedTuple):
    """What a step shows: its loss, the scores and cores (M, R) after it."""

    loss: Array
    scores: Array
    cores: Array


def _adapters(trainable: PyTree) -> dict[str, Factors]:
    return {name: own["adapter"] for name, own in sorted(trainable["adapter"].items())}


@partial(jax.jit, static_argnums=(0, 1, 2))
def _step(
    graph: Any,
    recipe: Recipe,
    budget: RankBudget,
    state: State,
    base: PyTree,
    x: Array,
    target: Array,
    weight: float,
    step: Array,
) -> tuple[State, Seen]:
    """Update, scores, pruning, in this order."""

    def loss_of(trainable: PyTree) -> Array:
        y, sown = run_model(merge_model(graph, trainable, base), x)
        aux = sum(own["adapter"]["report"][0].aux_loss for own in sown.values())
        return jnp.mean(jnp.square(y - target)) + weight * aux

    loss, grads = jax.value_and_grad(loss_of)(state.trainable)
    with jax.numpy_dtype_promotion("standard"):  # optax takes powers by an integer count
        tx = recipe.make(state.trainable, base)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
    trainable: PyTree = optax.apply_updates(state.trainable, updates)
    adapters = _adapters(trainable)
    scores = update_scores(state.scores, adapters, _adapters(grads), budget, step)
    cores = pruned_cores(adapters, scores, budget, step)
    layers = {
        name: {**own, "adapter": {**own["adapter"], "core": cores[name]}}
        for name, own in trainable["adapter"].items()
    }
    found = triplet_scores(scores)
    seen = Seen(loss, *(jnp.concatenate(list(tree.values())) for tree in (found, cores)))
    return State({**trainable, "adapter": layers}, opt_state, scores), seen


def _check_steps(
    budget: RankBudget, steps: list[Seen], layers: int, arrays: Arrays, compare: Comparison
) -> Iterator[Check]:
    allowed, due = budget.table(layers)
    columns = zip(*steps, strict=True)
    losses, scores, cores = (np.stack(list(map(np.asarray, column))) for column in columns)
    yield compare.check("losses", losses, arrays.get("losses"))
    yield compare.check("budget", allowed, arrays.get("budget"))
    yield compare.check("mask_now", due, arrays.get("mask_now"))
    yield compare.check("kept", cores != 0, arrays.get("kept_steps"))
    yield compare.check("lam_steps", cores, arrays.get("lam_steps"))
    # Not a number where PyTorch scored nothing.
    theirs = arrays.get("score_steps")
    scored = np.isfinite(theirs)
    yield compare.check("score_steps", np.where(scored, scores, 0.0), np.where(scored, theirs, 0.0))
