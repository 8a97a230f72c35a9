"""Small parts every model uses: embeddings, layer norm, activations, attention, pooling."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from goat_jax.typing import Array


def _exact_gelu(x: Array) -> Array:
    # As torch writes it; jax.nn.gelu goes by erfc, which compiles to five times the instructions.
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _exact_gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""Activations by the names Hugging Face configs use."""


class Embedding(nnx.Module):
    """A table (V, D) of vectors, looked up by number; a number outside the table gives NaN."""

    def __init__(self, size: int, features: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (size, features)) * 0.02)

    def __call__(self, ids: Array) -> Array:
        """(..., D) for integer ids (...)."""
        return jnp.take(self.table[...], ids, axis=0)


class LayerNorm(nnx.Module):
    """Normalises the last axis in float32, whatever the dtype of x; returns x's dtype."""

    def __init__(self, features: int, epsilon: float):
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        scale = jnp.broadcast_to(self.scale[...].astype(jnp.float32), x.shape)
        bias = jnp.broadcast_to(self.bias[...].astype(jnp.float32), x.shape)
        return (normal * scale + bias).astype(x.dtype)


def attend(query: Array, key: Array, value: Array, keep: Array) -> Array:
    """Scaled dot-product attention (B, T, N, H); the softmax is in float32.

    A row that may attend to nothing gives the mean of all values, never NaN.

    Args:
        query: (B, T, N, H).  key, value: (B, T, N, H), or fewer heads that divide N.
        keep: true where a query may attend to a key, broadcastable to (B, N, T, T).

    >>> x = jnp.ones((1, 3, 2, 4), jnp.bfloat16)
    >>> attend(x, x, x, jnp.array([True, True, False])[None, None, None]).dtype
    dtype(bfloat16)
    """
    # Inside, jax mixes bfloat16 and float32; a caller's strict promotion must not reach it.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(query, key, value, mask=keep)


def _first_token(x: Array, mask: Array) -> Array:
    del mask
    return x[:, 0]


def _mean_of_tokens(x: Array, mask: Array) -> Array:
    weight = mask[..., None].astype(jnp.float32)
    total = (x.astype(jnp.float32) * weight).sum(1)
    return (total / jnp.maximum(weight.sum(1), 1.0)).astype(x.dtype)


POOLING: dict[str, Callable[[Array, Array], Array]] = {
    "cls": _first_token,
    "mean": _mean_of_tokens,
}
"""One vector (B, D) of hidden states (B, T, D) and the attention mask (B, T)."""
