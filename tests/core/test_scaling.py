"""Scale rules against the numbers of methods.md 22.4, and GOAT+'s invariant."""

import jax
import numpy as np
import pytest

from goat_jax.core import scaling
from goat_jax.core.initializers import kaiming_uniform
from goat_jax.testing import assert_close


# ViT-B q/k/v/o/fc1 and fc2, RoBERTa-large, LLaMA-2 at two ranks, LLaMA-2's down projection.
@pytest.mark.parametrize(
    ("in_features", "rank", "published"),
    [
        (768, 1, 48.0),
        (3072, 1, 96.0),
        (1024, 4, 27.7),
        (4096, 1, 110.9),
        (4096, 4, 55.4),
        (11008, 1, 181.7),
    ],
)
def test_theory_scale_of_known_layers(in_features, rank, published):
    scale = scaling.theory(2, rank, in_features, 1.0)
    assert scale.dtype == np.float32
    np.testing.assert_allclose(scale, [published] * 2, atol=0.05)
    smaller = np.asarray(scaling.theory(2, rank, in_features, 0.1))
    np.testing.assert_allclose(smaller / np.asarray(scale), 0.1**0.5, rtol=1e-6)


def test_alpha_rules():
    np.testing.assert_allclose(scaling.alpha_over_rank(3, 4, 64.0), [16.0] * 3)
    np.testing.assert_allclose(scaling.alpha_over_root_rank(3, 4, 64.0), [32.0] * 3)


def test_goat_plus_equalises_the_spectrum():
    values = np.array([[9, 8], [5, 4], [1, 0.5]], np.float32)
    scale = np.asarray(jax.jit(scaling.by_spectrum)(np.full(3, 7, np.float32), values))
    np.testing.assert_allclose(scale, 7 * np.sqrt([17 / 17, 17 / 9, 17 / 1.5]), rtol=1e-6)
    invariant = scale**2 * values.sum(1)
    np.testing.assert_allclose(invariant, [invariant[0]] * 3, rtol=1e-6)
    assert scale[0] == 7.0 and (np.diff(scale) > 0).all()


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        ([4, 1, 0], [7, 14, 7]),
        ([0, 0, 0], [7, 7, 7]),
        ([0, 4, 1], [7, 7, 7]),
        ([4, 1, 1e-44], [7, 14, 7]),  # its ratio is above float32's largest number
    ],
)
def test_goat_plus_of_empty_segments_keeps_the_first_scale(sums, expected):
    values = np.array(sums, np.float32)[:, None] / np.full((1, 2), 2, np.float32)
    with jax.debug_nans(True), jax.debug_infs(True):
        scale = jax.jit(scaling.by_spectrum)(np.full(3, 7, np.float32), values)
    np.testing.assert_allclose(scale, expected, rtol=1e-6)


@pytest.mark.parametrize("eta", [1.0, 0.1])
def test_theory_scale_aligns_the_first_update(eta):
    """s^2 E[a a^T] = eta I, so that the adapter's first step is eta times full fine-tuning's."""
    draws, in_features, rank = 60_000, 8, 4
    a = kaiming_uniform(jax.random.key(0), (draws, in_features, rank), in_features)
    a, scale = (np.asarray(v, np.float64) for v in (a, scaling.theory(1, rank, in_features, eta)))
    rows = a.transpose(1, 0, 2).reshape(in_features, -1)
    second_moment = scale**2 * rows @ rows.T / draws
    assert_close(np.diag(second_moment), np.full(in_features, eta), 0.01)
    assert_close(second_moment, eta * np.eye(in_features), 0.015)
