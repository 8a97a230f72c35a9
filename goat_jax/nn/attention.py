"""`attention`: one meaning, and the way to compute it that the device, shape and dtype allow.

The ways are the rows of `WAYS`. Unless `AttentionPlan.way` names one, the device's fused kernel is
taken; if it cannot do what the model needs, or there is none, XLA computes plain scores up to
`PLAIN` tokens and works in blocks beyond.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from goat_jax.core.attention import Visible, attention_in_blocks, plain_attention
from goat_jax.core.flop_labels import label
from goat_jax.errors import UserError
from goat_jax.nn.attention_kernels import cudnn, cudnn_refusal, splash, splash_refusal
from goat_jax.nn.attention_need import Need
from goat_jax.typing import Array

PLAIN = 1024
"""Most tokens whose scores are written out: from there on blocks are quicker on CPUs, too."""

AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class AttentionPlan:
    """Settings of a model's attention that do not depend on its inputs.

    Attributes:
        way: a key of `WAYS`, or "auto".
        device: the device to compile for, which need not exist; None is jax's default device.
        mesh: the mesh of the step; None for one device.
        rows: the mesh axes that rows are sharded over.
        tokens: the mesh axes that tokens are sharded over outside of attention. Inside of it they
            shard heads, so that every device has complete rows; if the heads do not divide, every
            device has its queries and all keys.
        heads: the mesh axes that heads are sharded over.
    """

    way: str = AUTO
    device: Any = None
    mesh: Mesh | None = None
    rows: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()

    def choose(self, need: Need) -> tuple[str, str | None]:
        """Returns the way for a need, and why it is not the device's kernel; None if it is.

        Raises:
            UserError: a way was asked for by name that cannot do what is needed.
        """
        device = self._device()
        short = need.queries * need.keys <= PLAIN**2
        plain = "xla" if short or WAYS["blocks"].refusal(need, device) else "blocks"
        named = None if self.way == AUTO else self.way
        kernel = KERNEL_OF.get(device.platform) if named is None else named
        if kernel is None or (kernel in KERNELS and not need.whole):
            return plain, None
        refusal = self._refusal(kernel, need, device)
        if named is None:
            refusal = refusal or WAYS[kernel].slower(need)
            return (kernel, None) if refusal is None else (plain, f"{kernel} {refusal}")
        if refusal is not None:
            able = [name for name in WAYS if self._refusal(name, need, device) is None]
            raise UserError(f"model.attention {named} {refusal}: choose {', '.join([AUTO, *able])}")
        return named, None

    def note(self, need: Need) -> str | None:
        """Returns a line that names the way and a kernel's refusal; None without any kernel."""
        way, refusal = self.choose(need)
        if way not in KERNELS and refusal is None:
            return None
        return f"attention: {way}" + ("" if refusal is None else f", since {refusal}")

    def attend(self, visible: Visible, queries: int, keys: int) -> Callable[..., Array]:
        """Returns `attention` with this plan; the mask is made here, once for all layers."""
        # A way that takes no mask leaves it without a use, and so it is never computed.
        return partial(attention, visible=visible, plan=self, mask=visible.mask(queries, keys))

    def parts(self, axes: tuple[str, ...]) -> int:
        """Returns the number of parts that mesh axes split an array into."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in axes)

    def splits(self, tokens: int) -> bool:
        """True if the mesh shards rows of so many tokens."""
        return self.parts(self.tokens) > 1 and tokens % self.parts(self.tokens) == 0

    def copies(self, heads: int, groups: int) -> int | None:
        """Returns the copies of every key head with which the devices share them; None if none do.

        Args:
            heads: the number of heads.
            groups: the number of key heads.
        """
        parts = self.parts(self.heads + self.tokens)
        copies = parts // math.gcd(groups, parts)
        return None if heads // groups % copies else copies

    def _refusal(self, way: str, need: Need, device: Any) -> str | None:
        heads, groups = need.heads, need.groups
        if way in KERNELS and self.splits(need.keys) and self.copies(heads, groups) is None:
            devices = self.parts(self.heads + self.tokens)
            return (
                f"takes complete rows, and {heads} heads ({groups} of keys) do not divide among "
                f"the {devices} devices of {' and '.join(self.heads + self.tokens)}"
            )
        return WAYS[way].refusal(need, device)

    def _device(self) -> Any:
        if self.device is not None:
            return self.device
        default = jax.config.values["jax_default_device"]
        if default is None or isinstance(default, str):
            return jax.local_devices(backend=default)[0]
        return default


def attention(
    query: Array,
    key: Array,
    value: Array,
    sinks: Array | None = None,
    *,
    visible: Visible,
    plan: AttentionPlan = AttentionPlan(),
    mask: Array | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    bias: Array | None = None,
    dropped: Callable[[Array], Array] | None = None,
) -> Array:
    """Computes scaled dot-product attention (B, T, N, H), with the softmax in float32.

    Args:
        query: (B, T, N, H).
        key: (B, S, G, H); G divides N, and N / G queries share each of them.
        value: (B, S, G, H).
        sinks: the score of a further key per head (N,) without a value; None for no such key.
        visible: the keys that each query may attend to. The output of a query that is padding or
            may attend to none is finite and has no meaning.
        plan: the way and the mesh.
        mask: ``visible.mask(T, S)`` if it is computed already.
        scale: the factor of the scores; None is 1 / sqrt(H).
        soft_cap: bends scores smoothly into (-soft_cap, soft_cap); None does not.
        bias: (B or 1, N, T, S) float32, added to the scores; None for none.
        dropped: dropout of the probabilities (B, N, T, S); None for no dropout.

    Raises:
        UserError: the plan names a way that cannot do this.

    >>> import jax.numpy as jnp
    >>> x = jnp.ones((1, 3, 2, 4), jnp.bfloat16)
    >>> attention(x, x, x, visible=Visible(causal=True)).dtype
    dtype(bfloat16)
    """
    need = Need(
        queries=query.shape[1],
        keys=key.shape[1],
        size=query.shape[3],
        dtype=query.dtype.name,
        causal=visible.causal,
        windows=(visible.window,),
        soft_cap=soft_cap is not None,
        bias=bias is not None,
        sinks=sinks is not None,
        dropout=dropped is not None,
        cached=visible.start is not None,
        heads=query.shape[2],
        groups=key.shape[2],
    )
    way, _ = plan.choose(need)
    if way == "xla":
        mask = visible.mask(need.queries, need.keys) if mask is None else mask
        return plain_attention(
            query,
            key,
            value,
            mask,
            sinks,
            scale=scale,
            soft_cap=soft_cap,
            bias=bias,
            dropped=dropped,
        )
    compute = WAYS[way].compute
    assert compute is not None  # only of "xla"
    compute = partial(compute, scale=scale, soft_cap=soft_cap)
    return _on_shards(
        _labelled(compute) if way in KERNELS else compute, plan, query, key, value, visible, sinks
    )


def _labelled(kernel: Callable[..., Array]) -> Callable[..., Array]:
    """Makes a kernel's multiplications readable from a trace (`core.flop_labels`)."""

    def run(query: Array, key: Array, value: Array, visible: Visible, sinks: None) -> Array:
        pairs = visible.pairs(query.shape[1], key.shape[1])
        rows, _, heads, size = query.shape
        call = label(kernel, rows * heads * size * pairs)
        return call(query, key, value, visible)

    return run


def _on_shards(
    compute: Callable[..., Array],
    plan: AttentionPlan,
    query: Array,
    key: Array,
    value: Array,
    visible: Visible,
    sinks: Array | None,
) -> Array:
    """Runs `compute` on every device's rows and heads; without a mesh, on everything."""
    if plan.mesh is None:
        return compute(query, key, value, visible, sinks)
    rows = plan.rows if len(query) % plan.parts(plan.rows) == 0 else ()
    copies, tokens, heads = plan.copies(query.shape[2], key.shape[2]), (), plan.heads + plan.tokens
    if copies is None and visible.start is None and plan.splits(query.shape[1]):
        compute, tokens = _of_local_queries(compute, plan.tokens), plan.tokens
        heads = () if key.shape[2] % plan.parts(plan.heads) else plan.heads
    elif copies is None:
        heads = ()  # every device computes all heads
    elif copies > 1:
        key, value = (jax.numpy.repeat(array, copies, axis=2) for array in (key, value))
    per_query = PartitionSpec(rows or None, tokens or None, heads or None)
    per_key = PartitionSpec(rows or None, None, heads or None)
    by_row = PartitionSpec(rows or None)
    limits = jax.tree.map(lambda a: by_row if a.ndim else PartitionSpec(), visible)
    run = jax.shard_map(
        compute,
        mesh=plan.mesh,
        in_specs=(per_query, per_key, per_key, limits, PartitionSpec(heads or None)),
        out_specs=per_query,
        check_vma=False,
    )
    query, key, value = (_by_tokens(array, plan, rows) for array in (query, key, value))
    return _by_tokens(run(query, key, value, visible, sinks), plan, rows)


def _of_local_queries(
    compute: Callable[..., Array], tokens: tuple[str, ...]
) -> Callable[..., Array]:
    """Makes `compute` one of a device's own queries and all keys, which only blocks can do."""

    def run(query: Array, key: Array, value: Array, visible: Visible, sinks: Array | None) -> Array:
        start = jax.lax.axis_index(tokens) * query.shape[1]
        return compute(query, key, value, dataclasses.replace(visible, start=start), sinks)

    return run


def _by_tokens(array: Array, plan: AttentionPlan, rows: tuple[str, ...]) -> Array:
    """Shards (B, T, N, H) by tokens, so that these are exchanged for heads here and nowhere else.

    The compiler might otherwise exchange the wider arrays that it is computed from.
    """
    if plan.mesh is None or not plan.splits(array.shape[1]):
        return array
    free = PartitionSpec.UNCONSTRAINED
    spec = PartitionSpec(rows or None, plan.tokens, free, free)
    return jax.lax.with_sharding_constraint(array, NamedSharding(plan.mesh, spec))


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to compute attention.

    Attributes:
        compute: (query, key, value, visible, sinks, scale, soft_cap) -> output; None for plain
            scores.
        refusal: (need, device) -> why it cannot be computed so; None if it can.
        slower: need -> why plain scores are the better choice; None if they are not.
    """

    compute: Callable[..., Array] | None
    refusal: Callable[[Need, Any], str | None]
    slower: Callable[[Need], str | None] = lambda need: None


def _blocks_refusal(need: Need, device: Any) -> str | None:
    del device
    if need.bias:
        return "has no bias of the scores"
    return "cannot drop out probabilities" if need.dropout else None


def _short(need: Need) -> str | None:
    least = 128
    return f"works on blocks of {least} tokens, not {need.keys}" if need.keys < least else None


WAYS = {
    "xla": Way(None, lambda need, device: None),
    "blocks": Way(attention_in_blocks, _blocks_refusal),
    "cudnn": Way(cudnn, cudnn_refusal),
    "splash": Way(splash, splash_refusal, _short),
}
"""Name -> a way to compute attention: plain scores of all pairs, XLA in blocks, cuDNN's flash
attention on NVIDIA GPUs, and splash attention, a Pallas kernel, on TPUs."""

KERNEL_OF = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}
"""Platform -> the way with its fused kernel."""

KERNELS = frozenset(KERNEL_OF.values())
