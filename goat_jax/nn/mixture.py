"""`Mixture`: a feed-forward whose tokens are each computed by a few of many experts.

These are the experts of the pretrained model, not those of an adapter. They are ordinary modules,
stacked on an axis of X experts, so their linear layers take any adapter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from goat_jax.adapters.context import Context
from goat_jax.core.aux_losses import use_of_experts
from goat_jax.core.expert_blocks import arrange, choose_experts
from goat_jax.core.products import router_logits
from goat_jax.nn.dense import Sown, sow
from goat_jax.typing import Array, Key, PyTree

KEPT = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
"""Policy of a block's backward pass: products are kept, the expert's kernels are looked up again,
of which each block would otherwise keep a copy."""


class Router(nnx.Module):
    """The linear map (D, X) from a token to the logits of the experts, in float32."""

    def __init__(self, features: int, experts: int, *, use_bias: bool, rngs: nnx.Rngs):
        kernel = jax.random.normal(rngs.params(), (features, experts), jnp.float32)
        self.kernel = nnx.Param(kernel * features**-0.5)
        self.bias = nnx.Param(jnp.zeros((experts,), jnp.float32)) if use_bias else None

    def __call__(self, x: Array) -> Array:
        logits = router_logits(x, self.kernel[...])
        if self.bias is None:
            return logits
        return logits + jnp.broadcast_to(self.bias[...].astype(logits.dtype), logits.shape)


class Mixture(nnx.Module):
    """Experts of which every token uses a few, chosen and weighted by a router.

    Attributes:
        router: the router.
        experts: the experts, one module whose arrays have a leading axis of X.
        num_experts: the number X of experts.
        per_token: the number K of experts per token.
        normalize: whether a token's weights sum to 1.
        balance_weight: the weight of the load balancing loss; 0 for none.
        mesh: the mesh of the step; None for one device.
        rows: the mesh axes that rows are sharded over.
        tokens: the mesh axes that the tokens of a row are sharded over.
    """

    def __init__(
        self,
        make: Callable[[nnx.Rngs], nnx.Module],
        features: int,
        num_experts: int,
        per_token: int,
        *,
        normalize: bool,
        router_bias: bool,
        balance_weight: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.router = Router(features, num_experts, use_bias=router_bias, rngs=rngs)
        self.experts = nnx.vmap(make, in_axes=0, out_axes=0)(rngs.split(num_experts))
        self.num_experts = num_experts
        self.per_token = per_token
        self.normalize = normalize
        self.balance_weight = balance_weight
        self.mesh: Mesh | None = None
        self.rows: tuple[str, ...] = ()
        self.tokens: tuple[str, ...] = ()

    def __call__(self, x: Array, ctx: Context) -> Array:
        """Returns the weighted sum (B, T, D) of the experts' outputs for x (B, T, D)."""
        logits = self.router(x)
        weights, chosen = choose_experts(logits, self.per_token, self.normalize)
        if self.balance_weight:
            sow(self, "use", use_of_experts(logits, chosen, ctx.mask, self.balance_weight))
        graph, state = nnx.split(self.experts)
        arrays = (ctx.key, state, x, weights, chosen, _per_token(ctx, x.shape[:2]))
        rows, tokens = self._even(self.rows, len(x)), self._even(self.tokens, x.shape[1])
        compute = partial(self._compute, graph, rows + tokens)
        if rows + tokens:
            compute = self._on_shards(compute, rows, tokens)
        y, reports = compute(*arrays)
        sow(self, "of_experts", reports)
        return y

    def _even(self, axes: tuple[str, ...], size: int) -> tuple[str, ...]:
        """Returns those of the mesh axes that shard something, or none if the size does not fit."""
        sizes = {} if self.mesh is None else self.mesh.shape
        used = tuple(axis for axis in axes if sizes.get(axis, 1) > 1)
        return used if size % math.prod(sizes[axis] for axis in used) == 0 else ()

    def _on_shards(
        self, compute: Callable[..., Any], rows: tuple[str, ...], tokens: tuple[str, ...]
    ) -> Callable[..., Any]:
        """Computes every device's tokens there, with complete experts, as in data parallelism.

        Mesh axes that do not shard tokens, such as that of tensor parallelism, stay the compiler's.
        """
        whole, cut = PartitionSpec(), PartitionSpec(rows or None, tokens or None)
        return jax.shard_map(
            compute,
            mesh=self.mesh,
            in_specs=(whole, whole, cut, cut, cut, cut),
            out_specs=(cut, whole),
            axis_names={*rows, *tokens},
            check_vma=False,
        )

    def _compute(
        self,
        graph: Any,
        axes: tuple[str, ...],
        key: Key | None,
        state: PyTree,
        x: Array,
        weights: Array,
        chosen: Array,
        ctx: Context,
    ) -> tuple[Array, PyTree]:
        """Returns the output and the adapters' reports, each expert's over all its tokens.

        A block is a batch of rows of one token each. An auxiliary loss is computed for every block
        and averaged by its tokens, as over micro-batches.

        Args:
            graph: structure of an expert.
            axes: mesh axes that the tokens are a shard of.
            key: dropout key.
            state: arrays of the experts.
            x: (B, T, D).
            weights: (B, T, K).
            chosen: (B, T, K).
            ctx: context without key, whose arrays are (B, T).
        """
        features = x.shape[-1]
        if axes and key is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axes))
        blocks = arrange(chosen.reshape(-1), self.num_experts)
        tokens = blocks.sources // self.per_token  # an empty slot's is behind the last one

        def looked_up(array: Array, at: Array) -> Array:
            return jnp.take(array, at, axis=0, mode="fill", fill_value=0)

        flat_x = x.reshape(-1, features)
        flat_ctx = jax.tree.map(lambda array: array.reshape(-1), ctx)

        def body(index: Array, block: tuple[Array, Array]) -> tuple[Array, Any]:
            expert, at = block
            model = nnx.merge(graph, jax.tree.map(lambda array: array[expert], state))
            own = jax.tree.map(lambda array: looked_up(array, at), flat_ctx)
            mask = jnp.expand_dims(own.mask, 1)
            own = dataclasses.replace(own, key=key, mask=mask).fold(index)
            call = nnx.capture(lambda model, x, ctx: model(x, ctx), Sown)
            y, sown = call(model, jnp.expand_dims(looked_up(flat_x, at), 1), own)
            return index + 1, (y[:, 0], nnx.to_pure_dict(sown), mask.sum(dtype=jnp.float32))

        body = jax.checkpoint(body, policy=KEPT)
        _, (y, sown, counts) = jax.lax.scan(body, jnp.int32(0), (blocks.experts, tokens))
        y = y.reshape(-1, features)[blocks.places].reshape(*chosen.shape, features)
        mixed = jnp.einsum("btk,btkd->btd", weights, y.astype(weights.dtype)).astype(x.dtype)

        def by_expert(values: Array) -> Array:
            total = jax.ops.segment_sum(values, blocks.experts, self.num_experts)
            return jax.lax.psum(total, axes) if axes else total

        count = jnp.maximum(by_expert(counts), 1.0)

        def mean(values: Array) -> Array:
            shape = (-1, *(1,) * (values.ndim - 1))
            return by_expert(values * counts.reshape(shape)) / count.reshape(shape)

        return mixed, jax.tree.map(mean, sown)


def _per_token(ctx: Context, shape: tuple[int, ...]) -> Context:
    """Returns the context without key and with every array per token, (B, T)."""

    def spread(array: Array) -> Array:
        return jnp.broadcast_to(array.reshape(*array.shape, *(1,) * (2 - array.ndim)), shape)

    mask = jnp.ones(shape, bool) if ctx.mask is None else ctx.mask
    plain = dataclasses.replace(ctx, key=None, mask=mask, per_token=False)
    return jax.tree.map(spread, plain)
