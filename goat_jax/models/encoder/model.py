"""Text encoders, those of all families as one network.

Weights and the embedding tables set the dtype of the hidden states; norms, the softmax of the
attention and the head compute in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.core.attention import Visible
from goat_jax.errors import UserError
from goat_jax.models.encoder.config import EncoderConfig, tiny_config
from goat_jax.models.encoder.families import FAMILIES
from goat_jax.models.encoder.relative import BUCKETS, bias_buckets
from goat_jax.nn.attention_need import Need
from goat_jax.nn.dense import Dense
from goat_jax.nn.dropout import drop, dropper
from goat_jax.nn.model import Model
from goat_jax.nn.modules import ACTIVATIONS, POOLING, Embedding, LayerNorm, TokenConvolution
from goat_jax.nn.named_modules import name_number
from goat_jax.nn.per_layer import PerLayer, stacked, tree_of, way_of
from goat_jax.nn.rotation import Rotation
from goat_jax.nn.stack import Stack
from goat_jax.nn.vocabulary import TokenTable
from goat_jax.typing import Array, PyTree

__all__ = ["Embeddings", "Encoder", "EncoderBlock", "EncoderConfig", "tiny_config"]


class Relative(NamedTuple):
    """Vectors of the distances between tokens.

    Attributes:
        vectors: the vectors (1, R, D).
        rows: the row (T, T) of each query and key among them.
    """

    vectors: Array
    rows: Array


class EncoderBlock(nnx.Module):
    """Self-attention and feed-forward, each added to its input, with a layer norm.

    Args:
        config: the sizes and settings.
        first: whether it is the first of several different layers.
    """

    def __init__(self, config: EncoderConfig, *, first: bool = False, rngs: nnx.Rngs):
        width, inner, relative = config.hidden_size, config.intermediate_size, config.disentangled
        attention = {"use_bias": config.attention_bias, "rngs": rngs}
        mlp = {"use_bias": config.mlp_bias, "rngs": rngs}
        self.query = Dense(width, width, **attention)
        self.key = Dense(width, width, **attention)
        self.value = Dense(width, width, **attention)
        apart = None if relative is None or relative.shared else relative
        keys = apart is not None and apart.content_to_position
        queries = apart is not None and apart.position_to_content
        self.position_key = Dense(width, width, rngs=rngs) if keys else None
        self.position_query = Dense(width, width, rngs=rngs) if queries else None
        self.attention_out = Dense(width, width, **attention)
        self.attention_norm = None if config.norm_before and first else _norm(config)
        self.gate = Dense(width, inner, **mlp) if config.gated else None
        self.up = Dense(width, inner, **mlp)
        self.down = Dense(inner, width, **mlp)
        self.norm = _norm(config)
        size, groups = config.convolution, config.convolution_groups
        convolves = size > 0 and first
        self.convolution = TokenConvolution(size, width, groups, rngs=rngs) if convolves else None
        self.convolution_norm = _norm(config) if convolves else None
        self.config = config

    def __call__(
        self,
        x: Array,
        ctx: Context,
        attend: Callable[..., Array],
        rotation: Rotation | None = None,
        relative: Relative | None = None,
        real: Array | None = None,
    ) -> Array:
        """Returns x (B, T, D) after the block.

        Args:
            x: (B, T, D).
            ctx: context passed to every linear layer.
            attend: attention of queries, keys and values (`AttentionPlan.attend`).
            rotation: the rotation at the tokens' positions; None for no such positions.
            relative: the vectors of distances; None for none.
            real: (B, T) bool, true where a token is not padding; None for everywhere.
        """
        config, inputs = self.config, x
        x = self._added(
            self.attention_norm, x, lambda x: self._attention(x, ctx, attend, rotation, relative)
        )
        x = self._added(self.norm, x, lambda x: self._feed_forward(x, ctx))
        if self.convolution is None or self.convolution_norm is None:
            return x
        inputs = inputs if real is None else inputs * real[..., None].astype(inputs.dtype)
        out = drop(self.convolution(inputs), "convolution", config.dropout, ctx)
        return self.convolution_norm(x + ACTIVATIONS[config.convolution_activation](out))

    def _added(self, norm: LayerNorm | None, x: Array, part: Callable[[Array], Array]) -> Array:
        """Adds a part's output to its input, either of which is normalized."""
        if self.config.norm_before:
            return x + part(x if norm is None else norm(x))
        assert norm is not None
        return norm(x + part(x))

    def _attention(
        self,
        x: Array,
        ctx: Context,
        attend: Callable[..., Array],
        rotation: Rotation | None,
        relative: Relative | None,
    ) -> Array:
        projections = (self.query, self.key, self.value)
        query, key, value = (self._heads(part(x, ctx)) for part in projections)
        if rotation is not None:
            query, key = rotation.queries(query), rotation.keys(key)
        options: dict[str, Any] = {}
        if relative is not None:
            options["bias"] = self._position_scores(query, key, relative, ctx)
        rates = self.config.dropout
        attended = attend(query, key, value, dropped=dropper("attention", rates, ctx), **options)
        out = self.attention_out(attended.reshape(x.shape), ctx)
        return drop(out, "attention_out", rates, ctx)

    def _feed_forward(self, x: Array, ctx: Context) -> Array:
        activation, rates = ACTIVATIONS[self.config.activation], self.config.dropout
        if self.gate is None:
            inner = activation(self.up(x, ctx))
        else:
            inner = activation(self.gate(x, ctx)) * self.up(x, ctx)
        return drop(self.down(drop(inner, "inner", rates, ctx), ctx), "down", rates, ctx)

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.config.num_heads, -1)

    def _position_scores(self, query: Array, key: Array, relative: Relative, ctx: Context) -> Array:
        """Returns the scores (B, N, T, T) of content against positions, scaled."""
        config = self.config
        setting, scale = config.disentangled, config.attention_scale
        assert setting is not None and scale is not None
        # Positions are no tokens of a text: balance losses leave them out. They have a task only if
        # their rows do, and dropout masks of their own.
        apart = ctx.unmasked().fold(name_number("positions"))
        rows = 1 if ctx.task_ids is None else len(query)
        vectors = jnp.broadcast_to(relative.vectors, (rows, *relative.vectors.shape[1:]))
        vectors = drop(vectors, "positions", config.dropout, ctx)
        scores = []

        def compare(content: Array, layer: Dense, rows: Array) -> Array:
            # (B, N, T, H) by (1, N, H, R): the product of each token with every distance ...
            against = self._heads(layer(vectors, apart)).transpose(0, 2, 3, 1)
            content = content.swapaxes(1, 2)
            products = jnp.matmul(content, against, preferred_element_type=jnp.float32)
            # ... of which a pair takes its own.
            return jnp.take_along_axis(products, rows[None, None], axis=-1)

        if setting.content_to_position:
            layer = self.key if self.position_key is None else self.position_key
            scores.append(compare(query, layer, relative.rows))
        if setting.position_to_content:
            layer = self.query if self.position_query is None else self.position_query
            scores.append(compare(key, layer, relative.rows.T).swapaxes(-1, -2))
        return sum(scores[1:], scores[0]) * scale


def _norm(config: EncoderConfig) -> LayerNorm:
    return LayerNorm(config.hidden_size, config.layer_norm_eps, use_bias=config.norm_bias)


class Embeddings(nnx.Module):
    """Normalized sum of word, position and token-type vectors, as far as a family has them.

    Families without token types ignore `token_type_ids`.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        width = config.table_width
        self.words = TokenTable(config.vocab_size, width, rngs=rngs)
        if config.position_table:
            self.positions = Embedding(config.max_position_embeddings, width, rngs=rngs)
        if config.type_vocab_size:
            self.types = Embedding(config.type_vocab_size, width, rngs=rngs)
        self.norm = LayerNorm(width, config.layer_norm_eps, use_bias=config.norm_bias)
        self.projection = Dense(width, config.hidden_size, rngs=rngs) if config.projected else None
        self.config = config

    def position_ids(self, input_ids: Array) -> Array:
        """Returns positions (B, T): 0, 1, ..., or in RoBERTa pad + 1, ... over the real tokens."""
        if not FAMILIES[self.config.family].positions_after_pad:
            return jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        real = (input_ids != self.config.pad_token_id).astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + self.config.pad_token_id

    def __call__(
        self, input_ids: Array, token_type_ids: Array | None, ctx: Context = EVAL
    ) -> Array:
        """Embeds integers (B, T) as (B, T, D).

        Raises:
            UserError: more tokens than there are positions.
        """
        tokens, most = input_ids.shape[1], self.config.max_tokens
        if most is not None and tokens > most:
            raise UserError(
                f"{tokens} tokens are more than the model's {most} positions: "
                f"truncate the texts to {most} tokens"
            )
        x = self.words(input_ids, ctx)
        if self.config.position_table:
            x = x + self.positions(self.position_ids(input_ids))
        if self.config.type_vocab_size:
            x = x + self.types(
                jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            )
        x = drop(self.norm(x), "embeddings", self.config.dropout, ctx)
        return x if self.projection is None else self.projection(x, ctx)


class Encoder(Model):
    """Text encoder with a head for classes of a text, or for classes of every token.

    >>> model = Encoder(tiny_config(), rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 5), jnp.int32), jnp.ones((2, 5), jnp.int32)).shape
    (2, 2)
    """

    config: EncoderConfig

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        width, distances = config.hidden_size, config.disentangled
        shape = (config.relative_buckets, config.num_heads)
        if distances is not None:
            shape = (2 * distances.span, width)
        self.relative = Embedding(*shape, rngs=rngs) if shape[0] else None
        self.relative_norm = _norm(config) if distances is not None and distances.normed else None
        length, differs = len(set(config.calls)), bool(config.norm_before or config.convolution)
        self.layers = Stack(
            lambda r, first: EncoderBlock(config, first=first, rngs=r),
            length,
            rngs=rngs,
            kinds=[differs and layer == 0 for layer in range(length)],
            calls=config.calls,
        )
        self.final_norm = _norm(config) if config.norm_before else None
        self.config = config
        deep = len(self.head_modules) > 1
        self.head_dense = (
            Dense(width, width, use_bias=config.head_bias, rngs=rngs) if deep else None
        )
        self.head_norm = _norm(config) if config.head_norm and deep else None
        self.head_out = Dense(config.hidden_size, config.num_labels, rngs=rngs)

    @property
    def head_modules(self) -> tuple[str, ...]:
        return FAMILIES[self.config.family].heads[self.config.head]

    def hf_names(self) -> dict[str, str]:
        """Maps our path to the torch name of the module (see `goat_jax.nn.named_modules`)."""
        family = FAMILIES[self.config.family]
        embeddings = {
            f"embeddings.{ours}": f"{family.prefix}.embeddings.{theirs}"
            for ours, theirs in family.embeddings.items()
        }
        block = {
            f"layers.{ours}": f"{family.prefix}.{family.layer}.{{}}.{theirs}"
            for ours, theirs in family.block.items()
        }
        others = {ours: f"{family.prefix}.{theirs}" for ours, theirs in family.others.items()}
        *inner, out = self.head_modules
        head = dict(zip(("head_dense", "head_norm"), inner, strict=False)) | {"head_out": out}
        return embeddings | others | block | head

    def attention_need(self, tokens: int, dtype: str) -> Need:
        config = self.config
        return Need(
            tokens,
            tokens,
            config.head_size,
            dtype,
            causal=False,
            windows=tuple(dict.fromkeys(config.windows)) or (None,),
            bias=self.relative is not None,
            dropout="attention" in dict(config.dropout),
            heads=config.num_heads,
            groups=config.num_heads,
        )

    def encode(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array | None = None,
        ctx: Context = EVAL,
    ) -> Array:
        """Returns the last hidden states (B, T, D), in the dtype of the embedding tables."""
        config, tokens, real = self.config, input_ids.shape[1], attention_mask != 0
        windows, ropes = PerLayer.of(config.windows or (None,)), PerLayer.of(config.ropes)
        bias, relative = self._relative(tokens)
        ways = [
            partial(
                self.attention.attend(Visible(real=real, window=window), tokens, tokens),
                scale=config.attention_scale,
                **({} if bias is None else {"bias": bias}),
            )
            for window in windows.values
        ]
        places = jnp.arange(tokens)[None]
        turns = [rope.rotation(places, config.head_size) for rope in ropes.values]
        rotations = stacked(turns) if turns else None

        def call(block: EncoderBlock, x: Array, ctx: Context, each: PyTree) -> tuple[Array, None]:
            attend, rotation = way_of(ways, each["window"]), tree_of(rotations, each["rope"])
            return block(x, ctx, attend, rotation, relative, real), None

        each = {"window": windows.numbers, "rope": ropes.numbers}
        x, _ = self.layers.scan(call, self.embeddings(input_ids, token_type_ids, ctx), ctx, each)
        return x if self.final_norm is None else self.final_norm(x)

    def _relative(self, tokens: int) -> tuple[Array | None, Relative | None]:
        """Returns the bias (1, N, T, T) of the scores by distance, and the vectors of distances."""
        setting = self.config.disentangled
        if self.relative is None:
            return None, None
        if setting is None:
            by_bucket = self.relative(jnp.arange(BUCKETS)).astype(jnp.float32)
            return by_bucket[bias_buckets(tokens)].transpose(2, 0, 1)[None], None
        vectors = self.relative(jnp.arange(2 * setting.span))
        vectors = vectors if self.relative_norm is None else self.relative_norm(vectors)
        return None, Relative(vectors[None], setting.rows(tokens))

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array,
        token_type_ids: Array | None = None,
        ctx: Context = EVAL,
    ) -> Array:
        """Returns logits (B, num_labels), float32.

        Args:
            input_ids: (B, T) integers.
            attention_mask: (B, T) integers, non-zero where a token is real.
            token_type_ids: (B, T) integers; None means all zero.
            ctx: dropout key and the mask that the balance loss uses.

        Raises:
            UserError: more tokens than there are positions.
        """
        hidden = self.encode(input_ids, attention_mask, token_type_ids, ctx)
        return self.classify(hidden, attention_mask, ctx)

    def classify(self, hidden: Array, attention_mask: Array, ctx: Context = EVAL) -> Array:
        """Returns logits, float32, of hidden states (B, T, D) from `encode`."""
        rates = self.config.dropout
        if self.config.head == "sequence":
            hidden, ctx = POOLING[self.config.pooling](hidden, attention_mask), ctx.unmasked()
        # float32: the head costs almost nothing, and bfloat16 has only three digits for logits.
        x = hidden.astype(jnp.float32)
        if self.head_dense is not None:
            activation = ACTIVATIONS[self.config.head_activation]
            x = activation(self.head_dense(drop(x, "head_dense", rates, ctx), ctx))
            x = x if self.head_norm is None else self.head_norm(x)
        return self.head_out(drop(x, "head_out", rates, ctx), ctx)
