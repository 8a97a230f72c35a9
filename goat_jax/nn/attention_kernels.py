"""Fused attention of the accelerators: cuDNN's on NVIDIA GPUs, splash attention on TPUs.

Both take whole rows, in which queries and keys are the same tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.core.attention import Visible
from goat_jax.nn.attention_need import Need
from goat_jax.typing import Array

CUDNN_DTYPES = ("bfloat16", "float16")
CUDNN_SIZE = 128
"""Largest head size of cuDNN on every GPU that has the kernel, from compute capability 8.0 on."""

SPLASH_DTYPES = ("bfloat16", "float32")
SPLASH_UNIT = 128
"""Tokens per block are multiples of this, the lanes of a TPU's registers."""


def cudnn_refusal(need: Need, device: Any) -> str | None:
    """Returns why cuDNN cannot compute this on a device; None if it can."""
    if device.platform not in ("gpu", "cuda"):
        return f"runs on NVIDIA GPUs, not on {device.platform}"
    if need.dtype not in CUDNN_DTYPES:
        return f"takes {' and '.join(CUDNN_DTYPES)}, not {need.dtype} (model.dtype)"
    if need.size > CUDNN_SIZE or need.size % 8:
        return f"takes head sizes up to {CUDNN_SIZE} in steps of 8, not {need.size}"
    if need.soft_cap:
        return "has no soft cap of the scores"
    if need.bias:
        return "has no bias of the scores"
    if need.sinks:
        return "has no attention sinks"
    if need.dropout:
        return "cannot drop out probabilities (model.dropout)"
    if any(need.windows) and not need.causal:
        return "has windows for causal attention only"
    capability = str(getattr(device, "compute_capability", ""))
    if re.fullmatch(r"[1-7]\.\d", capability):
        return f"needs compute capability 8.0, and this GPU has {capability}"
    return _jax_refusal(need)


@functools.lru_cache
def _jax_refusal(need: Need) -> str | None:
    """Returns what jax itself says against cuDNN: that it is missing or too old, for example."""
    x = jax.ShapeDtypeStruct((1, need.queries, 1, need.size), need.dtype)
    visible = Visible(causal=need.causal)
    try:
        jax.eval_shape(jax.grad(lambda x: cudnn(x, x, x, visible).astype("float32").sum()), x)
    except (RuntimeError, ValueError) as error:  # jax raises subclasses of these
        return f"is not available ({' '.join(str(error).split())[:160]})"
    return None


def cudnn(
    query: Array,
    key: Array,
    value: Array,
    visible: Visible,
    *,
    scale: float | None = None,
    soft_cap: None = None,
) -> Array:
    """Computes attention (B, T, N, H) by cuDNN, without a mask unless there are segments.

    Args:
        query: (B, T, N, H).
        key: (B, T, G, H).
        value: (B, T, G, H).
        visible: the keys that each query may attend to. Windows with padding count the real tokens
            alone, so padding has to be on one side of a row.
        scale: the factor of the scores; None is 1 / sqrt(H).
        soft_cap: None, since cuDNN has none.
    """
    del soft_cap
    tokens, window = query.shape[1], visible.window
    kernel = functools.partial(
        jax.nn.dot_product_attention,
        scale=scale,
        is_causal=visible.causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    with jax.numpy_dtype_promotion("standard"):
        even = tokens + tokens % 2  # its backward pass takes even numbers of tokens only
        if visible.segments is not None:
            mask = visible.padded(tokens, tokens, len(query), (even, even)).mask(even, even)
            assert mask is not None
            padded = (_padded(array, 1, even) for array in (query, key, value))
            return kernel(*padded, mask=mask[:, None])[:, :tokens]
        if visible.real is None and tokens == even:
            return kernel(query, key, value)
        # cuDNN knows rows by their lengths, so the real tokens go to the front.
        arrays, back = (query, key, value), None
        lengths = jnp.full(len(query), tokens, jnp.int32)
        if visible.real is not None:
            lengths = visible.real.sum(1, dtype=jnp.int32)
            there, back = _real_first(visible.real, lengths)
            arrays = tuple(_moved(array, there) for array in arrays)
        padded = (_padded(array, 1, even) for array in arrays)
        out = kernel(*padded, query_seq_lengths=lengths, key_value_seq_lengths=lengths)[:, :tokens]
        return out if back is None else _moved(out, back)


def _real_first(real: Array, lengths: Array) -> tuple[Array, Array]:
    """Returns, per slot (B, T), the token that comes there with real ones first, and the way back.

    Counting instead of sorting compiles in a tenth of the time on a GPU.
    """
    before = jnp.cumsum(real, axis=1, dtype=jnp.int32)
    slots = jnp.broadcast_to(jnp.arange(real.shape[1], dtype=jnp.int32), real.shape)
    back = jnp.where(real, before - 1, lengths[:, None] + slots - before)
    rows = jnp.broadcast_to(jnp.arange(len(real))[:, None], real.shape)
    return jnp.zeros_like(back).at[rows, back].set(slots, unique_indices=True), back


def _moved(array: Array, order: Array) -> Array:
    return jnp.take_along_axis(array, order[:, :, None, None], axis=1)


def _padded(array: Array, axis: int, to: int) -> Array:
    more = [(0, 0)] * array.ndim
    more[axis] = (0, to - array.shape[axis])
    return jnp.pad(array, more)


def splash_refusal(need: Need, device: Any) -> str | None:
    """Returns why splash attention cannot compute this on a device; None if it can."""
    if device.platform != "tpu":
        return f"runs on TPUs, not on {device.platform}"
    if need.dtype not in SPLASH_DTYPES:
        return f"takes {' and '.join(SPLASH_DTYPES)}, not {need.dtype}"
    if need.bias:
        return "has no bias of the scores"
    if need.sinks:
        return "has no attention sinks here"
    if need.dropout:
        return "cannot drop out probabilities (model.dropout)"
    # As the context manager of this name sets it, too; jax's types leave it out.
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    if need.dtype == "bfloat16" and precision in ("highest", "float32"):
        return f"does not compile for bfloat16 with jax_default_matmul_precision {precision}"
    return None


def splash(
    query: Array,
    key: Array,
    value: Array,
    visible: Visible,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
    interpret: bool = False,
) -> Array:
    """Computes attention (B, T, N, H) by splash attention.

    Args:
        query: (B, T, N, H).
        key: (B, T, G, H); grouped heads are not repeated.
        value: (B, T, G, H).
        visible: the keys that each query may attend to.
        scale: the factor of the scores; None is 1 / sqrt(H).
        soft_cap: bends scores smoothly into (-soft_cap, soft_cap); None does not.
        interpret: whether to run the kernel on any device, slowly.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as module

    rows, tokens, heads, size = query.shape
    to = -(-tokens // SPLASH_UNIT) * SPLASH_UNIT
    kernel = _splash_kernel(to, heads, visible.causal, visible.window, soft_cap, interpret)
    query = query * jnp.asarray(size**-0.5 if scale is None else scale, query.dtype)
    arrays = (_padded(array, 1, to).swapaxes(1, 2) for array in (query, key, value))
    segments = _segments(visible, rows, tokens, to)
    ids = None if segments is None else module.SegmentIds(segments, segments)
    with jax.numpy_dtype_promotion("standard"):
        out = jax.vmap(kernel)(*arrays, ids)
    return out.swapaxes(1, 2)[:, :tokens]


def _segments(visible: Visible, rows: int, tokens: int, to: int) -> Array | None:
    """Returns segments (B, to) in which padding sees padding alone, so that no row is empty."""
    if visible.segments is None and visible.real is None and tokens == to:
        return None
    segments = visible.segments
    segments = jnp.ones((rows, tokens), jnp.int32) if segments is None else segments
    unreal = jnp.iinfo(jnp.int32).min
    if visible.real is not None:
        segments = jnp.where(visible.real, segments, unreal)
    return jnp.pad(segments, ((0, 0), (0, to - tokens)), constant_values=unreal)


@functools.lru_cache(maxsize=64)
def _splash_kernel(
    tokens: int,
    heads: int,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
    interpret: bool,
) -> Any:
    """Makes the kernel of a shape, whose tables of blocks are numpy arrays."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as module
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (tokens, tokens)
    reach = None if window is None else window - 1
    if window is None:
        mask = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    else:
        mask = masks.LocalMask(shape, (reach, 0 if causal else reach), offset=0)
    side = next(n for n in (4 * SPLASH_UNIT, 2 * SPLASH_UNIT, SPLASH_UNIT) if tokens % n == 0)
    fields = dataclasses.fields(module.BlockSizes)
    sizes: Any = {field.name: side for field in fields if field.name.startswith("block_")}
    with jax.ensure_compile_time_eval():
        kernel = module.make_splash_mha_single_device(
            masks.MultiHeadMask([mask] * heads),
            block_sizes=module.BlockSizes(**sizes),
            attn_logits_soft_cap=soft_cap,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)
