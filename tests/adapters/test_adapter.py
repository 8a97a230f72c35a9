"""init, apply and merge of an adapter: what it starts as, what it reports, what it folds into."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from goat_jax.adapters.adapter import apply_adapter, init_adapter, merge_adapter
from goat_jax.adapters.context import EVAL, Context
from goat_jax.adapters.methods import METHODS, method_spec
from goat_jax.adapters.parts.routers import NoRouter
from goat_jax.errors import UserError
from goat_jax.testing import assert_close

IN, OUT, TOKENS = 12, 16, 9
SINGLE = ["lora", "rslora", "pissa", "milora"]
ROUTED = ["molora", "goat", "goat_plus"]
# What every row has to do is in test_contract.py.
START = jax.jit(init_adapter, static_argnums=1)
APPLY = jax.jit(apply_adapter, static_argnums=4)
KEY = jax.random.key(0)


GOAT = method_spec("goat", total_rank=8, num_experts=4, top_k=4)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


KERNEL, X = random(IN, OUT), random(TOKENS, IN, seed=1)


def exact(array):
    return np.asarray(array, np.float64)


def delta_of(start, weight):
    """weight * sum_i s_i a_i b_i in float64."""
    a, b, s = (exact(v) for v in (start.factors["a"], start.factors["b"], start.scale))
    return weight * sum(s[i] * a[i] @ b[i] for i in range(len(s)))


@pytest.mark.parametrize("name", [*SINGLE, *ROUTED])
def test_start(name):
    spec = METHODS[name].spec.replace(total_rank=8)
    start = START(KERNEL, spec, KEY)
    shapes: dict[str, tuple[int, ...]] = {
        "a": (spec.num_experts, IN, spec.rank),
        "b": (spec.num_experts, spec.rank, OUT),
    }
    if name in ROUTED:
        shapes["router"] = (IN, spec.num_experts)
    assert {n: array.shape for n, array in start.factors.items()} == shapes
    assert all(array.dtype == jnp.float32 for array in start.factors.values())
    assert start.scale.shape == (spec.num_experts,) and start.scale.dtype == jnp.float32
    # W0 = frozen kernel + the experts' expected contribution, for every method.
    weight = 1 / spec.num_experts if name in ROUTED else 1.0
    assert_close(exact(start.kernel) + delta_of(start, weight), KERNEL, 2e-6)


@pytest.mark.parametrize("name", SINGLE)
def test_router_free_methods_start_and_merge_exactly(name):
    spec = METHODS[name].spec
    start = START(KERNEL, spec, KEY)
    delta, _ = APPLY(X, start.kernel, start.factors, start.scale, spec, EVAL)
    assert_close(exact(X) @ exact(start.kernel) + delta, exact(X) @ exact(KERNEL))
    factors = {n: random(*array.shape, seed=2) for n, array in start.factors.items()}
    delta, _ = APPLY(X, start.kernel, factors, start.scale, spec, EVAL)
    merged = merge_adapter(start.kernel, factors, start.scale, spec)
    assert_close(exact(X) @ exact(merged), exact(X) @ exact(start.kernel) + delta)
    assert np.abs(delta).max() > 0.1


def test_several_experts_without_a_router_still_start_as_the_pretrained_layer():
    """The ablation 'O segments, no MoE': all weights are 1, so the whole start is subtracted."""
    spec = method_spec("goat", total_rank=8, num_experts=4, router=NoRouter())
    start = START(KERNEL, spec, KEY)
    delta, _ = APPLY(X, start.kernel, start.factors, start.scale, spec, EVAL)
    assert_close(exact(X) @ exact(start.kernel) + delta, exact(X) @ exact(KERNEL))
    merged = merge_adapter(start.kernel, start.factors, start.scale, spec)
    assert_close(merged, KERNEL)


@pytest.mark.parametrize("name", ROUTED)
def test_routed_methods_refuse_to_merge_and_say_why(name):
    spec = METHODS[name].spec
    factors = {"a": jnp.zeros((8, IN, 1)), "b": jnp.zeros((8, 1, OUT))}
    with pytest.raises(UserError, match="weights the experts token by token, so no single kernel"):
        merge_adapter(KERNEL, factors, jnp.ones(8), spec)


def test_uniform_router_over_all_experts_starts_as_the_pretrained_layer():
    """methods.md 22.7: exact per token only if k = E and the router is uniform."""
    start = START(KERNEL, GOAT, KEY)
    factors = start.factors | {"router": np.zeros((IN, 4), np.float32)}
    delta, _ = APPLY(X, start.kernel, factors, start.scale, GOAT, EVAL)
    assert_close(exact(X) @ exact(start.kernel) + delta, exact(X) @ exact(KERNEL))
    uneven, _ = APPLY(X, start.kernel, start.factors, start.scale, GOAT, EVAL)
    assert np.abs(uneven - delta).max() > 1e-3


@pytest.mark.parametrize("with_first_scale", [False, True])
def test_residual_of_unequal_scales(with_first_scale):
    """Theorem 3.4 uses each expert's own scale; the published code uses the first for all."""
    spec = method_spec(
        "goat_plus",
        total_rank=8,
        num_experts=4,
        with_first_scale=with_first_scale,
    )
    start = START(KERNEL, spec, KEY)
    a, b, s = (exact(v) for v in (start.factors["a"], start.factors["b"], start.scale))
    assert s[-1] > 1.2 * s[0], "the scales must differ for this test to say anything"
    used = np.full(4, s[0]) if with_first_scale else s
    subtracted = sum(used[i] * a[i] @ b[i] for i in range(4)) / 4
    assert_close(exact(KERNEL) - exact(start.kernel), subtracted, 2e-5)
    # The factors start from the first expert's scale, whatever their own (appendix E).
    norms = [np.linalg.norm(s[0] * a[i] @ b[i]) for i in range(4)]
    values = np.linalg.svd(exact(KERNEL), compute_uv=False)
    lengths = [np.hypot(*values[3 * i : 3 * i + 2]) for i in range(4)]
    np.testing.assert_allclose(norms, np.array(lengths) / 10, rtol=1e-5)


def test_goat_plus_scales_follow_the_spectrum():
    spec = method_spec("goat_plus", total_rank=8, num_experts=4, with_first_scale=False)
    scale = exact(START(KERNEL, spec, KEY).scale)
    values = np.linalg.svd(exact(KERNEL), compute_uv=False)
    sums = np.array([values[3 * i : 3 * i + 2].sum() for i in range(4)])
    np.testing.assert_allclose(scale[0], np.sqrt(3 * IN / 2), rtol=1e-6)
    np.testing.assert_allclose(scale**2 * sums, scale[0] ** 2 * sums[0], rtol=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_goat_plus_on_a_kernel_of_low_rank_is_finite(rank):
    """Its later segments are empty: those experts add nothing, and break nothing."""
    kernel = np.zeros((IN, OUT), np.float32)
    np.fill_diagonal(kernel[:rank, :rank], 3.0)
    spec = method_spec("goat_plus", total_rank=8, num_experts=4, top_k=4)
    start = START(kernel, spec, KEY)
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(start))
    np.testing.assert_array_equal(start.scale, np.full(4, start.scale[0]))
    delta, _ = APPLY(X, start.kernel, start.factors, start.scale, spec, EVAL)
    assert np.isfinite(delta).all() and bool(np.any(delta)) == (rank > 0)


def test_bfloat16_kernel_keeps_its_dtype_and_float32_factors():
    kernel = KERNEL.astype(ml_dtypes.bfloat16)
    start = START(jnp.asarray(kernel), GOAT, KEY)
    wide = START(kernel.astype(np.float32), GOAT, KEY)
    assert start.kernel.dtype == jnp.bfloat16 and start.factors["a"].dtype == jnp.float32
    assert_close(start.factors, wide.factors, 1e-6)
    once = np.asarray(wide.kernel).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(start.kernel), once)


def test_merging_into_a_bfloat16_kernel_rounds_once():
    kernel = KERNEL.astype(ml_dtypes.bfloat16)
    factors = {"a": random(1, IN, 2, seed=2), "b": random(1, 2, OUT, seed=3)}
    spec = method_spec("lora", total_rank=2)
    merged = merge_adapter(jnp.asarray(kernel), factors, jnp.array([2.0]), spec)
    expected = exact(kernel) + 2 * exact(factors["a"][0]) @ exact(factors["b"][0])
    np.testing.assert_array_equal(np.asarray(merged), expected.astype(ml_dtypes.bfloat16))


def test_random_segments_depend_on_the_key_and_factors_on_nothing_else():
    spec = method_spec("goat", total_rank=4, num_experts=4, segments="random")
    first, again, other = (
        jax.tree.map(np.asarray, START(KERNEL, spec, jax.random.key(i)).factors) for i in (1, 1, 2)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.abs(first["a"] - other["a"]).max() > 1e-3
    assert np.abs(first["router"] - other["router"]).max() > 1e-3


def test_rank_above_the_smaller_side_is_refused():
    spec = method_spec("goat", total_rank=16)
    with pytest.raises(UserError, match="total rank 16 is above the layer's smaller side 12"):
        init_adapter(KERNEL, spec, KEY)


def test_report():
    spec = method_spec("molora", total_rank=4, num_experts=4)
    factors = {"a": random(4, IN, 1), "b": random(4, 1, OUT), "router": random(IN, 4, seed=5)}
    mask = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0])

    def report_of(spec, mask):
        return APPLY(X, KERNEL, factors, np.ones(4, np.float32), spec, Context(mask=mask))[1]

    z = exact(X[mask != 0]) @ exact(factors["router"])
    probs = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    load = (z >= np.sort(z, -1)[:, [-2]]).mean(0)
    report = report_of(spec, mask)
    assert_close(report.load, load)
    assert_close(report.aux_loss, 4 / 2 * (load * probs.mean(0)).sum())
    assert_close(report.entropy, -(probs * np.log(probs)).sum(-1).mean())
    # The published forms: k times as much, and padding counted.
    assert_close(report_of(spec.replace(reference_code=True), mask).aux_loss, 2 * report.aux_loss)
    padded = report_of(spec.replace(count_padding=True), mask).aux_loss
    assert_close(padded, report_of(spec, np.ones(TOKENS, np.int64)).aux_loss)
    assert abs(padded - report.aux_loss) > 1e-3


def test_report_of_a_method_without_router():
    spec = METHODS["lora"].spec
    start = START(KERNEL, spec, KEY)
    _, report = APPLY(X, KERNEL, start.factors, start.scale, spec, EVAL)
    assert report.aux_loss == 0 and report.load.tolist() == [1.0] and report.entropy == 0
