"""Pre-norm transformer block, used by the vision towers and their text towers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.context import Context
from goat_jax.errors import UserError, nearest
from goat_jax.nn.attention_need import Need
from goat_jax.nn.dense import Dense
from goat_jax.nn.modules import ACTIVATIONS, LayerNorm, LearnedArray
from goat_jax.typing import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Sizes and settings of a stack of pre-norm blocks.

    Attributes:
        hidden_size: width D of the residual stream.
        num_layers: number of blocks.
        num_heads: attention heads per block; must divide `hidden_size`.
        intermediate_size: width of the feed-forward's hidden layer.
        activation: the feed-forward's activation, a key of `ACTIVATIONS`.
        layer_norm_eps: constant added to every variance in layer normalization.
        query_bias: whether the queries' layer has a bias.
        key_bias: whether the keys' layer has a bias.
        value_bias: whether the values' layer has a bias.
        out_bias: whether the layer after attention has a bias.
        mlp_bias: whether the layers of the feed-forward have biases.
        gated: whether the feed-forward's activation is multiplied by a second linear map.
        layer_scale: whether each sublayer's output is multiplied by a learned vector (DINOv2).
        biased_scores: whether each layer adds a learned bias to the attention's scores (BEiT).

    Raises:
        UserError: a size below 1, heads that do not divide the width, an unknown activation.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    activation: str
    layer_norm_eps: float
    query_bias: bool = True
    key_bias: bool = True
    value_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    gated: bool = False
    layer_scale: bool = False
    biased_scores: bool = False

    def attention_need(self, tokens: int, dtype: str, causal: bool) -> Need:
        """Returns what the blocks ask of attention, as `Model.attention_need` does."""
        heads, size = self.num_heads, self.hidden_size // self.num_heads
        return Need(
            tokens,
            tokens,
            size,
            dtype,
            causal=causal,
            bias=self.biased_scores,
            heads=heads,
            groups=heads,
        )

    def __post_init__(self) -> None:
        check_sizes(self, "hidden_size", "num_layers", "num_heads", "intermediate_size")
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"hidden size {self.hidden_size} is not divisible by {self.num_heads} heads: "
                "correct one of them"
            )
        check_choice("activation", self.activation, ACTIVATIONS)


def check_sizes(config: object, *names: str) -> None:
    """Raises `UserError` if one of the fields `names` is not an integer of at least 1."""
    for name in names:
        size = getattr(config, name)
        if type(size) is not int or size < 1:
            raise UserError(f"{name} is {size!r}: it must be a whole number from 1 up")


def check_choice(what: str, chosen: object, known: Iterable[str]) -> None:
    """Raises `UserError` if `chosen` is not one of the names in `known`; `what` names the field."""
    names = list(known)
    if not isinstance(chosen, str) or chosen not in names:
        hint = nearest(str(chosen), names)
        raise UserError(f"{what} {chosen!r} is not one of {', '.join(names)}{hint}")


class PreNormBlock(nnx.Module):
    """Self-attention and feed-forward, each on the normalized input and added to it.

    >>> sizes = BlockConfig(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=16,
    ...     activation="gelu", layer_norm_eps=1e-5)
    >>> from goat_jax.core.attention import Visible
    >>> from goat_jax.nn.attention import AttentionPlan
    >>> attend = AttentionPlan().attend(Visible(), 3, 3)
    >>> PreNormBlock(sizes, rngs=nnx.Rngs(0))(jnp.ones((1, 3, 8)), Context(), attend).shape
    (1, 3, 8)
    """

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.attention_norm = LayerNorm(width, config.layer_norm_eps)
        self.query = Dense(width, width, use_bias=config.query_bias, rngs=rngs)
        self.key = Dense(width, width, use_bias=config.key_bias, rngs=rngs)
        self.value = Dense(width, width, use_bias=config.value_bias, rngs=rngs)
        self.attention_out = Dense(width, width, use_bias=config.out_bias, rngs=rngs)
        self.norm = LayerNorm(width, config.layer_norm_eps)
        if config.gated:
            self.gate = Dense(width, inner, use_bias=bias, rngs=rngs)
        self.up = Dense(width, inner, use_bias=bias, rngs=rngs)
        self.down = Dense(inner, width, use_bias=bias, rngs=rngs)
        if config.layer_scale:
            self.attention_scale = LearnedArray((width,), rngs=rngs)
            self.scale = LearnedArray((width,), rngs=rngs)
        self.config = config

    def __call__(self, x: Array, ctx: Context, attend: Callable[..., Array]) -> Array:
        """Returns x (B, T, D) after the block.

        Args:
            x: (B, T, D).
            ctx: context passed to every linear layer.
            attend: attention of queries, keys and values (`AttentionPlan.attend`).
        """
        normal = self.attention_norm(x)
        split = (*x.shape[:-1], self.config.num_heads, -1)
        projections = (self.query, self.key, self.value)
        query, key, value = (part(normal, ctx).reshape(split) for part in projections)
        attended = self.attention_out(attend(query, key, value).reshape(x.shape), ctx)
        x = x + self._scaled(attended, "attention_scale")
        return x + self._scaled(self._feed_forward(self.norm(x), ctx), "scale")

    def _feed_forward(self, x: Array, ctx: Context) -> Array:
        activate = ACTIVATIONS[self.config.activation]
        if self.config.gated:
            return self.down(activate(self.gate(x, ctx)) * self.up(x, ctx), ctx)
        return self.down(activate(self.up(x, ctx)), ctx)

    def _scaled(self, x: Array, name: str) -> Array:
        if not self.config.layer_scale:
            return x
        scale = getattr(self, name)()
        return x * jnp.broadcast_to(scale.astype(x.dtype), x.shape)
