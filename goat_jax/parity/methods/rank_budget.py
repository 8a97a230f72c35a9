"""Replays AdaLoRA's pruning: a chain of layers, trained and pruned step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.nn.dense import Adapter, Dense, merge_model, run_model, split_model
from goat_jax.optim.rank_budget import RankBudget, adapters_with_core, triplet_scores
from goat_jax.optim.transforms import PrunedRanks
from goat_jax.parity.bundle import Arrays, Record
from goat_jax.parity.checks import GIVEN, METHOD, Check, Comparison, worst
from goat_jax.parity.layer_bundle import read_adamw
from goat_jax.parity.layer_steps import LayerOptimizer
from goat_jax.parity.methods.cases import CASES, SINGLE, CaseFile, method_spec
from goat_jax.typing import Array, PyTree

TENSORS = CASES["adalora"].tensors


def replay_budget(entry: CaseFile, arrays: Arrays) -> Iterator[Check]:
    """Trains the layers and compares every step's losses, budgets, masks, scores and cores.

    Finally it compares the output and the trained factors.
    """
    record = entry.record
    compare = Comparison(METHOD, str(entry.folder), entry.name, GIVEN)
    spec, total = _spec(record), record.integer("total_step")
    recipe = dataclasses.replace(
        read_adamw(record.record("optimizer"))[0], transform=spec.transform, steps=total
    )
    layers = len(record.get("dims")) - 1
    graph, trainable, base = split_model(_chain(spec, arrays, layers))
    state = (trainable, recipe.make(trainable, base).init(trainable))
    batch = jnp.asarray(arrays.floats("x")), jnp.asarray(arrays.floats("target"))
    weight = record.number("orth_reg_weight") / layers
    steps = []
    for _ in range(total):
        state, observed = _step(graph, recipe, state, base, *batch, weight)
        steps.append(observed)
    trainable = state[0]
    budget = _budget(spec, total).table(spec.total_rank * layers, layers)
    yield from _check_steps(budget, steps, arrays, compare)
    y = run_model(merge_model(graph, trainable, base), batch[0])[0]
    yield compare.check("y_final", np.asarray(y), arrays.get("y_final"))
    for name, (our_name, form) in SINGLE.items():
        yield worst(
            [
                compare.check(
                    f"{name}_final",
                    form.write(np.asarray(factors[our_name])),
                    arrays.get(f"{name}_final_{layer}"),
                    f"layer {layer}",
                )
                for layer, factors in enumerate(adapters_with_core(trainable).values())
            ]
        )


def _spec(record: Record) -> AdapterSpec:
    return method_spec(
        "adalora",
        total_rank=record.integer("init_r"),
        target_rank=record.integer("target_r"),
        alpha=record.number("alpha"),
        warmup=record.integer("tinit", least=0),
        cooldown=record.integer("tfinal", least=0),
        every=record.integer("deltaT"),
        beta1=record.number("beta1"),
        beta2=record.number("beta2"),
    )


def _budget(spec: AdapterSpec, total_steps: int) -> RankBudget:
    assert isinstance(spec.transform, PrunedRanks)  # AdaLoRA's
    return RankBudget(total_steps=total_steps, **dataclasses.asdict(spec.transform))


class Chain(nnx.Module):
    """A chain of layers ``l0``, ``l1`` ... with tanh between them."""

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
        our_name: jnp.asarray(form.read(arrays.floats(f"{name}0_{number}")))
        for name, (our_name, form) in TENSORS.items()
    }
    dense.adapter = Adapter(factors, spec.scale(sizes[0], None, spec), spec, number)
    return dense


class BudgetStep(NamedTuple):
    """Observed values of one step over M layers of rank R.

    Attributes:
        loss: the loss of the step, ().
        scores: the triplets' scores after the step, (M, R).
        cores: the layers' cores after the step, (M, R).
    """

    loss: Array
    scores: Array
    cores: Array


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    graph: nnx.GraphDef,
    recipe: LayerOptimizer,
    state: tuple[PyTree, Any],
    base: PyTree,
    x: Array,
    target: Array,
    weight: float,
) -> tuple[tuple[PyTree, Any], BudgetStep]:
    """Takes one step of AdaLoRA's optimizer, which also prunes."""
    trainable, opt_state = state

    def loss_of(trainable: PyTree) -> Array:
        y, sown = run_model(merge_model(graph, trainable, base), x)
        aux = sum(layer["adapter"]["report"][0].aux_loss for layer in sown.values())
        return jnp.mean(jnp.square(y - target)) + weight * aux

    loss, grads = jax.value_and_grad(loss_of)(trainable)
    with jax.numpy_dtype_promotion("standard"):  # optax takes powers by an integer count
        updates, opt_state = recipe.make(trainable, base).update(grads, opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    importance = triplet_scores(optax.tree.get(opt_state, "scores")).values()
    cores = [adapter["core"] for adapter in adapters_with_core(trainable).values()]
    return (trainable, opt_state), BudgetStep(
        loss, jnp.concatenate([*importance]), jnp.concatenate(cores)
    )


def _check_steps(
    budget: tuple[np.ndarray, np.ndarray],
    steps: list[BudgetStep],
    arrays: Arrays,
    compare: Comparison,
) -> Iterator[Check]:
    allowed, due = budget
    columns = zip(*steps, strict=True)
    losses, scores, cores = (np.stack(list(map(np.asarray, column))) for column in columns)
    yield compare.check("losses", losses, arrays.get("losses"))
    yield compare.check("budget", allowed, arrays.get("budget"))
    yield compare.check("mask_now", due, arrays.get("mask_now"))
    yield compare.check("kept", cores != 0, arrays.get("kept_steps"))
    yield compare.check("lam_steps", cores, arrays.get("lam_steps"))
    # PyTorch's scores are NaN in steps without scoring; both sides are set to 0 there.
    theirs = arrays.get("score_steps")
    scored = np.isfinite(theirs)
    yield compare.check("score_steps", np.where(scored, scores, 0.0), np.where(scored, theirs, 0.0))
