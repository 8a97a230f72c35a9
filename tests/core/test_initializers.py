"""Start values of factors and routers."""

import jax
import numpy as np
import pytest

from goat_jax.core.initializers import factors_of_segments, kaiming_uniform, zero_delta
from goat_jax.core.svd import block_heads, svd_of_kernel, take_segments
from goat_jax.testing import assert_close


def test_kaiming_uniform_is_bounded_by_the_root_of_its_fan_in():
    draw = np.asarray(kaiming_uniform(jax.random.key(0), (100, 200), 100), np.float64)
    assert np.abs(draw).max() <= 0.1 and np.abs(draw).max() > 0.0999
    np.testing.assert_allclose(draw.var(), 1 / 300, rtol=0.02)
    assert abs(draw.mean()) < 1e-3


def test_zero_delta_starts_a_over_the_input_features_and_b_at_zero():
    factors = jax.tree.map(np.asarray, zero_delta(jax.random.key(1), 100, 7, 3, 2))
    assert factors["a"].shape == (3, 100, 2) and factors["b"].shape == (3, 2, 7)
    assert not factors["b"].any()
    # The fan-in is I = 100, not the E * I that a generic initializer sees in this shape.
    np.testing.assert_allclose(np.abs(factors["a"]).max(), 0.1, rtol=0.02)
    assert all(array.dtype == np.float32 for array in factors.values())
    assert len(np.unique(factors["a"][:, 0, 0])) == 3, "experts must start apart"


@jax.jit
def start(kernel, scale, rho):
    index = block_heads(min(kernel.shape), 3, 2, jax.random.key(0))
    return factors_of_segments(take_segments(svd_of_kernel(kernel), index), scale, rho)


@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
@pytest.mark.parametrize(("scale", "rho"), [(1.0, 1.0), (48.0, 10.0), (0.5, 10.0)])
def test_scaled_product_is_one_rho_th_of_the_segment(shape, scale, rho):
    kernel = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    factors = start(kernel, np.float32(scale), np.float32(rho))
    # An independent decomposition, in float64; products do not depend on the vectors' signs.
    u, s, vt = np.linalg.svd(np.asarray(kernel, np.float64), full_matrices=False)
    for expert in range(3):
        place = slice(2 * expert, 2 * expert + 2)
        segment = (u[:, place] * s[place]) @ vt[place]
        a, b = (np.asarray(factors[name][expert], np.float64) for name in "ab")
        assert_close(scale * a @ b, segment / rho)
        # Split evenly: a^T a = b b^T = the singular values, damped.
        assert_close(a.T @ a, np.diag(s[place]) / (scale * rho))
        assert_close(b @ b.T, np.diag(s[place]) / (scale * rho))
