"""Attention in blocks is plain attention; both are torch's, and both are checked in float64."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from attention_cases import CASES, cases, gradients, ids, reference
from goat_jax.core.attention import Visible, attention_in_blocks, plain_attention
from kinds import present
from tiers import each

KEY = jax.random.key(7)


QUICK = [case for case in CASES if "within packed" in case.name or case.name == "a cache"]


def may_attend(visible, row, query, key):
    """The conditions of one pair of tokens, written out."""
    at = query if visible.start is None else query + int(visible.start)
    later = visible.causal and key > at
    far = visible.window is not None and abs(at - key) >= visible.window
    segments, real = visible.segments, visible.real
    apart = segments is not None and segments[row][at] != segments[row][key]
    return not (later or far or apart) and (real is None or bool(real[row][key]))


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_the_mask_holds_the_conditions_of_each_pair(case):
    (query, key, _), visible, _ = cases(case, jnp.float32)
    rows, queries, keys = len(query), query.shape[1], key.shape[1]
    mask = visible.mask(queries, keys)
    lists = {
        name: None if array is None else np.asarray(array).tolist()
        for name, array in (("segments", visible.segments), ("real", visible.real))
    }
    plain = dataclasses.replace(visible, **lists)
    expected = [
        [[may_attend(plain, row, q, k) for k in range(keys)] for q in range(queries)]
        for row in range(rows)
    ]
    actual = True if mask is None else np.asarray(mask)
    np.testing.assert_array_equal(np.broadcast_to(actual, (rows, queries, keys)), expected)


@pytest.mark.parametrize("case", each(CASES, QUICK), ids=ids)
def test_blocks_are_the_definition_in_float64(case):
    with jax.enable_x64(True):
        arrays, visible, options = cases(case, jnp.float64)
        expected = gradients(partial(reference, visible=visible, **options), arrays, visible)
        for block in (8, 64):
            blocks = partial(attention_in_blocks, visible=visible, block=block, **options)
            for one, other in zip(expected, gradients(blocks, arrays, visible), strict=True):
                np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", each(CASES, QUICK), ids=ids)
def test_plain_is_the_definition(case):
    arrays, visible, options = cases(case, jnp.float32)
    mask = visible.mask(arrays[0].shape[1], arrays[1].shape[1])
    plain = partial(plain_attention, mask=mask, **options)
    with jax.numpy_dtype_promotion("standard"):  # for the gradient of jax's own
        expected = gradients(partial(reference, visible=visible, **options), arrays, visible)
        found = gradients(plain, arrays, visible)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_blocks_of_bfloat16_sum_in_float32():
    arrays, visible, _ = cases(CASES[0], jnp.bfloat16)
    found = gradients(partial(attention_in_blocks, visible=visible, block=8), arrays, visible)
    wide = [array.astype(jnp.float32) for array in arrays]
    expected = gradients(partial(reference, visible=visible), wide, visible)
    for one, other in zip(expected, found, strict=True):
        assert other.dtype == jnp.bfloat16
        np.testing.assert_allclose(one, other.astype(jnp.float32), rtol=0.02, atol=0.03)


def test_a_query_that_may_attend_to_nothing_is_finite():
    x = jax.random.normal(KEY, (2, 20, 2, 4))
    visible = Visible(causal=True, real=jnp.arange(20)[None] >= jnp.array([[9], [20]]))
    for attend in (
        partial(attention_in_blocks, visible=visible, block=8),
        partial(plain_attention, mask=visible.mask(20, 20)),
    ):
        total = jax.value_and_grad(lambda x, attend=attend: attend(x, x, x).sum())
        out, grad = jax.jit(total)(x)
        assert np.isfinite(out) and np.isfinite(grad).all()


def test_blocks_hold_no_scores_of_all_pairs():
    shapes = [jax.ShapeDtypeStruct((1, 1024, heads, 8), jnp.float32) for heads in (2, 1, 1)]
    blocks = partial(attention_in_blocks, visible=Visible(causal=True), block=128)
    step = jax.jit(jax.grad(lambda *arrays: blocks(*arrays).sum(), argnums=(0, 1, 2)))
    assert "1024,1024" not in present(step.lower(*shapes).compile().as_text())
    products = str(jax.make_jaxpr(step)(*shapes)).count("length=36")
    assert products == 2, "36 of 64 pairs of blocks have a key that a query sees"


def test_attention_is_torchs_in_both_widths():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 5, 3, 4)).astype(np.float32) for _ in range(3))
    keep = rng.random((2, 1, 1, 5)) < 0.6
    keep[..., 0] = True
    heads = [torch.from_numpy(a).transpose(1, 2) for a in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *heads, attn_mask=torch.from_numpy(keep)
    )
    expected = expected.transpose(1, 2).numpy()
    wide = plain_attention(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(keep[:, 0]))
    np.testing.assert_allclose(wide, expected, rtol=0, atol=1e-6)
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in (q, k, v))
    narrow = plain_attention(q, k, v, jnp.asarray(keep[:, 0]))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), expected, rtol=0, atol=3e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "groups"), [(jnp.float32, 2), (jnp.bfloat16, 4)], ids=["float32", "bfloat16"]
)
def test_attention_in_full_is_attention(dtype, groups):
    keys = jax.random.split(KEY, 3)
    query = jax.random.normal(keys[0], (2, 5, 4, 8), dtype)
    key, value = (jax.random.normal(k, (2, 5, groups, 8), dtype) for k in keys[1:])
    keep = jnp.array([[True, True, False, True, False], [False] * 5])[:, None]

    def total(query, key, value, **dropped):
        out = plain_attention(query, key, value, keep, **dropped)
        assert out.dtype == dtype
        return jnp.square(out.astype(jnp.float32)).sum(), out

    with jax.numpy_dtype_promotion("standard"):  # for the gradient of jax's own
        both = [
            jax.jit(jax.grad(partial(total, **how), argnums=(0, 1, 2), has_aux=True))(
                query, key, value
            )
            for how in ({}, {"dropped": lambda probabilities: probabilities})
        ]
    for a, b in zip(*map(jax.tree.leaves, both), strict=True):
        assert a.dtype == b.dtype == dtype
        tolerance = 1e-5 if dtype == jnp.float32 else 0.06
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=tolerance)


def test_attention_loses_probabilities_and_not_logits():
    """With values of one, what is left of a row of probabilities is their sum."""
    x, ones = jax.random.normal(KEY, (3, 16, 2, 4)), jnp.ones((3, 16, 2, 4))
    left = plain_attention(
        x, x, ones, None, dropped=lambda p: jnp.where(p == p.max(-1, keepdims=True), 0, p)
    )
    highest = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", x, x) / 2, axis=-1).max(-1)
    np.testing.assert_allclose(left[..., 0].swapaxes(1, 2), 1 - highest, atol=1e-5)


@pytest.mark.slow
def test_blocks_and_plain_scores_give_sinks_the_same_share():
    keys = jax.random.split(jax.random.key(0), 5)
    query, sinks = jax.random.normal(keys[0], (2, 7, 4, 8)), jax.random.normal(keys[3], (4,))
    key, value = (jax.random.normal(k, (2, 7, 2, 8)) for k in keys[1:3])
    visible = Visible(causal=True, window=3)

    def loss(compute, *arrays):
        return (compute(*arrays) * jax.random.normal(keys[4], query.shape)).sum()

    def plain(query, key, value, sinks):
        return plain_attention(query, key, value, visible.mask(7, 7), sinks)

    def blocks(query, key, value, sinks):
        return attention_in_blocks(query, key, value, visible, sinks, block=4)

    with jax.default_matmul_precision("highest"):
        found, expected = (
            jax.value_and_grad(partial(loss, compute), argnums=(0, 1, 2, 3))(
                query, key, value, sinks
            )
            for compute in (blocks, plain)
        )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), found, expected)
