"""The frozen kernel: what is subtracted, at which precision, and that it is cast only once."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from goat_jax.core.initializers import factors_of_segments
from goat_jax.core.residual import delta_weight, residual_kernel
from goat_jax.core.svd import block_heads, svd_of_kernel, take_segments
from goat_jax.testing import assert_close

EXPERTS, RANK, SHAPE = 4, 2, (40, 24)
EQUAL, UNEQUAL = (np.array(s, np.float32) for s in ([5, 5, 5, 5], [5, 6, 8, 11]))
RESIDUAL = jax.jit(residual_kernel)


@jax.jit
def start(kernel, scale):
    index = block_heads(min(kernel.shape), EXPERTS, RANK, jax.random.key(0))
    segments = take_segments(svd_of_kernel(kernel), index)
    return factors_of_segments(segments, scale[0], rho=10.0)


def random_kernel(dtype=np.float32):
    return jnp.asarray(np.random.default_rng(7).normal(size=SHAPE).astype(dtype))


def exact_subtraction(kernel, scale):
    """(1/E) sum_i s_i A_i B_i for a start from block heads with rho = 10, in float64."""
    u, s, vt = np.linalg.svd(np.asarray(kernel, np.float64), full_matrices=False)
    total = np.zeros(kernel.shape)
    for expert in range(EXPERTS):
        place = np.arange(RANK) + expert * (24 // EXPERTS)
        segment = (u[:, place] * s[place]) @ vt[place]
        total += np.float64(scale[expert] / scale[0]) * segment / 10
    return total / EXPERTS


def test_delta_weight_is_the_weighted_sum_of_products():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 2, 4))
    scale, weights = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.0, 0.25])
    expected = sum(w * s * x @ y for w, s, x, y in zip(weights, scale, a, b, strict=True))
    got = jax.jit(delta_weight)(*(v.astype(np.float32) for v in (a, b, scale, weights)))
    assert_close(got, expected, 1e-6)


@pytest.mark.parametrize("scale", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_frozen_kernel_plus_mean_of_the_experts_is_the_pretrained_kernel(scale):
    kernel = random_kernel()
    factors = start(kernel, scale)
    frozen = RESIDUAL(kernel, factors["a"], factors["b"], scale, 1 / EXPERTS)
    a, b, s = (np.asarray(v, np.float64) for v in (factors["a"], factors["b"], scale))
    mean = sum(s[i] * a[i] @ b[i] for i in range(EXPERTS)) / EXPERTS
    assert_close(np.asarray(frozen, np.float64) + mean, kernel, 1e-6)
    taken = np.asarray(kernel, np.float64) - np.asarray(frozen, np.float64)
    assert_close(taken, exact_subtraction(kernel, scale), 2e-5)
    assert np.abs(mean).max() > 0.01, "nothing to see here if nothing is subtracted"


def test_residual_is_the_best_constant_for_balanced_routing():
    """Theorem 3.4: no other matrix is nearer to sum_i w_i s_i a_i b_i in the mean square."""
    factors = start(random_kernel(), UNEQUAL)
    a, b = (np.asarray(factors[name], np.float64) for name in "ab")
    deltas = np.asarray(UNEQUAL, np.float64)[:, None, None] * (a @ b)
    rng = np.random.default_rng(0)
    first, second = np.triu_indices(4, 1)
    pairs = rng.integers(len(first), size=4000)
    share = rng.uniform(size=4000)
    weights = np.zeros((4000, 4))
    weights[np.arange(4000), first[pairs]] = share
    weights[np.arange(4000), second[pairs]] = 1 - share
    outcomes = np.einsum("NE,EIO->NIO", weights, deltas)
    own_scales = deltas.sum(0) / 4
    first_scale = (deltas * np.asarray(EQUAL / UNEQUAL, np.float64)[:, None, None]).sum(0) / 4
    loss = {
        name: ((outcomes - guess) ** 2).sum((1, 2)).mean()
        for name, guess in {
            "theorem": own_scales,
            "first scale": first_scale,
            "nothing": 0 * own_scales,
            "whole": 4 * own_scales,
        }.items()
    }
    assert min(loss, key=loss.__getitem__) == "theorem", loss


def steps_apart(got, expected):
    """Counts the bfloat16 values between two arrays, element by element."""

    def order(values):
        bits = np.asarray(values).view(np.uint16).astype(np.int32)
        return np.where(bits & 0x8000, 0x8000 - bits, bits)

    return np.abs(order(got) - order(expected))


def test_residual_of_a_bfloat16_kernel_is_rounded_once():
    kernel = random_kernel(jnp.bfloat16)
    factors = start(kernel, EQUAL)
    frozen = RESIDUAL(kernel, factors["a"], factors["b"], EQUAL, 1 / EXPERTS)
    assert frozen.dtype == jnp.bfloat16
    exact = np.asarray(kernel, np.float64) - exact_subtraction(kernel, EQUAL)
    once = exact.astype(ml_dtypes.bfloat16)
    apart = steps_apart(frozen, once)
    # float32 arithmetic in between may turn a tie: never more than the neighbouring value.
    assert apart.max() <= 1 and (apart == 0).mean() > 0.995

    # The same with the subtracted part rounded first, which is what must not happen.
    rounded = exact_subtraction(kernel, EQUAL).astype(ml_dtypes.bfloat16).astype(np.float64)
    twice = (np.asarray(kernel, np.float64) - rounded).astype(ml_dtypes.bfloat16)
    assert (steps_apart(twice, once) > 0).mean() > 0.02


def test_svd_in_bfloat16_would_be_seen():
    """The tolerance above can fail: factors rounded to bfloat16 leave it."""
    kernel = random_kernel(jnp.bfloat16)
    rough = {
        name: np.asarray(array).astype(ml_dtypes.bfloat16).astype(np.float32)
        for name, array in start(kernel, EQUAL).items()
    }
    frozen = RESIDUAL(kernel, rough["a"], rough["b"], EQUAL, 1 / EXPERTS)
    exact = np.asarray(kernel, np.float64) - exact_subtraction(kernel, EQUAL)
    assert (steps_apart(frozen, exact.astype(ml_dtypes.bfloat16)) == 0).mean() < 0.995
