"""Pre-norm image classifiers: the vision towers of all families as one model class.

Kernels set the dtype of the hidden states; norms, the softmax of the attention and the head compute
in float32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.core.attention import Visible
from goat_jax.errors import UserError
from goat_jax.models.vision.config import VisionConfig, tiny_vision_config
from goat_jax.models.vision.families import FAMILIES
from goat_jax.models.vision.heads import CLASSIFIER, HEADS
from goat_jax.nn.attention_need import Need
from goat_jax.nn.model import Model
from goat_jax.nn.modules import LayerNorm, LearnedArray, PatchEmbedding
from goat_jax.nn.pre_norm_block import PreNormBlock
from goat_jax.nn.rotation import Rotation
from goat_jax.nn.stack import Stack
from goat_jax.typing import Array

__all__ = ["ImageEmbeddings", "VisionConfig", "VisionModel", "cubic_resize", "tiny_vision_config"]


class ImageEmbeddings(nnx.Module):
    """Embeds an image as learned tokens and its patches row by row.

    The family's own tokens and the patches have positions, register tokens between them have none.
    """

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        family, width = FAMILIES[config.family], config.hidden_size
        before_token, before_positions = ((1,) * axes for axes in family.leading)
        self.patches = PatchEmbedding(
            config.patch_size, config.channels, width, use_bias=family.patch_bias, rngs=rngs
        )
        for name in family.tokens:
            setattr(self, name, LearnedArray((*before_token, width), rngs=rngs))
        if config.positions:
            number = len(family.tokens) + math.prod(config.grid)
            self.positions = LearnedArray((*before_positions, number, width), rngs=rngs)
        if "registers" in family.embeddings:
            self.registers = LearnedArray((1, config.registers, width), rngs=rngs)
        for name, axes in family.kept.items():
            setattr(self, name, LearnedArray((1,) * axes + (width,), rngs=rngs))
        self.config = config

    def __call__(self, images: Array) -> Array:
        """Embeds images (B, height, width, channels) as (B, tokens + rows * columns, D).

        Raises:
            UserError: images of a shape or dtype that the model does not take.
        """
        check_images(images, self.config)
        patches = self.patches(images)
        batch, rows, columns, width = patches.shape
        names = FAMILIES[self.config.family].tokens
        tokens = [self._token(getattr(self, name), patches) for name in names]
        x = jnp.concatenate([*tokens, patches.reshape(batch, rows * columns, width)], 1)
        if self.config.positions:
            positions = self._positions((rows, columns)).astype(x.dtype)
            x = x + jnp.broadcast_to(positions, x.shape)
        if not self.config.registers:
            return x
        first = len(tokens)
        registers = self._token(self.registers, patches)
        return jnp.concatenate([x[:, :first], registers, x[:, first:]], 1)

    def _token(self, learned: LearnedArray, patches: Array) -> Array:
        """Returns a learned token, or several, once per image (B, N, D)."""
        batch, width = patches.shape[0], patches.shape[-1]
        token = learned().astype(patches.dtype).reshape(1, -1, width)
        return jnp.broadcast_to(token, (batch, *token.shape[1:]))

    def _positions(self, grid: tuple[int, int]) -> Array:
        """Returns positions (tokens + rows * columns, D), interpolated for another grid."""
        family, width = FAMILIES[self.config.family], self.config.hidden_size
        own = len(family.tokens)
        resize = smooth_resize if family.antialiased else cubic_resize
        learned = self.positions().reshape(-1, width)
        if grid == self.config.grid:
            return learned
        cells = learned[own:].astype(jnp.float32).reshape(*self.config.grid, width)
        weights = (resize(*sizes) for sizes in zip(self.config.grid, grid, strict=True))
        resized = jnp.einsum(
            "rR,cC,RCD->rcD", *map(jnp.asarray, weights), cells, precision="highest"
        )
        return jnp.concatenate([learned[:own].astype(jnp.float32), resized.reshape(-1, width)])


def check_images(images: Array, config: VisionConfig) -> None:
    """Raises `UserError` for images of a shape or dtype that a model does not take."""
    height, width = config.size
    if images.ndim != 4 or images.shape[-1] != config.channels:
        raise UserError(
            f"images have shape {images.shape}: give (batch, height, width, {config.channels}), "
            "channels last"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images are {images.dtype}: scale and normalise them to float32 first")
    if FAMILIES[config.family].other_sizes:
        if min(images.shape[1:3]) < config.patch_size:
            raise UserError(
                f"images of {images.shape[1]}x{images.shape[2]} pixels are smaller than a patch of "
                f"{config.patch_size}x{config.patch_size}: resize them"
            )
    elif images.shape[1:3] != config.size:
        raise UserError(
            f"images have {images.shape[1]}x{images.shape[2]} pixels, the model takes "
            f"{height}x{width}: resize them"
        )


def cubic_resize(old: int, new: int) -> np.ndarray:
    """Computes the weights (new, old) float32 of a cubic interpolation along one axis.

    It is the cubic convolution of Keys (1981) with a = -0.75 over pixel centers, with edges
    repeated and without smoothing when downsizing: torch's bicubic with align_corners=False.

    >>> cubic_resize(2, 2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    a = -0.75
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    left = np.floor(centres)
    weights = np.zeros((new, old))
    for tap in (-1, 0, 1, 2):
        place = left + tap
        far = np.abs(centres - place)
        near_weight = ((a + 2) * far - (a + 3)) * far**2 + 1
        far_weight = a * (((far - 5) * far + 8) * far - 4)
        column = np.clip(place, 0, old - 1).astype(int)
        np.add.at(weights, (np.arange(new), column), np.where(far <= 1, near_weight, far_weight))
    return weights.astype(np.float32)


def smooth_resize(old: int, new: int) -> np.ndarray:
    """Computes the weights (new, old) float32 of a cubic interpolation that smooths.

    It is torch's bicubic with antialias=True, as in Pillow: the cubic convolution of Keys (1981)
    with a = -0.5, stretched when downsizing, with weights outside left out.

    >>> smooth_resize(4, 2).astype(float).round(3).tolist()
    [[0.459, 0.459, 0.12, -0.037], [-0.037, 0.12, 0.459, 0.459]]
    """
    a, stretch = -0.5, max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * (old / new)
    far = np.abs(np.arange(old) + 0.5 - centres[:, None]) / stretch
    near_weight = ((a + 2) * far - (a + 3)) * far**2 + 1
    far_weight = a * (((far - 5) * far + 8) * far - 4)
    weights = np.where(far <= 1, near_weight, np.where(far < 2, far_weight, 0.0))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def patch_rotation(grid: tuple[int, ...], before: int, size: int, theta: float) -> Rotation:
    """Computes the rotation of patches at their places on two axes (DINOv3).

    Args:
        grid: the (rows, columns) of patches.
        before: the number of tokens before the patches, which are not rotated.
        size: the head size, a multiple of 4.
        theta: the base of the wavelengths.

    >>> patch_rotation((2, 3), 1, 8, 100.0).cos.shape
    (1, 7, 1, 4)
    """
    centres = (np.arange(side, dtype=np.float32) + 0.5 for side in grid)
    places = (2 * (own / side) - 1 for own, side in zip(centres, grid, strict=True))
    cells = np.stack(np.meshgrid(*places, indexing="ij"), -1).reshape(-1, 2, 1)
    frequencies = theta ** -np.arange(0, 1, 4 / size, dtype=np.float32)
    angles = (2 * np.pi * cells * frequencies).reshape(len(cells), -1).astype(np.float32)
    angles = np.pad(angles, ((before, 0), (0, 0)))[None, :, None]
    return Rotation(jnp.cos(angles), jnp.sin(angles))


class ScoreBias(nnx.Module):
    """Learned bias of the scores of two patches by the distance of their places (BEiT).

    The class token, the first, has biases of its own: to patches, from patches and to itself.
    """

    def __init__(self, heads: int, grid: tuple[int, int], *, rngs: nnx.Rngs):
        rows, columns = grid
        self.table = LearnedArray(((2 * rows - 1) * (2 * columns - 1) + 3, heads), rngs=rngs)
        self.grid = grid

    def __call__(self) -> Array:
        """Returns the bias (1, N, T, T), float32."""
        rows, columns = self.grid
        cells = np.stack(np.meshgrid(*map(np.arange, self.grid), indexing="ij"), -1).reshape(-1, 2)
        distance = cells[:, None] - cells[None] + np.array([rows - 1, columns - 1])
        number = (2 * rows - 1) * (2 * columns - 1)
        index = np.pad(distance @ np.array([2 * columns - 1, 1]), ((1, 0), (1, 0)))
        index[0, :], index[:, 0], index[0, 0] = number, number + 1, number + 2
        return self.table().astype(jnp.float32)[index].transpose(2, 0, 1)[None]


class VisionBlock(PreNormBlock):
    """A block that may have a bias of the attention's scores."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        if config.biased_scores:
            self.score_bias = ScoreBias(config.num_heads, config.grid, rngs=rngs)

    def __call__(self, x: Array, ctx: Context, attend: Callable[..., Array]) -> Array:
        if not self.config.biased_scores:
            return super().__call__(x, ctx, attend)
        return super().__call__(x, ctx, partial(attend, bias=self.score_bias()))


def _attend_with(
    attend: Callable[..., Array], shared: Array, *arrays: Array, bias: Array | None = None
) -> Array:
    """Attends with the bias that all layers share, and a layer's own, if any."""
    return attend(*arrays, bias=shared if bias is None else shared + bias)


class VisionModel(Model):
    """Vision tower with a classification head.

    >>> def logits(images):
    ...     return VisionModel(tiny_vision_config(), rngs=nnx.Rngs(0))(images)
    >>> nnx.eval_shape(logits, jnp.ones((2, 16, 16, 3))).shape
    (2, 2)
    """

    config: VisionConfig

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        family = FAMILIES[config.family]
        self.embeddings = ImageEmbeddings(config, rngs=rngs)
        if "first_norm" in family.norms:
            self.first_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        if config.shared_score_bias:
            self.score_bias = ScoreBias(config.num_heads, config.grid, rngs=rngs)
        self.layers = Stack(lambda r: VisionBlock(config, rngs=r), config.num_layers, rngs=rngs)
        self.final_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.head = HEADS[family.heads[config.head]](config, rngs=rngs)
        self.config = config

    @property
    def head_modules(self) -> tuple[str, ...]:
        return (CLASSIFIER,)

    def hf_names(self) -> dict[str, str]:
        """Maps our path to the torch name of the module (see `goat_jax.nn.named_modules`)."""
        family = FAMILIES[self.config.family]
        parts = {f"embeddings.{ours}": theirs for ours, theirs in family.embeddings.items()}
        parts |= family.norms
        if self.config.norm_pooled:
            parts["final_norm"] = parts["pooled_norm"]
        parts |= {
            f"layers.{ours}": f"{family.layers}.{{}}.{theirs}"
            for ours, theirs in family.block.items()
        }
        prefix = family.prefix and family.prefix + "."
        names = {ours: prefix + theirs for ours, theirs in parts.items()}
        return names | {f"head.{ours}": theirs for ours, theirs in self.head.NAMES.items()}

    def attention_need(self, tokens: int, dtype: str) -> Need:
        del tokens
        need = self.config.attention_need(self.config.tokens, dtype, causal=False)
        return dataclasses.replace(need, bias=need.bias or self.config.shared_score_bias)

    def features(self, pixel_values: Array, ctx: Context = EVAL) -> Array:
        """Returns last hidden states (B, T, D), in the kernels' dtype; T counts
            the tokens before the patches.

        Args:
            pixel_values: (B, height, width, channels), normalized as the model was trained.
            ctx: dropout key and the mask that the balance loss uses.

        Raises:
            UserError: images of a shape or dtype that the model does not take.
        """
        x = self.embeddings(pixel_values)
        if hasattr(self, "first_norm"):
            x = self.first_norm(x)
        attend = self.attention.attend(Visible(), x.shape[1], x.shape[1])
        x = self.layers(x, ctx, self._with_positions(attend, pixel_values))
        normalised = FAMILIES[self.config.family].normalised and not self.config.norm_pooled
        return self.final_norm(x) if normalised else x

    def _with_positions(self, attend: Callable[..., Array], images: Array) -> Callable[..., Array]:
        """Returns attention with the positions that all layers share."""
        config = self.config
        if config.shared_score_bias:
            attend = partial(_attend_with, attend, self.score_bias())
        if config.rope_theta is None:
            return attend
        grid = tuple(side // config.patch_size for side in images.shape[1:3])
        turn = patch_rotation(grid, config.before_patches, self._head_size, config.rope_theta)
        return lambda query, key, value, **options: attend(
            turn.queries(query), turn.keys(key), value, **options
        )

    @property
    def _head_size(self) -> int:
        return self.config.hidden_size // self.config.num_heads

    def __call__(self, pixel_values: Array, ctx: Context = EVAL) -> Array:
        """Returns logits (B, num_labels), float32; arguments and errors as for `features`."""
        return self.classify(self.features(pixel_values, ctx), ctx)

    def classify(self, hidden: Array, ctx: Context = EVAL) -> Array:
        """Returns logits (B, num_labels), float32, of hidden states (B, T, D) from `features`."""
        return self.head(hidden, self.final_norm, ctx)
