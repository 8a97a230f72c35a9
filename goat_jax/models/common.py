"""Small parts every model uses: embeddings, layer norm, activations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from goat_jax.typing import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
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
    """A table (V, D) of vectors, looked up by number."""

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
        scaled = normal * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)
        return scaled.astype(x.dtype)
