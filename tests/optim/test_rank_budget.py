"""AdaLoRA's budget as a transform: the ranks left at the end, and parameters it does not change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goat_jax.errors import UserError
from goat_jax.optim.adam import scale_by_adam
from goat_jax.optim.rank_budget import RankBudget, with_rank_budget
from goat_jax.typing import PyTree
from kinds import compiled

IN, OUT, RANK, STEPS = 6, 5, 4, 6
BUDGET = RankBudget(2, total_steps=STEPS, warmup=1, cooldown=2)
ADAM = optax.chain(scale_by_adam(0.9, 0.999, 1e-8), optax.scale(-0.1))


def _normal(shape, seed):
    return jax.random.normal(jax.random.key(seed), shape)


def _adapter(lead, seed, rank=RANK):
    return {
        "a": _normal((*lead, 1, IN, rank), seed),
        "b": _normal((*lead, 1, rank, OUT), seed + 1),
        "core": _normal((*lead, 1, rank), seed + 2),
    }


PARAMS = {
    "adapter": {"one": _adapter((), 0), "stack": {"query": _adapter((3,), 5)}},
    "head": {"kernel": _normal((OUT, 2), 9)},
}


def _train(tx, params, steps=STEPS):
    state, history = tx.init(params), []
    update = jax.jit(tx.update)
    for step in range(steps):
        gradients = jax.tree.map(lambda v, s=step: _normal(v.shape, 10 + s), params)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        history.append(params)
    assert compiled(update) == 1
    return history


def _cores(params):
    return [params["adapter"]["one"]["core"], params["adapter"]["stack"]["query"]["core"]]


@pytest.mark.slow
def test_the_budget_is_kept_over_all_layers_and_ends_at_its_target():
    history = _train(with_rank_budget(optax.sgd(0.1), BUDGET), PARAMS)
    kept = [int(sum((core != 0).sum() for core in _cores(params))) for params in history]
    assert kept == BUDGET.table(4 * RANK, layers=4)[0].tolist()
    assert (kept[0], kept[-1]) == (16, 8)


def test_the_least_important_triplets_are_pruned():
    params = {"a": jnp.ones((1, IN, RANK)), "b": jnp.ones((1, RANK, OUT))}
    params |= {"core": jnp.array([[3.0, 1.0, 4.0, 2.0]])}
    tx = with_rank_budget(optax.sgd(0.0), RankBudget(2, total_steps=2))
    gradients = jax.tree.map(jnp.ones_like, params)
    _, state = tx.update(gradients, tx.init(params), params)
    updates, _ = tx.update(gradients, state, params)
    kept: PyTree = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(kept["core"], [[3.0, 0.0, 4.0, 0.0]])


@pytest.mark.slow
def test_what_is_not_pruned_is_updated_as_ever():
    plain = _train(ADAM, PARAMS, 1)[0]
    pruned = _train(with_rank_budget(ADAM, BUDGET), PARAMS, 1)[0]
    jax.tree.map(np.testing.assert_array_equal, pruned, plain)
    last, plain = (
        _train(tx, PARAMS)[-1] for tx in (with_rank_budget(optax.sgd(0.1), BUDGET), optax.sgd(0.1))
    )
    np.testing.assert_array_equal(last["head"]["kernel"], plain["head"]["kernel"])
    np.testing.assert_array_equal(last["adapter"]["one"]["a"], plain["adapter"]["one"]["a"])


@pytest.mark.slow
def test_layers_may_start_with_different_ranks():
    params = {"small": _adapter((), 0, rank=3), "large": _adapter((2,), 5, rank=6)}
    last = _train(with_rank_budget(optax.sgd(0.1), BUDGET), params)[-1]
    assert sum(int((own["core"] != 0).sum()) for own in last.values()) == 3 * 2


def test_a_budget_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="warmup 5 and cooldown 5 fill the 10 steps"):
        RankBudget(2, total_steps=10, warmup=5, cooldown=5)
    with pytest.raises(UserError, match="8 triplets in 4 layers leave nothing to prune"):
        BUDGET.table(8, layers=4)
    with pytest.raises(UserError, match="adapters with a core, and this model has none"):
        with_rank_budget(optax.sgd(0.1), BUDGET).init({"kernel": jnp.ones((2, 2))})
