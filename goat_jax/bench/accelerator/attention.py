"""The device's attention kernel: its numbers against plain scores in float32, and its time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from goat_jax.bench.accelerator.device import peak_flops
from goat_jax.bench.accelerator.rows import Row, Settings
from goat_jax.bench.turns import take_turns
from goat_jax.core.attention import Visible
from goat_jax.errors import RunFailed
from goat_jax.nn.attention import AttentionPlan, attention
from goat_jax.nn.attention_need import Need
from goat_jax.typing import Array

PART = "attention"
FULL = {"rows": 1, "short": 4096, "long": 32768, "heads": 32, "groups": 8, "size": 128}
TINY = {"rows": 1, "short": 256, "long": 512, "heads": 4, "groups": 2, "size": 16}
PRECISION = 2.0**-8
"""Relative rounding error of bfloat16."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Shape of an attention.

    Attributes:
        rows: the number of rows B.
        tokens: the number of tokens T.
        heads: the number of heads N.
        groups: the number of key heads G.
        size: the head size H.
    """

    rows: int
    tokens: int
    heads: int
    groups: int
    size: int

    def arrays(self, dtype: Any) -> tuple[Array, ...]:
        """Returns query, key, value and the weights of the output in the loss."""
        heads = (self.heads, self.groups, self.groups, self.heads)
        shapes = [(self.rows, self.tokens, count, self.size) for count in heads]
        keys = jax.random.split(jax.random.key(0), len(shapes))
        return tuple(
            jax.random.normal(key, shape, jnp.bfloat16).astype(dtype)
            for key, shape in zip(keys, shapes, strict=True)
        )

    @property
    def causal_flops(self) -> int:
        """FLOPs of a causal attention's products, forward and backward, without recomputation.

        There are two products forward and four backward; half of their pairs of tokens count.
        """
        return 6 * self.rows * self.heads * self.tokens**2 * self.size


def conditions(shape: Shape) -> dict[str, Visible]:
    """Returns the conditions under which models attend, by name."""
    slots = jnp.broadcast_to(jnp.arange(shape.tokens), (shape.rows, shape.tokens))
    return {
        "causal": Visible(causal=True),
        "causal, window": Visible(causal=True, window=shape.tokens // 8),
        "causal, padded": Visible(causal=True, real=slots >= shape.tokens // 4),
        "causal, packed rows": Visible(causal=True, segments=slots // (shape.tokens // 3)),
        "full": Visible(),
    }


def attention_rows(settings: Settings) -> Iterator[Row]:
    """Compares the kernel with XLA's plain scores, and times both; then it at 32,768 tokens.

    Raises:
        RunFailed: a kernel's error is not of the size of bfloat16's rounding.
    """
    sizes = dict(TINY if settings.tiny else FULL)
    short, long = sizes.pop("short"), sizes.pop("long")
    shape = Shape(tokens=short, **sizes)
    bad = []
    for name, visible in conditions(shape).items():
        yield (row := _compared(shape, name, visible, settings.turns))
        if row.remark.startswith("error"):
            bad.append(name)
    yield _alone(Shape(tokens=long, **sizes), settings.turns)
    if bad:
        raise RunFailed(f"numbers differ from XLA's by more than rounding: {'; '.join(bad)}")


def _compared(shape: Shape, name: str, visible: Visible, turns: int) -> Row:
    """Measures a condition, with the kernel's time over that of plain scores."""
    way = kernel_of(shape, visible)
    rounded = shape.arrays(jnp.bfloat16)
    exact = tuple(array.astype(jnp.float32) for array in rounded)
    with jax.default_matmul_precision("highest"):
        wanted = jax.device_get(program("xla", visible)(*exact))
    calls = {each: functools.partial(program(each, visible), *rounded) for each in ("xla", way)}
    errors = {each: largest_error(jax.device_get(call()), wanted) for each, call in calls.items()}
    times = take_turns(calls, turns)
    allowed = max(4 * PRECISION, 2 * errors["xla"])
    note = f"ratio to plain scores, whose error is {errors['xla']:.1e}"
    return Row(
        PART,
        work=f"{name}, {shape.rows} x {shape.tokens:,}",
        contender=way,
        seconds=times[way].median,
        ratio=times[way].over(times["xla"]),
        rate=shape.rows * shape.tokens / times[way].median,
        unit="tokens",
        mfu=_share(shape, times[way].median) if name == "causal" else None,
        error=errors[way],
        remark=note if errors[way] <= allowed else f"error above {allowed:.1e}; {note}",
    )


def _alone(shape: Shape, turns: int) -> Row:
    """Measures a causal attention that is too long for plain scores."""
    visible = Visible(causal=True)
    way = kernel_of(shape, visible)
    call = functools.partial(program(way, visible), *shape.arrays(jnp.bfloat16))
    times = take_turns({way: call}, turns)
    seconds = times[way].median
    tokens = shape.rows * shape.tokens
    return Row(
        PART,
        work=f"causal, {shape.rows} x {shape.tokens:,}",
        contender=way,
        seconds=seconds,
        rate=tokens / seconds,
        unit="tokens",
        mfu=_share(shape, seconds),
    )


def _share(shape: Shape, seconds: float) -> float:
    return shape.causal_flops / seconds / peak_flops(jnp.bfloat16)


def kernel_of(shape: Shape, visible: Visible) -> str:
    """Returns the way that models take on this device; blocks where that is plain scores."""
    need = Need(
        shape.tokens,
        shape.tokens,
        shape.size,
        "bfloat16",
        visible.causal,
        windows=(visible.window,),
    )
    way, _ = AttentionPlan().choose(need)
    return "blocks" if way == "xla" else way


def program(way: str, visible: Visible) -> Callable[..., tuple[Array, ...]]:
    """Returns a jitted function of (query, key, value, weights) -> output and gradients."""

    def loss(query: Array, key: Array, value: Array, weights: Array) -> tuple[Array, Array]:
        out = attention(query, key, value, visible=visible, plan=AttentionPlan(way))
        if visible.real is not None:  # the output of padding has no meaning
            out = jnp.where(visible.real[:, :, None, None], out, jnp.zeros((), out.dtype))
        return (out.astype(jnp.float32) * weights.astype(jnp.float32)).sum(), out

    def both(*arrays: Array) -> tuple[Array, ...]:
        gradients, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*arrays)
        return out, *gradients

    return jax.jit(both)


def largest_error(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> float:
    """Returns the largest difference over the largest value, over all arrays.

    >>> largest_error((jnp.array([1.0, 3.0]),), (jnp.array([1.0, 4.0]),))
    0.25
    """
    return max(
        float(abs(mine.astype(theirs.dtype) - theirs).max() / abs(theirs).max())
        for mine, theirs in zip(found, wanted, strict=True)
    )
