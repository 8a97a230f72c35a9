"""Floating-point operations of a traced program's matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Jaxpr
from jax.interpreters import partial_eval

from goat_jax.core.flop_labels import RECOMPUTED, labelled, products_of


def matmul_flops(function: Callable[..., Any], *args: Any, again: bool = True) -> int:
    """Counts the multiplications and additions of all matrix products, over all devices together.

    The count is of the operations that are done ("hardware FLOPs" of PaLM, arXiv 2204.02311,
    appendix B): what the backward pass recomputes counts again, under remat, inside fused attention
    and for the logits. Without `again`, and of a step without remat, it is of those that the
    mathematics needs ("model FLOPs", of which MFU is a share).
    A scanned layer counts once per iteration, what `shard_map` runs once per device; unused results
    do not count. Of the branches of a `cond` the most expensive one counts. Element-wise operations
    are left out.

    Attention counts as it is computed. Plain scores are products of all pairs of tokens. Blocks and
    kernels leave out the pairs that causality and windows exclude, which is about half of a causal
    attention; for kernels the count is exact by pair (`core.flop_labels`), although they compute
    the pairs of a whole block at the edge. Segments and padding are not known here and leave out
    nothing.

    Args:
        function: the function to trace.
        args: the function's arguments: arrays or their shapes.
        again: whether products count that attention and the loss compute again in their gradients.

    >>> x = jax.ShapeDtypeStruct((4, 8), "float32")
    >>> matmul_flops(lambda x: jax.lax.scan(lambda c, _: (c @ x.T @ x, None), x, length=3)[0], x)
    1536
    """
    closed = jax.make_jaxpr(function)(*args)
    used, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _of(used, again)


def _of(jaxpr: Jaxpr, again: bool, product: int = 0) -> int:
    """Counts in a jaxpr; `product` is the number on the label around it."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _dot(equation)
        elif name == "pallas_call":
            total += 2 * product * products_of(params["name"])[not again]
        elif products_of(name).done:
            total += 2 * product * products_of(name)[not again]
        elif name == "jit" and params["name"] == RECOMPUTED and not again:
            continue
        elif name == "cond":
            total += max(_of(branch.jaxpr, again, product) for branch in params["branches"])
        else:
            own = labelled(params["name"]) if name == "jit" else None
            inside = sum(
                _of(inner, again, product if own is None else own) for inner in _inside(params)
            )
            total += _times(name, params) * inside
    return total


def _times(name: str, params: dict[str, Any]) -> int:
    """Returns how often an operation runs what is inside, over all devices."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        # jax 0.10.0 names them so; later versions hold those of an outer one apart.
        axes = params.get("newly_manual_axes", params.get("manual_axes", ()))
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    return 1


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
