"""Floating-point operations of a traced program's matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr
from jax.interpreters import partial_eval


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """Counts the multiplications and additions of all matrix products, over all devices together.

    A scanned layer counts once per iteration, unused results do not count, and what the backward
    pass recomputes counts again. Of the branches of a `cond` the most expensive one counts.
    Element-wise operations are left out.

    Args:
        function: the function to trace.
        args: the function's arguments: arrays or their shapes.

    >>> x = jax.ShapeDtypeStruct((4, 8), "float32")
    >>> matmul_flops(lambda x: jax.lax.scan(lambda c, _: (c @ x.T @ x, None), x, length=3)[0], x)
    1536
    """
    closed = jax.make_jaxpr(function)(*args)
    used, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _of(used)


def _of(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation)
        elif name == "cond":
            total += max(map(_of, (branch.jaxpr for branch in params["branches"])))
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(map(_of, _inside(params)))
    return total


def _dot(equation: Any) -> int:
    (contracting, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracting)


def _inside(params: dict[str, Any]) -> list[Jaxpr]:
    """Returns the jaxprs that an operation runs."""
    jaxprs = []
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(each, "jaxpr", each)
            if hasattr(inner, "eqns"):
                jaxprs.append(inner)
    return jaxprs
