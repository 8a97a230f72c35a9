"""SVD of a kernel, and which singular triplets each expert is given."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from goat_jax.core import svd
from goat_jax.errors import UserError
from goat_jax.testing import assert_close

CHOICES = {
    "block_heads": svd.block_heads,
    "block_tails": svd.block_tails,
    "principal": svd.principal,
    "minor": svd.minor,
    "minor_descending": svd.minor_descending,
    "principal_and_minor": svd.principal_and_minor,
    "spaced": svd.spaced,
    "random_blocks": svd.random_blocks,
}
KEY = jax.random.key(3)
SVD = jax.jit(svd.svd_of_kernel)


def random_kernel(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# h = 24, E = 4, R = 2: the first index of every expert, worked out by hand.
STARTS = {
    "block_heads": [0, 6, 12, 18],
    "block_tails": [4, 10, 16, 22],
    "principal": [0, 2, 4, 6],
    "minor": [22, 20, 18, 16],
    "minor_descending": [16, 18, 20, 22],
    "principal_and_minor": [0, 2, 20, 22],
}


@pytest.mark.parametrize("name", STARTS)
def test_index_table(name):
    index = np.asarray(CHOICES[name](24, 4, 2, KEY))
    np.testing.assert_array_equal(index, np.array(STARTS[name])[:, None] + np.arange(2))


def test_principal_and_minor_of_an_odd_total_takes_the_longer_half_from_the_end():
    index = np.asarray(svd.principal_and_minor(10, 3, 1, KEY))
    np.testing.assert_array_equal(index, [[0], [8], [9]])


def test_block_heads_of_a_side_that_experts_do_not_divide():
    # 4 blocks of 25 // 4 = 6; the 25th triplet is in no block.
    index = np.asarray(svd.block_heads(25, 4, 2, KEY))
    np.testing.assert_array_equal(index[:, 0], [0, 6, 12, 18])


@pytest.mark.parametrize("name", CHOICES)
def test_triplets_are_distinct_and_in_range(name):
    choose = jax.jit(CHOICES[name], static_argnums=(0, 1, 2))
    for h, experts, rank in ((8, 1, 3), (8, 8, 1), (8, 2, 4), (11, 4, 2)):
        index = np.asarray(choose(h, experts, rank, KEY))
        assert index.shape == (experts, rank)
        assert len(np.unique(index)) == index.size, (h, experts, rank)
        assert index.min() >= 0 and index.max() < h, (h, experts, rank)


def test_random_blocks_are_reproducible_and_reach_every_block():
    draw = jax.jit(jax.vmap(lambda key: svd.random_blocks(13, 3, 2, key)))
    keys = jax.random.split(jax.random.key(0), 200)
    index = np.asarray(draw(keys))
    np.testing.assert_array_equal(index, np.asarray(draw(keys)))
    assert len({tuple(i[:, 0]) for i in index}) > 50
    assert all(len(np.unique(i)) == 6 for i in index)
    assert set(index[:, :, 0].ravel()) == {0, 2, 4, 6, 8, 10}
    np.testing.assert_array_equal(index[..., 1], index[..., 0] + 1)


def test_svd_is_a_descending_decomposition_with_orthonormal_vectors():
    kernels = random_kernel(3, 9, 6)
    u, s, vt = (np.asarray(a, np.float64) for a in SVD(kernels))
    assert (u.shape, s.shape, vt.shape) == ((3, 9, 6), (3, 6), (3, 6, 6))
    assert_close((u * s[:, None]) @ vt, kernels)
    assert (np.diff(s) <= 0).all()
    eye = np.broadcast_to(np.eye(6), (3, 6, 6))
    assert_close(u.swapaxes(1, 2) @ u, eye)
    assert_close(vt @ vt.swapaxes(1, 2), eye)


def test_svd_of_a_bfloat16_kernel_is_that_of_its_float32_values():
    kernel = jnp.asarray(random_kernel(16, 8).astype(ml_dtypes.bfloat16))
    found = SVD(kernel)
    assert all(a.dtype == jnp.float32 for a in found)
    exact = np.linalg.svd(np.asarray(kernel, np.float64), compute_uv=False)
    assert_close(found.s, exact, 2e-6)


def test_take_segments_picks_columns_values_and_rows():
    whole = svd.Svd(*(np.asarray(a) for a in SVD(random_kernel(16, 8))))
    index = np.array([[4, 0], [1, 3]])
    u, s, vt = (np.asarray(a) for a in jax.jit(svd.take_segments)(whole, index))
    for expert, rank in itertools.product(range(2), range(2)):
        place = index[expert, rank]
        np.testing.assert_array_equal(u[expert, :, rank], whole.u[:, place])
        np.testing.assert_array_equal(s[expert, rank], whole.s[place])
        np.testing.assert_array_equal(vt[expert, rank], whole.vt[place])


def test_share_of_spectrum():
    s = jnp.array([4, 2, 2, 1], jnp.float32)
    shares = svd.share_of_spectrum(s, jnp.asarray([[0], [3]]))
    np.testing.assert_allclose(shares, [16 / 25, 1 / 25])


def test_segments_that_do_not_fit_are_refused():
    svd.check_segments(8, 4, 2)
    with pytest.raises(UserError, match="total rank 9 is above the layer's smaller side 8"):
        svd.check_segments(8, 3, 3)
