"""Scanned layers: equal to a loop, however they are cut and whatever is recomputed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.adapters.methods import method_spec
from goat_jax.errors import UserError
from goat_jax.nn.dense import Adapter, Dense, merge_model, run_model, split_model
from goat_jax.nn.stack import REMAT, Stack
from goat_jax.testing import assert_close
from tiers import each

LAYERS, WIDTH, EXPERTS = 4, 8, 2
SPEC = method_spec("molora", total_rank=4, num_experts=EXPERTS, top_k=1, dropout=0.3)
TRAIN = Context(key=jax.random.key(3))


def random(*shape, seed):
    return jnp.asarray((np.random.default_rng(seed).normal(size=shape) * 0.5).astype(np.float32))


X = random(3, 4, WIDTH, seed=0)


class Block(nnx.Module):
    """An adapted layer and a frozen one."""

    def __init__(self, *, rngs):
        self.mix, self.out = (Dense(WIDTH, WIDTH, rngs=rngs) for _ in range(2))

    def __call__(self, x, ctx):
        return x + self.out(jnp.tanh(self.mix(x, ctx)), ctx)


def make_stack(layers=LAYERS):
    stack = Stack(lambda r: Block(rngs=r), layers, rngs=nnx.Rngs(0))
    factors = {
        "a": random(layers, EXPERTS, WIDTH, 2, seed=10),
        "b": random(layers, EXPERTS, 2, WIDTH, seed=11),
        "router": random(layers, WIDTH, EXPERTS, seed=12),
    }
    scale = np.linspace(0.5, 1.5, layers * EXPERTS).reshape(layers, EXPERTS)
    scale = jnp.asarray(scale.astype(np.float32))
    stack.runs[0].mix.adapter = Adapter(factors, scale, SPEC, salt=5)
    return stack


def gradients(stack):
    """Output, reports and gradients of every trained array, with dropout."""
    graph, trainable, base = split_model(stack)

    def loss(trainable):
        y, sown = run_model(merge_model(graph, trainable, base), X, TRAIN)
        return jnp.square(y).sum(), (y, sown)

    (_, (y, sown)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)
    return y, sown, gradient["adapter"]


@pytest.fixture(scope="module")
def whole():
    """Results of an uncut stack without recomputation."""
    return gradients(make_stack())


@pytest.mark.slow
def test_a_scan_is_a_loop_over_its_layers(whole):
    graph, state = nnx.split(make_stack().runs[0])

    @jax.jit
    def loop(state, x):
        reports = []
        for layer in range(LAYERS):
            block = nnx.merge(graph, jax.tree.map(lambda a, at=layer: a[at], state))
            x, sown = run_model(block, x, TRAIN.fold(layer))
            reports.append(sown)
        return x, jax.tree.map(lambda *r: jnp.stack(r), *reports)

    y, sown, _ = whole
    expected, reports = loop(state, X)
    assert_close(y, expected)
    assert_close(sown["run_0"][0], reports)
    assert np.abs(make_stack()(X, EVAL) - y).max() > 0.1, "dropout must be on for this to say much"


@pytest.mark.parametrize("remat", each([name for name in REMAT if name != "none"], ["full"]))
def test_recomputation_changes_no_number(whole, remat):
    stack = make_stack()
    stack.remat = remat
    assert_close(gradients(stack), whole)


@pytest.mark.slow
def test_recomputation_happens():
    def program(remat):
        stack = make_stack()
        stack.remat = remat
        graph, trainable, base = split_model(stack)
        loss = lambda t: jnp.square(merge_model(graph, t, base)(X, EVAL)).sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(trainable))

    texts = {remat: program(remat) for remat in REMAT}
    # Matrix products are what "save_matmuls" does not repeat.
    products = {remat: text.count("dot_general") for remat, text in texts.items()}
    assert products["none"] <= products["save_matmuls"] < products["full"]
    assert products["none"] < products["save_adapters"] < products["full"] == products["offload"]


def test_unknown_remat_is_refused():
    stack = make_stack()
    stack.remat = "ful"
    with pytest.raises(
        UserError, match="remat 'ful' is not one of none, full, save_matmuls, save_adapters, "
    ):
        stack(X, EVAL)


@pytest.mark.slow
def test_cutting_changes_no_number(whole):
    """Dropout masks too: they belong to the layer's number, not to its place in a run."""
    stack = make_stack()
    stack.cut([1, 3])
    assert stack.ranges() == [range(0, 1), range(1, 3), range(3, 4)]
    y, sown, gradient = gradients(stack)
    together = lambda *runs: np.concatenate(runs)  # noqa: E731
    reports = [sown[f"run_{i}"][0] for i in range(3)]
    slopes = [gradient["runs"][i] for i in range(3)]
    assert_close(y, whole[0])
    assert_close(jax.tree.map(together, *reports), whole[1]["run_0"][0])
    assert_close(jax.tree.map(together, *slopes), whole[2]["runs"][0])


def test_cuts_add_up_and_edges_are_no_cuts():
    stack = make_stack()
    stack.cut([0, LAYERS, 3])
    assert stack.sizes == (3, 1)
    stack.cut([3, 1])
    assert stack.sizes == (1, 2, 1)
    assert [run.mix.kernel.shape[0] for run in stack.runs] == [1, 2, 1]
    assert [run.mix.adapter.scale.shape[0] for run in stack.runs] == [1, 2, 1]
    pieces = np.concatenate([run.mix.kernel[...] for run in stack.runs])
    np.testing.assert_array_equal(pieces, make_stack().runs[0].mix.kernel[...])


def test_the_program_does_not_grow_with_depth():
    def size(layers):
        graph, trainable, base = split_model(make_stack(layers))
        call = lambda t, x: merge_model(graph, t, base)(x, TRAIN)  # noqa: E731
        return len(str(jax.make_jaxpr(call)(trainable, X)).splitlines())

    assert size(16) == size(2)


def test_further_arguments_reach_every_layer():
    class Scaled(nnx.Module):
        def __init__(self, *, rngs):
            self.gain = nnx.Param(jax.random.uniform(rngs.params(), ()))

        def __call__(self, x, ctx, power, offset):
            return x * self.gain[...] ** power + offset

    stack = Stack(lambda r: Scaled(rngs=r), 3, rngs=nnx.Rngs(0))
    gains = np.asarray(stack.runs[0].gain[...], np.float64)
    expected = 2.0
    for gain in gains:
        expected = expected * gain**2 + 0.5
    got = stack(jnp.float32(2.0), EVAL, jnp.float32(2.0), jnp.float32(0.5))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
