"""Small modules shared by all models: embeddings, norms, activations, pooling."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from goat_jax.nn.activation_sharding import constrained
from goat_jax.typing import Array


def _exact_gelu(x: Array) -> Array:
    # torch's formula; jax.nn.gelu uses erfc, which compiles to five times the instructions.
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


# Without this the backward pass keeps up to three more arrays of x's size. Layers are scanned, so
# nothing has to prevent XLA from taking the forward pass's arrays instead of computing them again.
_keeps_input = partial(jax.checkpoint, prevent_cse=False)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    name: _keeps_input(function)
    for name, function in {
        "gelu": _exact_gelu,
        "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
        "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
        "relu": jax.nn.relu,
        "silu": jax.nn.silu,
        "swish": jax.nn.silu,
        "tanh": jnp.tanh,
    }.items()
}
"""Activation functions by the names that Hugging Face configs use; gradients keep x alone."""


class Embedding(nnx.Module):
    """A table (V, D) of vectors, looked up by index; an index outside the table gives NaN.

    Attributes:
        table: the vectors (V, D).
        kept_dtype: the table's dtype before it became a float32 trainable; `dtype` keeps returning
            it. None if the table is frozen.
        lookup_shardings: on a mesh, the shardings that are applied in turn to the vectors
            (B, T, D); else empty.
    """

    def __init__(self, size: int, features: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (size, features)) * 0.02)
        self.kept_dtype: jnp.dtype | None = None
        self.lookup_shardings: tuple[NamedSharding, ...] = ()

    @property
    def dtype(self) -> jnp.dtype:
        """Output dtype, and so the dtype of the model's hidden states."""
        return self.kept_dtype or self.table.dtype

    def __call__(self, ids: Array) -> Array:
        """Looks up vectors (..., D) for integer ids (...)."""
        x = jnp.take(self.table[...], ids, axis=0).astype(self.dtype)
        for sharding in self.lookup_shardings if x.ndim == 3 else ():
            x = constrained(x, sharding)
        return x


@partial(_keeps_input, static_argnums=3)
def layer_norm(x: Array, scale: Array, bias: Array | None, epsilon: float) -> Array:
    """Normalizes the last axis (D) of x in float32, as `LayerNorm`; keeps x alone for gradients."""
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(variance + epsilon)
    scaled = normal * jnp.broadcast_to(scale.astype(jnp.float32), x.shape)
    if bias is not None:
        scaled = scaled + jnp.broadcast_to(bias.astype(jnp.float32), x.shape)
    return scaled.astype(x.dtype)


@partial(_keeps_input, static_argnums=3)
def rms_norm(x: Array, scale: Array, offset: float, epsilon: float) -> Array:
    """Divides x by its root mean square, as `RMSNorm`; keeps x alone for gradients."""
    wide = x.astype(jnp.float32)
    normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    scale = scale.astype(jnp.float32) + offset
    return (normal * jnp.broadcast_to(scale, x.shape)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalization of the last axis, in float32 whatever x's dtype; returns x's dtype."""

    def __init__(self, features: int, epsilon: float, *, use_bias: bool = True):
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32)) if use_bias else None
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        bias = None if self.bias is None else self.bias[...]
        return layer_norm(x, self.scale[...], bias, self.epsilon)


class RMSNorm(nnx.Module):
    """Division by the root mean square of the last axis, in float32; returns x's dtype.

    Attributes:
        scale: the stored scale (D,).
        offset: what is added to it: Gemma stores a scale's difference from 1.
    """

    def __init__(self, features: int, epsilon: float, *, offset: float = 0.0):
        self.scale = nnx.Param(jnp.full((features,), 1.0 - offset, jnp.float32))
        self.epsilon = epsilon
        self.offset = offset

    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.scale[...], self.offset, self.epsilon)


Norm = RMSNorm | LayerNorm

NORMS: dict[str, Callable[[int, float], Norm]] = {
    "rms": RMSNorm,
    "rms_from_1": partial(RMSNorm, offset=1.0),
    "layer": LayerNorm,
    "layer_without_bias": partial(LayerNorm, use_bias=False),
}
"""Name -> (features, epsilon) -> a normalization of the last axis."""


class Projection(nnx.Module):
    """A linear map that never takes an adapter, for vocabulary outputs and shared embedding spaces.

    >>> Projection(4, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
    (2, 3)
    """

    def __init__(
        self, in_features: int, out_features: int, *, use_bias: bool = False, rngs: nnx.Rngs
    ):
        kernel = jax.random.normal(rngs.params(), (in_features, out_features), jnp.float32)
        self.kernel = nnx.Param(kernel * in_features**-0.5)
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if use_bias else None

    def __call__(self, x: Array) -> Array:
        y = jnp.dot(x, self.kernel[...].astype(x.dtype))
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(self.bias[...].astype(x.dtype), y.shape)


class JoinedProjection(nnx.Module):
    """Several linear maps of one width in a single kernel, as torch's MultiheadAttention has them.

    >>> JoinedProjection(4, 3, rngs=nnx.Rngs(0))(jnp.ones((2, 4)), 1).shape
    (2, 4)
    """

    def __init__(self, features: int, parts: int, *, rngs: nnx.Rngs):
        kernel = jax.random.normal(rngs.params(), (features, parts * features), jnp.float32)
        self.kernel = nnx.Param(kernel * features**-0.5)
        self.bias = nnx.Param(jnp.zeros((parts * features,), jnp.float32))

    def __call__(self, x: Array, part: int) -> Array:
        """Maps x (..., D) by one of the maps, counted from 0."""
        features = x.shape[-1]
        own = slice(part * features, (part + 1) * features)
        y = jnp.dot(x, self.kernel[:, own].astype(x.dtype))
        return y + jnp.broadcast_to(self.bias[own].astype(x.dtype), y.shape)


class PatchEmbedding(nnx.Module):
    """Splits images into square patches and maps each linearly (a convolution, stride = width).

    Rows at the bottom and columns on the right that do not fill a patch are dropped.

    Attributes:
        kept_dtype: the kernel's dtype before it became a float32 trainable; `dtype` keeps
            returning it. None if the kernel is frozen.

    >>> PatchEmbedding(8, 3, 16, use_bias=False, rngs=nnx.Rngs(0))(jnp.ones((2, 32, 24, 3))).shape
    (2, 4, 3, 16)
    """

    def __init__(self, patch: int, channels: int, features: int, *, use_bias: bool, rngs: nnx.Rngs):
        shape = (patch, patch, channels, features)
        std = (patch * patch * channels) ** -0.5
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * std)
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32)) if use_bias else None
        self.kept_dtype: jnp.dtype | None = None

    @property
    def dtype(self) -> jnp.dtype:
        """Output dtype, and so the dtype of the model's hidden states."""
        return self.kept_dtype or self.kernel.dtype

    def __call__(self, images: Array) -> Array:
        """Embeds images (B, height, width, channels) as (B, rows, columns, features)."""
        kernel = self.kernel[...].astype(self.dtype)
        patch, _, channels, features = kernel.shape
        batch, height, width, _ = images.shape
        rows, columns = height // patch, width // patch
        images = images[:, : rows * patch, : columns * patch]
        cut = images.reshape(batch, rows, patch, columns, patch, channels)
        flat = cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)
        y = jnp.dot(flat.astype(kernel.dtype), kernel.reshape(-1, features))
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(self.bias[...].astype(y.dtype), y.shape)


class TokenConvolution(nnx.Module):
    """Convolution over the tokens of a row, whose ends are padded with zeros.

    >>> TokenConvolution(3, 4, 2, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 4))).shape
    (2, 5, 4)
    """

    def __init__(self, size: int, features: int, groups: int, *, rngs: nnx.Rngs):
        shape = (size, features // groups, features)
        std = (size * features // groups) ** -0.5
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * std)
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.groups = groups

    def __call__(self, x: Array) -> Array:
        """Convolves x (B, T, D), for a kernel of odd size."""
        kernel = self.kernel[...].astype(x.dtype)
        y = jax.lax.conv_general_dilated(
            *(x, kernel, (1,), "SAME"),
            dimension_numbers=("NTC", "TIO", "NTC"),
            feature_group_count=self.groups,
        )
        return y + jnp.broadcast_to(self.bias[...].astype(y.dtype), y.shape)


class LearnedArray(nnx.Module):
    """A single array, such as the embedding of a class token."""

    def __init__(self, shape: tuple[int, ...], *, rngs: nnx.Rngs):
        self.value = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * 0.02)

    def __call__(self) -> Array:
        """Returns the array."""
        return self.value[...]


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
"""Name -> function from hidden states (B, T, D) and attention mask (B, T) to a vector (B, D)."""
