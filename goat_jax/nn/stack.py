"""`Stack`: equal layers stacked on a leading axis and run by `jax.lax.scan`.

The scan keeps compile time the same whatever the depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding

from goat_jax.adapters.context import Context
from goat_jax.core.attention import ATTENTION
from goat_jax.core.dispatch import HIDDEN
from goat_jax.core.flop_labels import runs_forward
from goat_jax.errors import UserError
from goat_jax.nn.activation_sharding import constrained
from goat_jax.nn.dense import Sown, sow
from goat_jax.typing import Array, PyTree

INPUT = "layer_input"
"""Name of a layer's input for rematerialization policies."""


def _attention_and_adapters(primitive: Any, *_: Any, **params: Any) -> bool:
    name = params.get("name", "") if primitive.name in ("name", "pallas_call") else primitive.name
    return name in (HIDDEN, ATTENTION) or runs_forward(name)


POLICIES = jax.checkpoint_policies
REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda body: body,
    "full": jax.checkpoint,
    "save_matmuls": partial(jax.checkpoint, policy=POLICIES.dots_with_no_batch_dims_saveable),
    "save_adapters": partial(jax.checkpoint, policy=POLICIES.save_only_these_names(HIDDEN)),
    "save_attention": partial(jax.checkpoint, policy=_attention_and_adapters),
    "offload": partial(
        jax.checkpoint,
        policy=POLICIES.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    ),
}
"""Name of a rematerialization policy -> wrapper of a layer's body.

In the backward pass they recompute, in order: nothing, everything, all but the matrix products, all
but the adapters' projections in rank space, and all but these and attention in blocks or by a
fused kernel. The last one recomputes everything from layers' inputs that wait in the host's memory.
"""


def _made(make: Callable[..., nnx.Module], kind: tuple[Any, ...], rngs: nnx.Rngs) -> nnx.Module:
    return make(rngs, *kind)


class Stack(nnx.Module):
    """L layers, called as ``layer(x, ctx, *args) -> x``.

    Normally all layers form one run, computed by one scan. Where adapters differ between layers, or
    layers have other modules, there are several runs of consecutive layers, each with a separate
    scan.

    Args:
        make: (rngs) -> a layer; with `kinds`, (rngs, the layer's kind) -> a layer.
        length: the number L of layers.
        kinds: the kind of every layer; empty if all have the same modules.
        calls: the layer of each call, in ascending order, for layers that are called several times
            in a row (ALBERT); None calls each layer once.

    Attributes:
        runs: the stacked layers; every array of run i has a leading axis of sizes[i].
        sizes: number of layers per run.
        calls: the layer of each call.
        remat: a key of `REMAT`.
        activation_sharding: on a mesh, the sharding of the hidden states (B, T, D) between layers;
            else None.
        batch_parts: number of parts that it splits the batch into.
        token_parts: number of parts that it splits the tokens of a row into.

    >>> from goat_jax.nn.dense import Dense
    >>> stack = Stack(lambda rngs: Dense(4, 4, rngs=rngs), 3, rngs=nnx.Rngs(0))
    >>> stack.runs[0].kernel.shape
    (3, 4, 4)
    """

    def __init__(
        self,
        make: Callable[..., nnx.Module],
        length: int,
        *,
        rngs: nnx.Rngs,
        kinds: Sequence[Any] = (),
        calls: Sequence[int] | None = None,
    ):
        groups = [((), length)]
        if kinds:
            groups = [((kind,), len(list(same))) for kind, same in itertools.groupby(kinds)]
        runs = [
            nnx.vmap(partial(_made, make, kind), in_axes=0, out_axes=0)(rngs.split(size))
            for kind, size in groups
        ]
        self.runs: nnx.List[Any] = nnx.List(runs)
        self.sizes = tuple(size for _, size in groups)
        self.calls = tuple(range(length) if calls is None else calls)
        self.remat = "none"
        self.activation_sharding: NamedSharding | None = None
        self.batch_parts = 1
        self.token_parts = 1

    def ranges(self) -> list[range]:
        """Returns the layers of every run."""
        stops = [sum(self.sizes[: i + 1]) for i in range(len(self.sizes))]
        return [range(stop - size, stop) for size, stop in zip(self.sizes, stops, strict=True)]

    def cut(self, starts: Sequence[int]) -> None:
        """Splits the stack so that a run also begins at each of these layers."""
        runs, sizes = [], []
        for run, layers in zip(self.runs, self.ranges(), strict=True):
            graph, state = nnx.split(run)
            inner = sorted(start for start in set(starts) if layers.start < start < layers.stop)
            edges = [0, *(start - layers.start for start in inner), len(layers)]
            for low, high in itertools.pairwise(edges):
                piece = jax.tree.map(lambda a, low=low, high=high: a[low:high], state)
                runs.append(nnx.merge(graph, piece))
                sizes.append(high - low)
        self.runs, self.sizes = nnx.List(runs), tuple(sizes)

    def __call__(self, x: Array, ctx: Context, *args: Any) -> Array:
        return self.scan(lambda layer, x, ctx, _: (layer(x, ctx, *args), None), x, ctx)[0]

    def scan(
        self,
        call: Callable[[Any, Array, Context, Any], tuple[Array, Any]],
        x: Array,
        ctx: Context,
        each: PyTree = None,
    ) -> tuple[Array, PyTree]:
        """Runs all layers, each with its slice of `each`, such as a layer's KV cache.

        Args:
            call: (layer, x, ctx, slice of `each`) -> (x, kept); ``layer`` is an unstacked module of
                `runs`.
            x: input of the first layer.
            ctx: context; every call gets it folded with its number, which is the layer's unless
                layers are called several times.
            each: a pytree of arrays with a leading axis of all calls.

        Returns:
            x after the last layer, and the `kept` values of all calls, stacked.
        """
        kept = []
        for number, (run, layers) in enumerate(zip(self.runs, self.ranges(), strict=True)):
            x, (sown, kept_here) = self._scan(run, layers, call, x, ctx, each)
            sow(self, f"run_{number}", sown)
            kept.append(kept_here)
        return x, jax.tree.map(lambda *parts: jax.numpy.concatenate(parts), *kept)

    def _scan(
        self,
        run: nnx.Module,
        layers: range,
        call: Callable[..., tuple[Array, Any]],
        x: Array,
        ctx: Context,
        each: PyTree,
    ) -> tuple[Array, tuple[Any, Any]]:
        graph, stacked = nnx.split(run)
        numbers = [number for number, layer in enumerate(self.calls) if layer in layers]
        places = [self.calls[number] - layers.start for number in numbers]
        shared = places != list(range(len(layers)))

        def body(x: Array, layer: tuple[Any, Array, Any]) -> tuple[Array, tuple[Any, Any]]:
            state, index, extra = layer
            if shared:
                state = jax.tree.map(lambda array: array[state], stacked)
            model = nnx.merge(graph, state)
            x = checkpoint_name(self._constrained(x), INPUT)
            (y, kept), sown = nnx.capture(call, Sown)(model, x, ctx.fold(index), extra)
            return self._constrained(y), (nnx.to_pure_dict(sown), kept)

        if self.remat not in REMAT:
            raise UserError(f"remat {self.remat!r} is not one of {', '.join(REMAT)}")
        slices = jax.tree.map(lambda a: a[numbers[0] : numbers[-1] + 1], each)
        chosen = jax.numpy.array(places) if shared else stacked
        over = (chosen, jax.numpy.array(numbers), slices)
        x, (sown, kept) = jax.lax.scan(REMAT[self.remat](body), x, over)
        if shared:  # an adapter has one report, whatever the number of its layer's calls
            sown = jax.tree.map(partial(_means, places, len(layers)), sown)
        return x, (sown, kept)

    def _constrained(self, x: Array) -> Array:
        """Constrains x to its sharding; the compiler may otherwise shard features as a kernel's."""
        return x if self.activation_sharding is None else constrained(x, self.activation_sharding)


def _means(places: list[int], layers: int, values: Array) -> Array:
    """Returns the means (L, ...) of the calls' values (C, ...) over the calls of each layer."""
    counts = jax.numpy.array([places.count(layer) for layer in range(layers)], values.dtype)
    sums = jax.ops.segment_sum(values, jax.numpy.array(places), layers)
    return sums / counts.reshape(-1, *(1,) * (values.ndim - 1))
