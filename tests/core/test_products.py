"""Products with the factors and the router side by side: the numbers of two products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.core.precision import bfloat16_parts
from goat_jax.core.products import narrow_product, narrow_products, router_logits


def numbers(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def loss(outputs):
    hidden, logits = outputs
    weights = jnp.arange(1.0, 1.0 + logits.size, dtype=logits.dtype).reshape(logits.shape)
    return jnp.sin(hidden).sum() + (jnp.tanh(logits) * weights / logits.size).sum()


@pytest.mark.slow
def test_values_and_gradients_are_those_of_two_products():
    x, inner, router = numbers(0, 2, 5, 24), numbers(1, 24, 6), numbers(2, 24, 3)
    found = jax.value_and_grad(lambda *a: loss(narrow_products(*a)), (0, 1, 2))(x, inner, router)
    plain = jax.value_and_grad(lambda x, a, r: loss((x @ a, x @ r)), (0, 1, 2))(x, inner, router)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), found, plain)


def test_gradients_in_bfloat16_have_no_float32_copy_of_the_input():
    x, inner = numbers(0, 32, 256, dtype=jnp.bfloat16), numbers(1, 256, 8)
    gradient = jax.grad(lambda x, inner: jnp.sin(narrow_product(x, inner)).sum(), (0, 1))
    assert "f32[32,256]" not in str(jax.make_jaxpr(gradient)(x, inner))
    exact = jax.grad(lambda x, inner: jnp.sin(x @ inner).sum(), (0, 1))
    for found, want in zip(gradient(x, inner), exact(x.astype(jnp.float32), inner), strict=True):
        # bfloat16 rounds the gradient, the matrix and the product x @ inner.
        np.testing.assert_allclose(found, want, rtol=0, atol=0.05 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("tokens", [3, 50])
def test_a_router_s_gradient_in_bfloat16_converts_a_part_of_the_tokens_at_a_time(tokens):
    x, router = numbers(0, 2, tokens, 24, dtype=jnp.bfloat16), numbers(1, 24, 4)
    _, back = jax.vjp(router_logits, x, router)
    weights = numbers(2, 2, tokens, 4)
    assert f"f32[2,{tokens},24]" not in str(jax.make_jaxpr(back)(weights))
    exact = np.einsum("bti,bte->ie", np.asarray(x, np.float64), np.asarray(weights, np.float64))
    np.testing.assert_allclose(back(weights)[1], exact, rtol=0, atol=2e-6 * np.abs(exact).max())


def test_parts_add_up_to_the_last_bit_even_where_a_compiler_simplifies():
    array = numbers(0, 64, 8) * jnp.exp(10 * numbers(1, 64, 8))
    parts = np.split(np.asarray(jax.jit(bfloat16_parts)(array)).astype(np.float64), 3, axis=-1)
    np.testing.assert_array_equal(sum(parts), np.asarray(array, np.float64))


@pytest.mark.parametrize("which", ["logits", "gradient"])
def test_in_bfloat16_the_router_keeps_float32(which):
    x = numbers(0, 32, 256, dtype=jnp.bfloat16)
    inner, router, weights = numbers(1, 256, 8), numbers(2, 256, 4), numbers(3, 32, 4)
    exact_x = np.asarray(x.astype(jnp.float32), np.float64)
    if which == "logits":
        found = jax.jit(narrow_products)(x, inner, router)[1]
        exact = exact_x @ np.asarray(router, np.float64)
    else:
        found = jax.jit(jax.grad(lambda r: (narrow_products(x, inner, r)[1] * weights).sum()))(
            router
        )
        exact = exact_x.T @ np.asarray(weights, np.float64)
    assert found.dtype == jnp.float32
    # Products of rounded matrices would be off by 3e-3 of the largest.
    np.testing.assert_allclose(found, exact, atol=2e-6 * np.abs(exact).max(), rtol=0)
