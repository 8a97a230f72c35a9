"""The seam: a `Dense` with an adapter, and the two pytrees a model splits into."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.adapters.methods import method_spec
from goat_jax.nn.dense import Adapter, Dense, Head, merge_model, run_model, split_model
from goat_jax.testing import CountTraces, assert_close
from goat_jax.typing import PyTree

WIDTH, OUT, EXPERTS, RATE = 6, 3, 4, 0.5
SPEC = method_spec("molora", total_rank=8, num_experts=EXPERTS, dropout=RATE)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


TRAIN = Context(key=jax.random.key(0))
X, TARGET = random(5, 7, WIDTH, seed=8), random(5, OUT, seed=9)


def adapter(seed, spec=SPEC, zero_b=False):
    shape = (EXPERTS, 2, WIDTH)
    factors = {
        "a": random(EXPERTS, WIDTH, 2, seed=seed),
        "b": jnp.zeros(shape) if zero_b else random(*shape, seed=seed + 1),
        "router": random(WIDTH, EXPERTS, seed=seed + 2),
    }
    return Adapter(factors, jnp.full(EXPERTS, 0.5), spec, salt=seed)


class Net(nnx.Module):
    """Adapted, frozen, adapted, and a head on the mean token that is trained in full."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.middle, self.last = (Dense(WIDTH, WIDTH, rngs=rngs) for _ in range(3))
        self.first.adapter, self.last.adapter = adapter(10), adapter(20)
        self.head = Dense(WIDTH, OUT, rngs=rngs)
        self.head.kernel, self.head.bias = Head(random(WIDTH, OUT)), Head(random(OUT))

    def __call__(self, x, ctx=EVAL):
        x = self.last(jnp.tanh(self.middle(self.first(x, ctx), ctx)), ctx)
        return self.head(x.mean(1), ctx.unmasked())


@pytest.fixture(scope="module")
def net():
    return Net()


def paths(tree):
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def loss_of(graph, trainable, base, x, ctx=EVAL):
    y, sown = run_model(merge_model(graph, trainable, base), x, ctx)
    balance = sum(sown[name]["adapter"]["report"][0].aux_loss for name in ("first", "last"))
    return jnp.square(y - TARGET).mean() + 1e-2 * balance


def test_trained_and_frozen_trees_share_paths_and_nothing_else(net):
    _, trainable, base = split_model(net)
    adapters, heads, frozen = (paths(t) for t in (trainable["adapter"], trainable["head"], base))
    places = [f"['{name}']['adapter']" for name in ("first", "last")]
    assert adapters == {f"{place}['{n}']" for place in places for n in ("a", "b", "router")}
    assert heads == {"['head']['kernel']", "['head']['bias']"}
    dense = {f"['{n}']['{p}']" for n in ("first", "middle", "last") for p in ("kernel", "bias")}
    assert frozen == dense | {f"{place}['scale']" for place in places}
    assert not adapters & heads and not adapters & frozen and not heads & frozen


def test_merging_what_was_split_is_the_same_model(net):
    parts = split_model(net)
    eager = net(X)
    np.testing.assert_array_equal(merge_model(*parts)(X), eager)
    graph, trainable, base = parts
    jitted = jax.jit(lambda trainable, base, x: merge_model(graph, trainable, base)(x))
    assert_close(jitted(trainable, base, X), eager, 1e-6)
    changed = jax.tree.map(np.zeros_like, trainable)
    assert not np.asarray(jitted(changed, base, X)).any(), "the head is among the trained"


@pytest.mark.slow
def test_training_reaches_every_trained_leaf_traces_once_and_leaves_the_base_alone(net):
    graph, trainable, base = split_model(net)
    before = jax.tree.map(np.array, (trainable, base))
    optimizer = optax.adam(1e-2)

    def step(trainable, state, base, key):
        ctx = Context(key=key, mask=jnp.ones(X.shape[:2]))
        loss = lambda t: loss_of(graph, t, base, X, ctx)  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(trainable)
        with jax.numpy_dtype_promotion("standard"):  # optax does not pass under "strict"
            updates, state = optimizer.update(gradient, state, trainable)
        return optax.apply_updates(trainable, updates), state, value, gradient

    counted = CountTraces(step)
    jitted, values = jax.jit(counted), []
    state: PyTree = optimizer.init(trainable)
    gradient = None
    for key in jax.random.split(jax.random.key(0), 20):
        trainable, state, value, gradient = jitted(trainable, state, base, key)
        values.append(float(value))
    assert counted.count == 1
    assert np.mean(values[-5:]) < np.mean(values[:5])
    assert jax.tree.structure(gradient) == jax.tree.structure(trainable)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).all()), trainable, before[0])
    assert all(jax.tree.leaves(moved)), moved
    jax.tree.map(np.testing.assert_array_equal, base, before[1])
    # Momentum exists for what is trained, and for nothing else.
    assert jax.tree.structure(state[0].mu) == jax.tree.structure(trainable)


def test_dropout_never_touches_the_frozen_branch():
    layer = Dense(WIDTH, WIDTH, rngs=nnx.Rngs(1))
    plain = np.asarray(layer(X, EVAL))
    layer.adapter = adapter(10, zero_b=True)
    np.testing.assert_array_equal(layer(X, TRAIN), plain)
    layer.adapter = adapter(10)
    assert np.abs(np.asarray(layer(X, TRAIN)) - plain).max() > 0.1


def test_every_adapter_draws_its_own_mask():
    layer = Dense(WIDTH, WIDTH, rngs=nnx.Rngs(1))
    layer.adapter = adapter(10)
    outputs = []
    for salt in (1, 2, 1):
        layer.adapter.salt = salt
        outputs.append(np.asarray(layer(X, TRAIN)))
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert np.abs(outputs[0] - outputs[1]).max() > 0.1


def test_the_padding_mask_reaches_the_balance_loss_and_only_that(net):
    mask = np.arange(7) < np.array([[7], [3], [1], [5], [2]])
    parts = split_model(net.first)
    run = jax.jit(lambda mask: run_model(merge_model(*parts), X, Context(mask=mask)))
    (masked, sown), (y, everything) = run(mask), run(np.ones_like(mask))
    np.testing.assert_array_equal(masked, y)
    report, full = (s["adapter"]["report"][0] for s in (sown, everything))
    z = np.asarray(X)[mask] @ np.asarray(net.first.adapter.router[...])
    load = (z >= np.sort(z, -1)[:, [-2]]).mean(0)
    np.testing.assert_allclose(report.load, load, rtol=1e-6)
    assert abs(float(report.aux_loss) - float(full.aux_loss)) > 1e-4


def test_a_pooled_head_needs_the_context_without_its_mask():
    head = Dense(WIDTH, WIDTH, rngs=nnx.Rngs(1))
    head.adapter = adapter(10)
    ctx, pooled = Context(mask=jnp.ones((5, 7), jnp.int32)), np.asarray(X)[:, 0]
    with pytest.raises(ValueError, match="broadcast"):
        jax.eval_shape(head, pooled, ctx)
    run = jax.jit(lambda x, ctx: head(x, ctx))
    np.testing.assert_array_equal(run(pooled, ctx.unmasked()), run(pooled, EVAL))


def test_a_plain_call_leaves_no_trace(net):
    before = jax.tree.structure(nnx.state(net))
    y, sown = run_model(net, X)
    assert set(sown) == {"first", "last"}
    np.testing.assert_array_equal(net(X), y)
    assert jax.tree.structure(nnx.state(net)) == before


def test_computes_in_the_dtype_of_x(net):
    y = net.first(X.astype(jnp.bfloat16), EVAL)
    assert y.dtype == jnp.bfloat16
    assert_close(y, net.first(X, EVAL), 2**-6)


def test_without_bias():
    layer = Dense(WIDTH, OUT, use_bias=False, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(layer(X, EVAL), X @ layer.kernel[...])
