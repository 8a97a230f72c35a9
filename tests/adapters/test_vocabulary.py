"""Adapters of a vocabulary: the addition as products, and looked up instead of multiplied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.adapters.adapter import (
    adapter_products,
    apply_adapter,
    init_adapter,
    look_up_adapter,
)
from goat_jax.adapters.context import EVAL
from goat_jax.adapters.methods import METHODS, method_spec

PARTS = ("goat", "dora", "hydralora", "lora_dash", "neat", "full_moe", "adamole")
"""Methods that together have every kind of combine and of router."""


def trained(method):
    """A spec, a kernel, and an adapter on it whose arrays have all moved."""
    kernel = jax.random.normal(jax.random.key(0), (12, 9))
    experts = METHODS[method].spec.num_experts
    spec = method_spec(method, total_rank=4, num_experts=min(experts, 2))
    start = init_adapter(kernel, spec, jax.random.key(1), gradient=0.1 * kernel)
    arrays = start.factors | start.constants
    keys = jax.random.split(jax.random.key(2), len(arrays))
    moved = {
        name: value + 0.3 * jax.random.normal(key, value.shape)
        for key, (name, value) in zip(keys, arrays.items(), strict=True)
    }
    return spec, start.kernel, moved, start.scale


@pytest.mark.parametrize("method", PARTS)
def test_the_addition_is_the_sum_of_its_products(method):
    spec, kernel, arrays, scale = trained(method)
    x = jax.random.normal(jax.random.key(3), (5, 12))
    expected, _ = apply_adapter(x, kernel, arrays, scale, spec, EVAL)
    products, _ = adapter_products(x, kernel, arrays, scale, spec, EVAL)
    found = sum(one @ other for one, other in products)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", PARTS)
def test_an_index_looks_up_what_a_one_hot_x_computes(method):
    spec, table, arrays, scale = trained(method)
    if not spec.combine.looks_up:
        assert method in ("neat", "full_moe", "lora_dash")
        return
    ids = jnp.array([3, 0, 11])
    x = jax.nn.one_hot(ids, 12)
    expected, _ = apply_adapter(x, table, arrays, scale, spec, EVAL)
    found, _ = look_up_adapter(ids, table, arrays, scale, spec, EVAL, table[ids])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
