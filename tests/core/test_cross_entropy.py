"""The chunked cross entropy against the plain one: values, gradients, and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goat_jax.core.cross_entropy import Output, chunked_cross_entropy
from kinds import present


def _arrays(tokens: int = 13, width: int = 6, words: int = 11, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (tokens, width), dtype)
    kernel = jax.random.normal(keys[1], (width, words), dtype)
    labels = jax.random.randint(keys[2], (tokens,), 0, words)
    return hidden, kernel, labels, jax.random.uniform(keys[3], (tokens,))


@pytest.mark.parametrize(
    ("chunk", "parts"), [(1, 1), (4, 1), (15, 1), (100, 1), (None, 1), (2, 3), (5, 3), (None, 5)]
)
def test_losses_and_gradients_are_those_of_the_plain_cross_entropy(chunk, parts):
    hidden, kernel, labels, weights = _arrays(tokens=15)

    def chunked(hidden, kernel):
        losses, _ = chunked_cross_entropy(Output((hidden,), (kernel,)), labels, chunk, parts)
        return (losses * weights).sum()

    def plain(hidden, kernel):
        logits = hidden @ kernel
        return (optax.softmax_cross_entropy_with_integer_labels(logits, labels) * weights).sum()

    with jax.default_matmul_precision("highest"):
        ours = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(hidden, kernel)
        theirs = jax.jit(jax.value_and_grad(plain, argnums=(0, 1)))(hidden, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_a_soft_cap_bends_logits_and_gradients():
    hidden, kernel, labels, weights = _arrays()

    def chunked(hidden, kernel):
        losses, _ = chunked_cross_entropy(Output((hidden,), (kernel,)), labels, 4, soft_cap=1.5)
        return (losses * weights).sum()

    def plain(hidden, kernel):
        logits = 1.5 * jnp.tanh(hidden @ kernel / 1.5)
        return (optax.softmax_cross_entropy_with_integer_labels(logits, labels) * weights).sum()

    with jax.default_matmul_precision("highest"):
        ours = jax.value_and_grad(chunked, argnums=(0, 1))(hidden, kernel)
        theirs = jax.value_and_grad(plain, argnums=(0, 1))(hidden, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_several_products_and_columns_that_take_the_place_of_others():
    hidden, kernel, labels, weights = _arrays()
    keys = jax.random.split(jax.random.key(1), 3)
    narrow, b = jax.random.normal(keys[0], (13, 2)), jax.random.normal(keys[1], (2, 11))
    columns, ids = jax.random.normal(keys[2], (6, 2)), jnp.array([3, 7])

    def chunked(hidden, narrow, kernel, b, columns):
        output = Output((hidden, narrow), (kernel, b), columns, ids)
        return (chunked_cross_entropy(output, labels, 4)[0] * weights).sum()

    def plain(hidden, narrow, kernel, b, columns):
        logits = (hidden @ kernel + narrow @ b).at[:, ids].set(hidden @ columns)
        return (optax.softmax_cross_entropy_with_integer_labels(logits, labels) * weights).sum()

    arrays = hidden, narrow, kernel, b, columns
    with jax.default_matmul_precision("highest"):
        ours, theirs = (jax.grad(loss, argnums=range(5))(*arrays) for loss in (chunked, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_correct_tokens_are_those_whose_label_has_the_largest_logit():
    hidden, kernel, labels, _ = _arrays(tokens=200)
    _, correct = chunked_cross_entropy(Output((hidden,), (kernel,)), labels, 4)
    np.testing.assert_array_equal(correct, (hidden @ kernel).argmax(-1) == labels)
    assert 0 < int(correct.sum()) < len(labels)


@pytest.mark.slow
def test_huge_logits_give_no_nan():
    losses, _ = chunked_cross_entropy(
        Output((jnp.eye(2) * 1e4,), (jnp.eye(2) * 1e4,)), jnp.array([0, 0]), 1
    )
    np.testing.assert_allclose(losses, [0.0, 1e8])


@pytest.mark.slow
def test_losses_are_float32_for_bfloat16_states():
    hidden, kernel, labels, _ = _arrays(dtype=jnp.bfloat16)
    losses, _ = chunked_cross_entropy(Output((hidden,), (kernel,)), labels, 4)
    wide = Output((hidden.astype(jnp.float32),), (kernel.astype(jnp.float32),))
    expected, _ = chunked_cross_entropy(wide, labels, 4)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected, rtol=1e-2, atol=1e-2)


def test_the_logits_of_all_tokens_are_never_in_memory():
    tokens, width, words = 2048, 8, 4096
    hidden, kernel, labels, _ = _arrays(tokens, width, words)

    def loss(hidden):
        return chunked_cross_entropy(Output((hidden,), (kernel,)), labels, 64)[0].sum()

    compiled = jax.jit(jax.grad(loss)).lower(hidden).compile()
    used = present(compiled.memory_analysis()).temp_size_in_bytes
    assert used < tokens * words * 4 / 4, used
