"""The small parts of models against torch and against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.activations import ACT2FN

from goat_jax.nn.modules import ACTIVATIONS, NORMS, Embedding, LayerNorm
from kinds import present


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_torchs(name):
    x = np.linspace(-6, 6, 241, dtype=np.float32)
    expected = ACT2FN[name](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), expected, rtol=0, atol=2e-6)


def test_layer_norm_is_torchs():
    rng = np.random.default_rng(0)
    x, scale, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 5, 8), 8, 8))
    ours = LayerNorm(8, 0.1)
    ours.scale[...], present(ours.bias)[...] = jnp.asarray(scale), jnp.asarray(bias)
    expected = torch.nn.functional.layer_norm(
        torch.from_numpy(x), (8,), torch.from_numpy(scale), torch.from_numpy(bias), 0.1
    )
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected.numpy(), rtol=0, atol=1e-6)


def test_layer_norm_of_bfloat16_loses_only_the_last_rounding():
    # A mean of 100 leaves bfloat16 no digits for a spread of 1: only float32 sums survive it.
    x = (100 + jax.random.normal(jax.random.key(0), (4, 256))).astype(jnp.bfloat16)
    norm = LayerNorm(256, 1e-6)
    narrow, wide = norm(x), norm(x.astype(jnp.float32))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))


def test_gradients_of_norms_and_activations_keep_their_input_alone():
    x = jnp.ones((4, 8, 16), jnp.bfloat16)
    functions = ACTIVATIONS | {name: make(16, 1e-6) for name, make in NORMS.items()}
    for name, function in functions.items():
        kept = jax.tree.leaves(jax.vjp(function, x)[1])
        assert sum(array.nbytes for array in kept if array.size >= x.size) <= x.nbytes, name


def test_an_id_outside_the_table_is_seen():
    table = Embedding(5, 3, rngs=nnx.Rngs(0))
    rows = table(jnp.array([4, 5]))
    assert np.isfinite(rows[0]).all() and np.isnan(rows[1]).all()
