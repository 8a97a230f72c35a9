"""Labels in a trace that say how much a fused kernel multiplies, which its operands do not show."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax

PREFIX = "multiplications_of_a_product_"

PRODUCTS = {
    "dot_product_attention_fwd_wrapper": 2,
    "dot_product_attention_bwd_wrapper": 5,
    "splash_mha_fwd": 2,
    "splash_mha_dkv": 4,
    "splash_mha_dq": 3,
}
"""Start of a kernel's name -> the products of all queries with all visible keys that it computes.

Forward they are scores and output. The backward pass computes the scores again and then four
gradients: of probabilities, values, keys and queries. Splash attention does so in two kernels,
which both need the scores and the gradient of the probabilities.
"""


def label(kernel: Callable[..., Any], multiplications: int) -> Callable[..., Any]:
    """Wraps a call of a kernel so that `labelled` finds a number in its trace and its gradient's.

    Args:
        kernel: the function that calls the kernel.
        multiplications: the multiplications of one of its `PRODUCTS`.
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


def products_of(kernel: str) -> int:
    """Returns the number of products of a kernel by its name; 0 for one that is not known.

    >>> products_of("splash_mha_dq_no_residuals"), products_of("other")
    (3, 0)
    """
    return next((number for start, number in PRODUCTS.items() if kernel.startswith(start)), 0)


def runs_forward(kernel: str) -> bool:
    """Returns whether the name is that of a kernel's forward pass."""
    return products_of(kernel) == 2
