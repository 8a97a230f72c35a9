"""Dropout: only on the experts' input, inverted, shared or per expert, off in eval mode."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.adapters.adapter import apply_adapter, init_adapter
from goat_jax.adapters.context import EVAL, Context
from goat_jax.adapters.methods import method_spec
from goat_jax.core.dropout import dropout
from goat_jax.core.routers import route_top_k
from goat_jax.testing import assert_close

IN, OUT, TOKENS, EXPERTS, RATE = 6, 5, 4, 4, 0.5
APPLY = jax.jit(apply_adapter, static_argnums=4)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


KERNEL, X = random(IN, OUT), random(TOKENS, IN, seed=1)
SCALE = jnp.full(EXPERTS, 2.0, jnp.float32)
FACTORS = {
    "a": random(EXPERTS, IN, 2, seed=2),
    "b": random(EXPERTS, 2, OUT, seed=3),
    "router": random(IN, EXPERTS, seed=4),
}


def spec_of(rate=RATE, per_expert=False):
    return method_spec(
        "molora",
        total_rank=2 * EXPERTS,
        num_experts=EXPERTS,
        top_k=3,
        dropout=rate,
        dropout_per_expert=per_expert,
    )


def delta_of(spec, ctx):
    delta, report = APPLY(X, KERNEL, FACTORS, SCALE, spec, ctx)
    return np.asarray(delta), report


def test_mask_is_inverted_and_drops_at_its_rate():
    ones = jnp.ones((100, 100))
    dropped = np.asarray(jax.jit(lambda key: dropout(ones, 0.2, key))(jax.random.key(0)))
    np.testing.assert_allclose(np.unique(dropped), [0.0, 1.25])
    np.testing.assert_allclose((dropped == 0).mean(), 0.2, atol=0.015)
    np.testing.assert_allclose(dropped.mean(), 1.0, atol=0.02)


def test_bfloat16_is_scaled_by_the_rate_itself():
    """Not by 0.8984, which is 0.9 in bfloat16."""
    x = jax.random.normal(jax.random.key(1), (100, 100), jnp.bfloat16)
    dropped = dropout(x, 0.1, jax.random.key(0))
    expected = (np.asarray(x, np.float32) / np.float32(0.9)).astype(jnp.bfloat16)
    assert dropped.dtype == jnp.bfloat16
    kept = np.asarray(dropped != 0)
    assert kept.mean() > 0.8 and (np.asarray(dropped) == expected)[kept].all()


def test_copies_are_independent_masks():
    copies = np.asarray(dropout(jnp.ones((100, 100)), 0.5, jax.random.key(0), copies=3))
    assert copies.shape == (3, 100, 100)
    agree = [(copies[i] == copies[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(agree, 0.5, atol=0.03)


@pytest.mark.parametrize("per_expert", [False, True])
def test_no_key_is_eval_mode(per_expert):
    """Deterministic, and the same as a method without dropout, bit for bit."""
    quiet, _ = delta_of(spec_of(0.0), EVAL)
    np.testing.assert_array_equal(delta_of(spec_of(per_expert=per_expert), EVAL)[0], quiet)
    noisy, _ = delta_of(spec_of(per_expert=per_expert), Context(key=jax.random.key(0)))
    assert np.abs(noisy - quiet).max() > 0.1


def test_the_same_key_gives_the_same_masks():
    first, again, other = (
        delta_of(spec_of(), Context(key=jax.random.key(seed)))[0] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


@pytest.mark.parametrize("per_expert", [False, True])
def test_the_router_sees_x_itself(per_expert):
    _, quiet = delta_of(spec_of(0.0), EVAL)
    _, noisy = delta_of(spec_of(per_expert=per_expert), Context(key=jax.random.key(0)))
    np.testing.assert_array_equal(noisy.aux_loss, quiet.aux_loss)
    np.testing.assert_array_equal(noisy.load, quiet.load)
    np.testing.assert_array_equal(noisy.entropy, quiet.entropy)


@pytest.mark.slow
def test_expected_output_is_that_of_eval_mode_for_shared_and_own_masks():
    """Different noise, one expectation: averaged over draws both are the output without dropout."""
    draws = 6000
    quiet = np.asarray(delta_of(spec_of(0.0), EVAL)[0], np.float64)

    @partial(jax.jit, static_argnums=1)
    def sample(keys, spec):
        def one(key):
            return apply_adapter(X, KERNEL, FACTORS, SCALE, spec, Context(key=key))[0]

        return jax.vmap(one)(keys)

    keys = jax.random.split(jax.random.key(0), draws)
    specs = [spec_of(per_expert=own) for own in (False, True)]
    outputs = [np.asarray(sample(keys, spec), np.float64) for spec in specs]
    for values in outputs:
        error = values.std(0) / np.sqrt(draws)
        assert (np.abs(values.mean(0) - quiet) < 5 * error).all()
        assert (5 * error).max() < 0.1 * np.abs(quiet).max(), "the bound must mean something"
    # One mask adds the experts before squaring, own masks after: the variances by hand.
    gate = np.asarray(route_top_k(X @ FACTORS["router"], 3).weights, np.float64) * 2.0
    paths = np.einsum("SE,SI,EIR,ERO->SEIO", gate, X, FACTORS["a"], FACTORS["b"])
    shared, own = (paths.sum(1) ** 2).sum(1), (paths**2).sum((1, 2))
    for values, variance in zip(outputs, (shared, own), strict=True):
        np.testing.assert_allclose(values.var(0) / variance, 1.0, atol=0.2)
    assert np.abs(shared / own - 1).max() > 0.5, "or the two could not be told apart"


def test_fold_gives_parts_of_a_model_their_own_masks():
    ctx = Context(key=jax.random.key(0), mask=jnp.ones(3))
    ones = jnp.ones((100, 100))
    masks = (dropout(ones, 0.5, ctx.fold(i).key) for i in (1, 2, 1))
    first, second, again = (np.asarray(mask) for mask in masks)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose((first == second).mean(), 0.5, atol=0.05)
    assert ctx.fold(1).mask is ctx.mask and EVAL.fold(1) is EVAL
    assert ctx.unmasked().mask is None and ctx.unmasked().key is ctx.key


def test_only_dropped_values_are_missing():
    """One expert of weight 1: the delta is exactly that of the masked and rescaled input."""
    spec = method_spec("lora", total_rank=2, dropout=RATE, alpha=4.0)
    factors = {name: FACTORS[name][:1] for name in "ab"}
    key = jax.random.key(7)
    delta, _ = APPLY(X, KERNEL, factors, SCALE[:1], spec, Context(key=key))
    masked = np.asarray(dropout(X, RATE, key), np.float64)
    kept = masked != 0
    np.testing.assert_allclose(masked[kept], np.asarray(X)[kept] / (1 - RATE), rtol=1e-6)
    assert 0 < kept.mean() < 1
    a, b = (np.asarray(factors[name][0], np.float64) for name in "ab")
    assert_close(delta, 2.0 * masked @ a @ b)


def plain_dropout(x, bits, rate):
    """The definition, with the mask that `mask_bits` packed."""
    keep = jnp.unpackbits(bits, axis=-2, count=x.shape[-2], bitorder="little")
    scaled = (x.astype(jnp.float32) / (1.0 - rate)).astype(x.dtype)
    return jnp.where(keep.astype(bool), jnp.broadcast_to(scaled, keep.shape), 0)


@pytest.mark.parametrize("shape", [(7,), (3, 11), (2, 13, 6), (2, 3, 8, 5)])
@pytest.mark.parametrize("copies", [None, 3])
def test_packed_masks_are_bernoulli_s(shape, copies):
    x, key = jnp.ones(shape), jax.random.key(4)
    whole = shape if copies is None else (copies, *shape)
    keep = jax.random.bernoulli(key, 0.7, whole)
    np.testing.assert_array_equal(np.asarray(dropout(x, 0.3, key, copies)) != 0, keep)


@pytest.mark.parametrize("method", ["lora", "goat", "molora", "hydralora", "dora", "adamole"])
@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.nightly)]
)
def test_gradients_are_those_of_the_kept_copy(method, dtype, monkeypatch):
    """Values that the backward pass computes again are those of the forward pass."""
    spec = method_spec(method, total_rank=8, dropout=0.3)
    kernel = random(16, 12, seed=6)
    start = init_adapter(kernel, spec, jax.random.key(2))
    factors = jax.tree.map(lambda a: a + 0.1, start.factors)
    x = random(2, 11, 16, seed=9).astype(dtype)

    def gradients():
        def loss(x, factors):
            delta, report = apply_adapter(
                x, start.kernel, factors | start.constants, start.scale, spec,
                Context(key=jax.random.key(7)),
            )  # fmt: skip
            return jnp.sin(delta.astype(jnp.float32)).sum() + report.aux_loss

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, factors)

    found = gradients()
    monkeypatch.setattr("jax.checkpoint", lambda f, **kwargs: f)
    monkeypatch.setattr("goat_jax.adapters.adapter.masked", plain_dropout)
    for ours, plain in zip(*map(jax.tree.leaves, (found, gradients())), strict=True):
        assert_close(ours, plain, 1e-5 if dtype == jnp.float32 else 2e-2)


@pytest.mark.parametrize("method", ["lora", "goat", "dora", "adamole"])
def test_x_and_a_bit_per_number_are_kept(method):
    """The backward pass of a bfloat16 layer keeps no second array of x's size."""
    spec = method_spec(method, total_rank=8, dropout=0.1)
    sizes = (256, 8)
    x = jax.ShapeDtypeStruct((2, 64, sizes[0]), jnp.bfloat16)
    start = jax.eval_shape(
        partial(init_adapter, spec=spec), jnp.zeros(sizes), key=jax.random.key(0)
    )

    def pull(x, factors):
        def adapter(x, factors):
            arrays = factors | jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), start.constants)
            ctx, scale = Context(key=jax.random.key(0)), jnp.ones(start.scale.shape)
            return apply_adapter(x, jnp.ones(sizes, jnp.bfloat16), arrays, scale, spec, ctx)[0]

        return jax.vjp(adapter, x, factors)[1]

    kept = jax.tree.leaves(jax.eval_shape(pull, x, start.factors))
    large = [a for a in kept if a.shape[-1:] == (sizes[0],) and a.ndim > 2 and a.shape[0] == 2]
    assert sorted((a.dtype.name, a.size) for a in large) == [
        ("bfloat16", x.size),
        ("uint8", x.size // 8),
    ]
