"""Labels in a trace that say how much a fused kernel multiplies, which its operands do not show."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PREFIX = "multiplications_of_a_product_"

RECOMPUTED = "recomputed_product"


class Products(NamedTuple):
    """Products of all queries with all visible keys in a kernel.

    Attributes:
        done: the number that it computes.
        needed: the number without those that it computes again.
    """

    done: int
    needed: int


PRODUCTS = {
    "dot_product_attention_fwd_wrapper": Products(2, 2),
    "dot_product_attention_bwd_wrapper": Products(5, 4),
    "splash_mha_fwd": Products(2, 2),
    "splash_mha_dkv": Products(4, 3),
    "splash_mha_dq": Products(3, 1),
}
"""Start of a kernel's name -> its products.

Forward they are scores and output. The backward pass computes the scores again and then four
gradients: of probabilities, values, keys and queries. Splash attention does so in two kernels,
which both compute the scores and the gradient of the probabilities.
"""


def recomputation(product: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a product that a backward pass computes again, so that its trace says so.

    >>> jax.make_jaxpr(recomputation(abs))(1.0).eqns[0].params["name"] == RECOMPUTED
    True
    """

    def call(*args: Any) -> Any:
        return product(*args)

    call.__name__ = RECOMPUTED
    return jax.jit(call)


def label(kernel: Callable[..., Any], multiplications: int) -> Callable[..., Any]:
    """Wraps a call of a kernel so that `labelled` finds a number in its trace and its gradient's.

    Args:
        kernel: the function that calls the kernel.
        multiplications: the multiplications of one of its `Products`.
    """

    def call(*args: Any) -> Any:
        return kernel(*args)

    call.__name__ = f"{PREFIX}{multiplications}"
    return jax.jit(call)


def labelled(name: str) -> int | None:
    """Returns the multiplications in the name of a traced function; None without a label.

    >>> labelled(f"{PREFIX}12"), labelled("take")
    (12, None)
    """
    found = re.fullmatch(rf"{PREFIX}(\d+)", name)
    return None if found is None else int(found[1])


def products_of(kernel: str) -> Products:
    """Returns the products of a kernel by its name; none for one that is not known.

    >>> products_of("splash_mha_dq_no_residuals"), products_of("other").done
    (Products(done=3, needed=1), 0)
    """
    found = (number for start, number in PRODUCTS.items() if kernel.startswith(start))
    return next(found, Products(0, 0))


def runs_forward(kernel: str) -> bool:
    """Returns whether the name is that of a kernel's forward pass."""
    return products_of(kernel).done == 2
