"""Linen models that were not written for us: Flax's own attention, scans, remats."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from goat_jax import Context, adapt_linen, method_spec
from goat_jax.errors import UserError
from goat_jax.testing import assert_close

GOAT = method_spec("goat", total_rank=8, num_experts=4)
KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(0), (2, 5, 16))


class Encoder(nn.Module):
    """Layers of every kind that can be adapted, and one that cannot."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=4, name="attention")(x)
        x = nn.gelu(nn.Dense(24, name="up")(x))
        x = nn.Einsum((16, 24), "BTF,DF->BTD", name="down")(x)
        return nn.Conv(16, (3,), name="mix")(x)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + jnp.tanh(nn.Dense(16, name="dense")(x)), None


class Deep(nn.Module):
    """Three layers, scanned and rematerialised."""

    axes: tuple = ("params", "intermediates")

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(
            nn.remat(Layer), dict.fromkeys(self.axes, 0), split_rngs={"params": True}, length=3
        )
        return stack(name="layers")(x, None)[0]


@cache
def initial(model):
    return jax.jit(model.init)(jax.random.key(1), X)


def made(model, spec=GOAT, **options):
    variables = initial(model)
    return variables, *adapt_linen(model, variables, spec, X, key=KEY, **options)


@pytest.mark.slow
def test_every_layer_is_found_and_the_others_are_named():
    variables, apply, frozen, factors = made(Encoder())
    names = [f"attention.{part}" for part in ("query", "key", "value", "out")]
    assert sorted(apply.report.modules) == sorted([*names, "up", "down"])
    assert apply.report.left == {"mix": "Conv is none of nn.Dense, nn.DenseGeneral, nn.Einsum"}
    assert factors["attention"]["query"]["adapter_a"].shape == (4, 16, 2)
    assert factors.keys() <= variables["params"].keys()
    assert apply.report.parameters == sum(leaf.size for leaf in jax.tree.leaves(factors))
    del frozen


class WithPositions(Encoder):
    @nn.compact
    def __call__(self, x):
        x = x + self.param("positions", nn.initializers.zeros, x.shape)
        return nn.Dense(16, name="up")(x)


def test_a_matrix_of_the_models_own_is_left_by_a_readable_name():
    _, apply, *_ = made(WithPositions())
    assert apply.report.modules == ("up",)
    assert apply.report.left == {
        "(model)": "WithPositions is none of nn.Dense, nn.DenseGeneral, nn.Einsum"
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["dora", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("lora", "pissa"))],
)
def test_it_starts_as_it_was_and_merges_to_itself(method):
    model = Encoder()
    variables, apply, frozen, factors = made(model, method_spec(method, total_rank=4))
    run, plain = jax.jit(apply), jax.jit(model.apply)
    before = plain(variables, X)
    assert_close(run(frozen, factors, X)[0], before, 1e-5)
    moved = jax.tree.map(lambda a: a + 0.1, factors)
    after = run(frozen, moved, X)[0]
    assert float(jnp.abs(after - before).max()) > 1e-2
    merged = apply.merge(frozen, moved)
    assert jax.tree.structure(merged) == jax.tree.structure(variables)
    assert_close(plain(merged, X), after, 1e-5)


@pytest.mark.slow
def test_a_loop_of_optax_trains_the_factors():
    _, apply, frozen, factors = made(Encoder())
    optimizer = optax.adam(1e-2)
    state = optimizer.init(factors)

    @jax.jit
    def step(factors, state):
        def loss_of(factors):
            y, aux = apply(frozen, factors, X, ctx=Context(mask=jnp.ones((2, 5))))
            return jnp.mean(jnp.square(y - 1)) + aux, aux

        (loss, aux), grads = jax.value_and_grad(loss_of, has_aux=True)(factors)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state)
        return optax.apply_updates(factors, updates), state, loss, aux

    losses, aux = [], 0.0
    for _ in range(8):
        factors, state, loss, aux = step(factors, state)
        losses.append(float(loss))
    assert losses[-1] < losses[0] and float(aux) > 0


@pytest.mark.nightly
def test_scanned_layers_have_adapters_of_their_own():
    _, apply, frozen, factors = made(Deep())
    own = factors["layers"]["dense"]
    assert own["adapter_a"].shape == (3, 4, 16, 2)
    y, aux = jax.jit(apply)(frozen, factors, X)
    one, expected, total = nn.Dense(16), X, 0.0
    single, _, _ = adapt_linen(one, one.init(KEY, X), GOAT, X, key=KEY)
    kernels = frozen["params"]["layers"]["dense"]
    for i in range(3):
        cut = lambda tree, i=i: jax.tree.map(lambda a: a[i], tree)  # noqa: E731
        delta, loss = single({"params": cut(kernels)}, cut(own), expected)
        expected, total = expected + jnp.tanh(delta), total + loss
    assert_close(y, expected, 1e-5)
    assert_close(aux, total, 1e-5)
    gradient = jax.jit(jax.grad(lambda f: apply(frozen, f, X)[0].sum()))(factors)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradient))


@pytest.mark.nightly
def test_a_scan_that_loses_the_balance_loss_is_refused():
    _, apply, frozen, factors = made(Deep(axes=("params",)))
    with pytest.raises(UserError, match="'intermediates': 0"):
        apply(frozen, factors, X)
    _, apply, frozen, factors = made(Deep(axes=("params",)), method_spec("lora", total_rank=2))
    assert apply(frozen, factors, X)[0].shape == X.shape


@pytest.mark.nightly
def test_dropout_follows_the_key_and_is_off_without():
    _, apply, frozen, factors = made(nn.Dense(8), method_spec("pissa", total_rank=4, dropout=0.5))
    keys = [None, None, *map(jax.random.key, (0, 1))]
    off, again, first, other = (apply(frozen, factors, X, ctx=Context(key=k))[0] for k in keys)
    np.testing.assert_array_equal(off, again)
    assert float(jnp.abs(first - other).max()) > 1e-3 < float(jnp.abs(first - off).max())


@pytest.mark.slow
def test_on_a_mesh_it_computes_the_same():
    _, apply, frozen, factors = made(Encoder())
    run = jax.jit(apply)
    expected = run(frozen, factors, X)[0]
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())
    placed = jax.device_put((frozen, factors), whole)
    kernel = placed[0]["params"]["up"]["kernel"]
    cut = NamedSharding(mesh, PartitionSpec("fsdp", None))
    placed[0]["params"]["up"]["kernel"] = jax.device_put(kernel, cut)
    x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
    assert_close(run(*placed, x)[0], expected, 1e-5)


def test_bad_targets():
    with pytest.raises(UserError, match="mix cannot be adapted: Conv is none of"):
        made(Encoder(), target_modules=["mix"])
    with pytest.raises(UserError, match="'upp' matches no module with a kernel"):
        made(Encoder(), target_modules=["upp"])
