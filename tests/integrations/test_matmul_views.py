"""Einsums and general layers as one matrix product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.errors import UserError
from goat_jax.integrations.matmul_views import Axes, read_einsum

CASES = {
    "BTD,DH->BTH": ((2, 3, 4), (4, 5)),
    "BTD,SNDH->SBTNH": ((2, 3, 4), (3, 2, 4, 5)),
    "BTNH,NHD->BTD": ((2, 3, 2, 5), (2, 5, 4)),
    "...D,HD->...H": ((2, 3, 4), (5, 4)),
    "TBD,DH->BHT": ((3, 2, 4), (4, 5)),
}


@pytest.mark.parametrize("text", CASES)
def test_an_einsum_is_its_matrix_product(text):
    x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate(CASES[text]))
    view = read_einsum(text, kernel.shape)
    y = view.output(view.tokens(x) @ view.matrix(kernel))
    np.testing.assert_allclose(y, jnp.einsum(text, x, kernel), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(view.kernel(view.matrix(kernel)), kernel)


def test_axes_in_the_middle():
    x, kernel = (
        jax.random.normal(jax.random.key(i), s) for i, s in ((0, (2, 3, 4, 5)), (1, (3, 5, 6, 7)))
    )
    view = Axes((3, 5), (6, 7), (1, 3))
    expected = jnp.einsum("aibj,ijkl->abkl", x, kernel)
    y = view.output(view.tokens(x) @ view.matrix(kernel))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("BTNH,NHD->BTND", (2, 5, 4), "a separate kernel for every N"),
        ("BTD,DHK->BTH", (4, 5, 2), "sums the kernel's axis K"),
        ("BTD,DH->BH", (4, 5), "sums the input's axis T"),
        ("BTD,DH", (4, 5), "is not of the form"),
        ("BTD,DH->BTH", (4, 5, 6), "is not of the form"),
    ],
)
def test_what_is_no_matrix_product(text, shape, message):
    with pytest.raises(UserError, match=message):
        read_einsum(text, shape)
