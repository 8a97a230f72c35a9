"""NNX models that were not written for us: Flax's own attention, and layers of every kind."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import qwix
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from goat_jax import Context, Factor, adapt_nnx, merge_nnx, method_spec, run_adapted
from goat_jax.core.residual import delta_weight
from goat_jax.errors import UserError
from goat_jax.integrations.matmul_views import Axes
from goat_jax.integrations.nnx import LinearLayer
from goat_jax.nn.dense import Adapter
from goat_jax.testing import CountTraces, assert_close
from tiers import each

GOAT = method_spec("goat", total_rank=8, num_experts=4)
KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(0), (2, 5, 16))


class Block(nnx.Module):
    """Layers of every kind that can be adapted, and two that cannot."""

    positions: nnx.Param

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs)
        self.up = nnx.Linear(16, 24, rngs=rngs)
        self.down = nnx.Einsum("BTF,DF->BTD", (16, 24), bias_shape=(16,), rngs=rngs)
        self.mix = nnx.Conv(16, 16, (3,), rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(x)
        return self.mix(x + self.down(nnx.gelu(self.up(x))))


class Deep(nnx.Module):
    """Three blocks, scanned and rematerialised."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs):
            return nnx.Linear(16, 16, rngs=rngs)

        self.blocks = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        @nnx.remat
        def run(x, block):
            return x + jnp.tanh(block(x))

        return run(x, self.blocks)


def adapter_of(layer) -> Adapter:
    return layer.adapter


@cache
def _block():
    return Block(nnx.Rngs(0))


def block():
    """A copy of one block, which need not be initialized for every test."""
    return nnx.clone(_block())


NAMES = [f"attention.{part}" for part in ("query", "key", "value", "out")] + ["up", "down"]


@pytest.mark.slow
def test_every_layer_is_found_and_the_others_are_named():
    model = block()
    paths = nnx.to_flat_state(nnx.state(model, nnx.Param))
    report = adapt_nnx(model, GOAT, key=KEY)
    assert sorted(report.modules) == sorted(NAMES)
    assert report.left == {"mix": "Conv is none of nnx.Linear, nnx.LinearGeneral, nnx.Einsum"}
    left = nnx.to_flat_state(nnx.state(model, nnx.All(nnx.Param, nnx.Not(Factor))))
    assert [path for path, _ in paths] == [path for path, _ in left]
    assert isinstance(model.up, nnx.Linear)


@pytest.mark.slow
def test_a_matrix_of_the_models_own_is_left_by_a_readable_name():
    model = block()
    model.positions = nnx.Param(jnp.zeros((5, 16)))
    report = adapt_nnx(model, GOAT, key=KEY)
    assert report.left["(model)"] == ("Block is none of nnx.Linear, nnx.LinearGeneral, nnx.Einsum")
    assert "" not in report.left and sorted(report.modules) == sorted(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("method", each(["lora", "pissa", "dora"], ["lora"]))
def test_it_starts_as_it_was_and_merges_to_itself(method):
    model, run = block(), nnx.jit(lambda model: model(X))
    before = run(model)
    adapt_nnx(model, method_spec(method, total_rank=4), key=KEY)
    assert_close(run(model), before, 1e-5)
    factors = nnx.state(model, nnx.All(Factor, nnx.PathContains("b")))
    nnx.update(model, jax.tree.map(lambda b: b + 0.1, factors))
    moved = run(model)
    assert float(jnp.abs(moved - before).max()) > 1e-2
    merge_nnx(model)
    assert_close(run(model), moved, 1e-5)
    assert type(model.up) is nnx.Linear and not nnx.to_flat_state(nnx.state(model, Factor))


def test_a_layer_is_ours_by_hand():
    """The delta of a general layer is that of its matrix, experts weighed by the router."""
    model = nnx.LinearGeneral((4, 4), (2, 8), axis=(-2, -1), rngs=nnx.Rngs(1))
    before = model.kernel[...].reshape(16, 16)
    adapt_nnx(model, GOAT, key=KEY)
    own = adapter_of(model)
    factors = own.factors()
    start = delta_weight(factors["a"], factors["b"], own.scale[...], 1 / 4)
    assert_close(model.kernel[...].reshape(16, 16), before - start, 1e-5)


@pytest.mark.slow
def test_a_step_of_optax_trains_the_adapters_only():
    model = block()
    adapt_nnx(model, GOAT, key=KEY)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=Factor)
    frozen = nnx.state(model, nnx.All(nnx.Param, nnx.Not(Factor)))
    frozen = jax.tree.map(jnp.copy, frozen)

    def loss_of(model):
        y, aux = run_adapted(model, X, ctx=Context(mask=jnp.ones((2, 5))))
        return jnp.mean(jnp.square(y - 1)) + aux, aux

    traced = CountTraces(loss_of)

    @nnx.jit
    def step(model, optimizer):
        grad = nnx.value_and_grad(traced, argnums=nnx.DiffState(0, Factor), has_aux=True)
        (loss, aux), grads = grad(model)
        optimizer.update(model, grads)
        return loss, aux

    with jax.numpy_dtype_promotion("standard"):
        found = [step(model, optimizer) for _ in range(8)]
    assert found[-1][0] < found[0][0] and traced.count == 1
    assert float(found[0][1]) > 0
    after = nnx.state(model, nnx.All(nnx.Param, nnx.Not(Factor)))
    jax.tree.map(np.testing.assert_array_equal, frozen, after)


@pytest.mark.slow
def test_scanned_layers_have_adapters_of_their_own():
    model = Deep(nnx.Rngs(0))
    report = adapt_nnx(model, GOAT, key=KEY)
    assert report.modules == ("blocks",) and adapter_of(model.blocks).factors()["a"].shape == (
        3,
        4,
        16,
        2,
    )
    y, aux = nnx.jit(run_adapted)(model, X)
    graph, state = nnx.split(model.blocks)
    expected, total = X, 0.0
    for i in range(3):
        layer = nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], state))
        delta, one = run_adapted(layer, expected)
        expected, total = expected + jnp.tanh(delta), total + one
    assert_close(y, expected, 1e-5)
    assert_close(aux, total, 1e-5)


def test_dropout_follows_the_key_and_is_off_without():
    model = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
    adapt_nnx(model, method_spec("pissa", total_rank=4, dropout=0.5), key=KEY)
    keys = [jax.random.key(i) for i in (0, 0, 1)]
    first, again, other = (run_adapted(model, X, ctx=Context(key=key))[0] for key in keys)
    np.testing.assert_array_equal(first, again)
    assert float(jnp.abs(first - other).max()) > 1e-3
    assert float(jnp.abs(model(X) - first).max()) > 1e-3


def test_on_a_mesh_it_computes_the_same():
    model = nnx.Linear(16, 8, rngs=nnx.Rngs(0))
    adapt_nnx(model, GOAT, key=KEY)
    expected = model(X)
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    cut = NamedSharding(mesh, PartitionSpec("fsdp", None))
    graph, state = nnx.split(model)
    whole = NamedSharding(mesh, PartitionSpec())
    state = jax.device_put(state, whole)
    state["kernel"].set_value(jax.device_put(state["kernel"][...], cut))
    run = jax.jit(lambda state, x: run_adapted(nnx.merge(graph, state), x)[0])
    assert_close(run(state, jax.device_put(X, rows)), expected, 1e-5)


def test_bad_targets():
    model = block()
    with pytest.raises(UserError, match="mix cannot be adapted: Conv is none of"):
        adapt_nnx(model, GOAT, ["mix"], key=KEY)
    with pytest.raises(UserError, match="'upp' matches no module with a kernel"):
        adapt_nnx(model, GOAT, ["upp"], key=KEY)
    with pytest.raises(UserError, match="computes the complete layer"):
        adapt_nnx(model, method_spec("full"), key=KEY)
    with pytest.raises(UserError, match="whole_model=false"):
        adapt_nnx(model, method_spec("lora", whole_model=True), key=KEY)
    adapt_nnx(model, GOAT, ["up"], key=KEY)
    with pytest.raises(UserError, match="has adapters already"):
        adapt_nnx(model, GOAT, ["down"], key=KEY)


class Scaled(nnx.Module):
    """A layer that Flax does not have: its kernel has another name."""

    def __init__(self, inputs, outputs, rngs):
        self.shape = inputs, outputs
        self.w = nnx.Param(jax.random.normal(rngs.params(), (inputs, outputs)))

    def __call__(self, x):
        return jnp.einsum("...i,io->...o", x, self.w[...])


SCALED = LinearLayer(lambda layer: Axes(*((size,) for size in layer.shape)), kernel="w")


def test_a_class_of_other_people_s_is_adapted_if_told_how():
    model = nnx.Sequential(Scaled(16, 12, nnx.Rngs(0)))
    before = model(X)
    with pytest.raises(UserError, match=r"layers\.0: Scaled is none of nnx\.Linear"):
        adapt_nnx(model, GOAT, key=KEY)
    lora = method_spec("lora", total_rank=4)
    assert adapt_nnx(model, lora, key=KEY, layers={Scaled: SCALED}).modules == ("layers.0",)
    adapter: Any = adapter_of(model.layers[0])
    adapter.b.set_value(adapter.b[...] + 0.1)
    moved = model(X)
    assert float(jnp.abs(moved - before).max()) > 1e-2
    merge_nnx(model)
    assert_close(model(X), moved, 1e-5)
    assert type(model.layers[0]) is Scaled


def test_a_kernel_that_is_not_as_told_is_refused():
    layer = Scaled(16, 12, nnx.Rngs(0))
    layer.w.set_value(jnp.ones((16, 3, 12)))
    with pytest.raises(UserError, match=r"w has the shape \(16, 3, 12\), .* has to come first"):
        adapt_nnx(layer, GOAT, key=KEY, layers={Scaled: SCALED})
    with pytest.raises(UserError, match="Scaled has no array kernel"):
        adapt_nnx(layer, GOAT, key=KEY, layers={Scaled: LinearLayer(SCALED.view)})


@pytest.mark.parametrize(
    "layer", [nnx.Linear(32, 16, rngs=nnx.Rngs(0)), Scaled(32, 16, nnx.Rngs(0))]
)
@pytest.mark.filterwarnings("ignore")
def test_qwix_quantizes_the_kernel_and_no_adapter(layer):
    model, x = nnx.Sequential(layer), jax.random.normal(KEY, (3, 32))
    adapt_nnx(model, method_spec("dora", total_rank=4), key=KEY, layers={Scaled: SCALED})
    factors = nnx.state(model, Factor)
    rule = qwix.QuantizationRule(module_path="layers/0", weight_qtype=jnp.int8)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        quantized = qwix.quantize_model(model, qwix.PtqProvider([rule]), x)
        error = jnp.abs(quantized(x) - model(x)).max()
    assert 0 < error < 0.05 * jnp.abs(model(x)).max()
    jax.tree.map(np.testing.assert_array_equal, nnx.state(quantized, Factor), factors)
    with pytest.raises(UserError, match="is quantized: merge before quantize_model"):
        merge_nnx(quantized)
