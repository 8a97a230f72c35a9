"""Benchmark of one linear layer with its adapter: forward, and backward to input and factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from goat_jax.adapters.adapter import apply_layer, init_adapter
from goat_jax.adapters.context import Context
from goat_jax.adapters.methods import method_spec
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.bench.alternatives import ALTERNATIVES, Dispatched
from goat_jax.bench.measured import Contender, Measured, measure, temporary_bytes
from goat_jax.bench.turns import random_like
from goat_jax.training.logging.flops import matmul_flops
from goat_jax.typing import Array, DTypeLike, Factors


@dataclasses.dataclass(frozen=True)
class Size:
    """Size of a layer's work.

    Attributes:
        tokens: the number of tokens S.
        inputs: the number of input features I.
        outputs: the number of output features O.
    """

    tokens: int
    inputs: int
    outputs: int

    def __str__(self) -> str:
        return f"{self.tokens} x {self.inputs} x {self.outputs}"


SIZES = (
    Size(2048, 1024, 1024),
    Size(2048, 1024, 4096),
    Size(4096, 4096, 4096),
    Size(512, 768, 3072),
)


def contenders(rank: int) -> dict[str, AdapterSpec]:
    """Returns specs of plain LoRA (first), GOAT of the same total rank, and GOAT by dispatch."""
    goat = method_spec("goat", total_rank=rank)
    others = {
        f"goat, {name}": dataclasses.replace(goat, combine=Dispatched(dispatch=dispatch))
        for name, dispatch in ALTERNATIVES.items()
    }
    return {"lora": method_spec("lora", total_rank=rank), "goat": goat, **others}


def measure_layer(
    size: Size, specs: Mapping[str, AdapterSpec], dtype: DTypeLike = jnp.float32, turns: int = 9
) -> tuple[Measured, ...]:
    """Measures forward and backward of each spec, interleaved; ratios are to the first spec.

    Args:
        size: the layer's size.
        specs: name -> adapter spec.
        dtype: the dtype of kernel and input.
        turns: the number of timed calls of each spec.

    >>> specs = {name: method_spec(name, total_rank=8) for name in ("lora", "goat")}
    >>> lora, goat = measure_layer(Size(16, 32, 24), specs, turns=1)
    >>> lora.ratio, goat.flops > lora.flops
    (1.0, True)
    """
    made = {name: _compiled(size, spec, dtype) for name, spec in specs.items()}
    return measure(str(size), made, turns)


def _compiled(
    size: Size, spec: AdapterSpec, dtype: DTypeLike, depth: int | None = None
) -> Contender:
    """Compiles the layer's forward and backward; with a depth, a scan over `depth` layers."""
    kernel_shape = jax.ShapeDtypeStruct((size.inputs, size.outputs), dtype)
    start = jax.eval_shape(lambda k: init_adapter(k, spec, jax.random.key(0)), kernel_shape)
    stacked = () if depth is None else (depth,)

    def numbers(one: jax.ShapeDtypeStruct | Array, seed: int) -> Array:
        return random_like(jax.ShapeDtypeStruct((*stacked, *one.shape), one.dtype), seed)

    arrays = {name: numbers(one, seed) for seed, (name, one) in enumerate(start.factors.items())}
    scale = jnp.ones(start.scale.shape, start.scale.dtype)
    kernel = numbers(kernel_shape, 7)
    x, weights = (
        random_like(jax.ShapeDtypeStruct((size.tokens, width), dtype), width)
        for width in (size.inputs, size.outputs)
    )

    def layer(x: Array, pair: tuple[Factors, Array]) -> tuple[Array, None]:
        return apply_layer(x, pair[1], pair[0], scale, spec, Context())[0], None

    def loss(x: Array, arrays: Factors, kernel: Array, weights: Array) -> Array:
        pair = (arrays, kernel)
        y, _ = layer(x, pair) if depth is None else jax.lax.scan(layer, x, pair)
        return (y * weights).astype(jnp.float32).sum()

    step = jax.value_and_grad(loss, argnums=(0, 1))
    arguments = (x, arrays, kernel, weights)
    compiled = jax.jit(step).lower(*arguments).compile()
    flops = matmul_flops(step, *arguments)
    return Contender(lambda: compiled(*arguments), temporary_bytes(compiled), flops)


def measure_growth(
    size: Size, spec: AdapterSpec, ranks: Sequence[int], experts: Sequence[int], turns: int = 5
) -> dict[str, list[tuple[int, Measured]]]:
    """Measures how the cost of a method's layer grows.

    It varies the total rank, the number of experts at one total rank, the tokens and, if there are
    as many outputs as inputs, the number of consecutive layers.

    Args:
        size: the layer's size; the tokens vary around it.
        spec: the method; its total rank is replaced.
        ranks: the total ranks.
        experts: the numbers of experts, at a total rank of the largest of them.
        turns: the number of timed calls of each.

    Returns:
        axis -> list of (value, measurement); ratios are to the first value.
    """
    rank = max(experts)
    spec = spec.replace(total_rank=rank)

    def of(spec: AdapterSpec, tokens: int = size.tokens, depth: int | None = None) -> Contender:
        return _compiled(dataclasses.replace(size, tokens=tokens), spec, jnp.float32, depth)

    axes = {
        "total rank": {r: of(spec.replace(total_rank=r)) for r in ranks},
        f"experts at rank {rank}": {
            e: of(spec.replace(num_experts=e, top_k=min(2, e))) for e in experts
        },
        "tokens": {n: of(spec, n) for n in (size.tokens * k // 4 for k in (1, 2, 4, 8))},
    }
    if size.inputs == size.outputs:
        axes["layers"] = {n: of(spec, depth=n) for n in (1, 2, 4, 8)}
    return {
        axis: [
            (int(one.name), one)
            for one in measure(f"{size}, {axis}", {str(n): c for n, c in made.items()}, turns)
        ]
        for axis, made in axes.items()
    }
