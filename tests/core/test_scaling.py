"""Scale rules against the numbers of methods.md 22.4, and GOAT+'s invariant."""

import jax
import jax.numpy as jnp
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
    assert scale.dtype == jnp.float32
    np.testing.assert_allclose(scale, [published] * 2, atol=0.05)
    np.testing.assert_allclose(scaling.theory(2, rank, in_features, 0.1) / scale, 0.1**0.5, 1e-6)


def test_alpha_rules():
    np.testing.assert_allclose(scaling.alpha_over_rank(3, 4, 64.0), [16.0] * 3)
    np.testing.assert_allclose(scaling.alpha_over_root_rank(3, 4, 64.0), [32.0] * 3)


def test_goat_plus_equalises_the_spectrum():
    values = jnp.array([[9.0, 8.0], [5.0, 4.0], [1.0, 0.5]])
    scale = scaling.by_spectrum(jnp.full(3, 7.0), values)
    np.testing.assert_allclose(scale, 7 * np.sqrt([17 / 17, 17 / 9, 17 / 1.5]), 1e-6)
    invariant = scale**2 * values.sum(1)
    np.testing.assert_allclose(invariant, [invariant[0]] * 3, 1e-6)
    assert scale[0] == 7.0 and (jnp.diff(scale) > 0).all()


@pytest.mark.parametrize("eta", [1.0, 0.1])
def test_theory_scale_aligns_the_first_update(eta):
    """s^2 E[a a^T] = eta I, so that the adapter's first step is eta times full fine-tuning's."""
    draws, in_features, rank = 60_000, 8, 4
    a = kaiming_uniform(jax.random.key(0), (draws, in_features, rank), in_features)
    scale = scaling.theory(1, rank, in_features, eta)[0]
    second_moment = np.asarray(jnp.einsum("NIR,NJR->IJ", a, a) / draws * scale**2, np.float64)
    assert_close(np.diag(second_moment), np.full(in_features, eta), 0.01)
    assert_close(second_moment, eta * np.eye(in_features), 0.015)
