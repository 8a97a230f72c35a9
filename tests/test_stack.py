"""Scanned layers: equal to a loop, however they are cut and whatever is recomputed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.adapters.methods import method_spec
from goat_jax.errors import UserError
from goat_jax.layers import Adapter, merge_model, run_model, split_model
from goat_jax.stack import REMAT, Stack
from goat_jax.testing import TinyBlock, assert_close

LAYERS, WIDTH, EXPERTS = 5, 8, 2
SPEC = method_spec("molora", total_rank=4, num_experts=EXPERTS, top_k=1, dropout=0.3)
CONTEXTS = {"eval": EVAL, "train": Context(key=jax.random.key(3))}


def random(*shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 0.5, jnp.float32)


X = random(3, 4, WIDTH, seed=0)


def make_stack(layers=LAYERS):
    """Adapters on query and down, none on up."""
    stack = Stack(lambda r: TinyBlock(WIDTH, WIDTH, rngs=r), layers, rngs=nnx.Rngs(0))
    for seed, dense in ((10, stack.runs[0].query), (20, stack.runs[0].down)):
        factors = {
            "a": random(layers, EXPERTS, WIDTH, 2, seed=seed),
            "b": random(layers, EXPERTS, 2, WIDTH, seed=seed + 1),
            "router": random(layers, WIDTH, EXPERTS, seed=seed + 2),
        }
        scale = jnp.asarray(np.linspace(0.5, 1.5, layers * EXPERTS), jnp.float32)
        dense.adapter = Adapter(factors, scale.reshape(layers, EXPERTS), SPEC, salt=seed)
    return stack


def gradients(stack, ctx):
    """Output, reports and gradients of every trained array."""
    graph, trainable, base = split_model(stack)

    def loss(trainable):
        y, sown = run_model(merge_model(graph, trainable, base), X, ctx)
        return jnp.square(y).sum(), (y, sown)

    (_, (y, sown)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)
    return y, sown, gradient["adapter"]


@pytest.fixture(scope="module")
def whole():
    """What an uncut stack without recomputation gives."""
    return {mode: gradients(make_stack(), ctx) for mode, ctx in CONTEXTS.items()}


@pytest.mark.parametrize("mode", CONTEXTS)
def test_a_scan_is_a_loop_over_its_layers(whole, mode):
    graph, state = nnx.split(make_stack().runs[0])
    y, _, _ = whole[mode]

    @jax.jit
    def loop(state, x):
        reports = []
        for layer in range(LAYERS):
            block = nnx.merge(graph, jax.tree.map(lambda a, at=layer: a[at], state))
            x, sown = run_model(block, x, CONTEXTS[mode].fold(layer))
            reports.append(sown)
        return x, jax.tree.map(lambda *r: jnp.stack(r), *reports)

    expected, reports = loop(state, X)
    assert_close(y, expected)
    assert_close(whole[mode][1]["run_0"][0], reports)


def test_training_differs_from_evaluation(whole):
    assert np.abs(whole["train"][0] - whole["eval"][0]).max() > 0.1


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_recomputation_changes_no_number(whole, remat):
    stack = make_stack()
    stack.remat = remat
    assert_close(gradients(stack, CONTEXTS["train"]), whole["train"], 1e-5)


def test_recomputation_happens():
    def program(remat):
        stack = make_stack()
        stack.remat = remat
        graph, trainable, base = split_model(stack)
        loss = lambda t: jnp.square(merge_model(graph, t, base)(X, EVAL)).sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(trainable))

    texts = {remat: program(remat) for remat in REMAT}
    assert "remat" not in texts["none"] and "remat" in texts["full"]
    # Matrix products are what the second kind does not repeat.
    products = {remat: text.count("dot_general") for remat, text in texts.items()}
    assert products["save_matmuls"] < products["full"]


def test_unknown_remat_is_refused():
    stack = make_stack()
    stack.remat = "ful"
    with pytest.raises(UserError, match="remat 'ful' is not one of none, full, save_matmuls"):
        stack(X, EVAL)


@pytest.mark.parametrize("starts", [[2], [1, 2, 3, 4]])
def test_cutting_changes_no_number(whole, starts):
    """Dropout masks too: they belong to the layer's number, not to its place in a run."""
    stack = make_stack()
    stack.cut(starts)
    assert stack.ranges() == [
        range(*edges) for edges in zip([0, *starts], [*starts, LAYERS], strict=True)
    ]
    y, sown, gradient = gradients(stack, CONTEXTS["train"])
    together = lambda *runs: jnp.concatenate(runs)  # noqa: E731
    reports = [sown[f"run_{i}"][0] for i in range(len(stack.runs))]
    slopes = [gradient["runs"][i] for i in range(len(stack.runs))]
    expected = whole["train"]
    assert_close(y, expected[0])
    assert_close(jax.tree.map(together, *reports), expected[1]["run_0"][0])
    assert_close(jax.tree.map(together, *slopes), expected[2]["runs"][0])


def test_cuts_add_up_and_edges_are_no_cuts():
    stack = make_stack()
    stack.cut([0, LAYERS, 3])
    assert stack.sizes == (3, 2)
    stack.cut([3, 1])
    assert stack.sizes == (1, 2, 2)
    assert [run.query.kernel.shape[0] for run in stack.runs] == [1, 2, 2]
    assert [run.query.adapter.scale.shape[0] for run in stack.runs] == [1, 2, 2]
    np.testing.assert_array_equal(
        jnp.concatenate([run.query.kernel[...] for run in stack.runs]),
        make_stack().runs[0].query.kernel[...],
    )


def test_the_program_does_not_grow_with_depth():
    def size(layers):
        graph, trainable, base = split_model(make_stack(layers))
        call = lambda t, x: merge_model(graph, t, base)(x, CONTEXTS["train"])  # noqa: E731
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
