"""Decoders with a head of classes in place of the vocabulary's: for a text, or for each token."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.models.decoder.config import DecoderConfig
from goat_jax.models.decoder.model import Decoder, DecoderTrunk
from goat_jax.nn.dense import Dense
from goat_jax.typing import Array

SCORE = "score"
"""torch's name of the head."""


class _Classifier(DecoderTrunk):
    """Decoder with a linear layer that has an output per label."""

    has_bias: ClassVar[bool]

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        sizes = config.hidden_size, config.num_labels
        self.score = Dense(*sizes, use_bias=self.has_bias, rngs=rngs)

    @property
    def head_modules(self) -> tuple[str, ...]:
        return (SCORE,)

    def hf_names(self) -> dict[str, str]:
        return super().hf_names() | {"score": SCORE}


class TextClassifier(_Classifier):
    """Decoder that classifies a text by its last token's hidden state; a reward model, too.

    >>> from goat_jax.models.decoder.model import tiny_decoder_config
    >>> config = tiny_decoder_config(head="sequence", num_labels=3)
    >>> TextClassifier(config, rngs=nnx.Rngs(0))(jnp.ones((2, 5), jnp.int32)).shape
    (2, 3)
    """

    has_bias = False

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        ctx: Context = EVAL,
    ) -> Array:
        """Returns logits (B, num_labels), float32.

        Args:
            input_ids: (B, T) integers.
            attention_mask: (B, T), non-zero where a token is real.
            token_type_ids: ignored; decoders have none.
            ctx: dropout key and the mask that the balance loss uses.
        """
        hidden = self.hidden(input_ids, attention_mask, ctx=ctx)
        last = last_token(input_ids, attention_mask, self.config.pad_id)
        # float32: the head costs almost nothing, and bfloat16 has only three digits for logits.
        pooled = hidden[jnp.arange(len(last)), last].astype(jnp.float32)
        return self.score(pooled, ctx.unmasked())


class TokenClassifier(_Classifier):
    """Decoder that classifies every token.

    >>> from goat_jax.models.decoder.model import tiny_decoder_config
    >>> config = tiny_decoder_config(head="tokens", num_labels=3)
    >>> TokenClassifier(config, rngs=nnx.Rngs(0))(jnp.ones((2, 5), jnp.int32)).shape
    (2, 5, 3)
    """

    has_bias = True

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        ctx: Context = EVAL,
    ) -> Array:
        """Returns logits (B, T, num_labels), float32; arguments as for `TextClassifier`."""
        hidden = self.hidden(input_ids, attention_mask, ctx=ctx)
        return self.score(hidden.astype(jnp.float32), ctx)


def last_token(input_ids: Array, attention_mask: Array | None, pad_id: int | None) -> Array:
    """Returns the position (B,) of each row's last real token that is not the padding token.

    A padding token at the end of a text counts as padding, as in transformers, which finds the
    token by its id alone; without a padding token the mask alone decides.

    >>> last_token(jnp.array([[5, 6, 0, 0], [0, 0, 7, 8], [5, 0, 6, 0]]), None, 0).tolist()
    [1, 3, 2]
    """
    real = jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask != 0
    if pad_id is not None:
        real &= input_ids != pad_id
    places = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
    return jnp.where(real, places, 0).argmax(-1)


HEADS = {"language": Decoder, "sequence": TextClassifier, "tokens": TokenClassifier}
"""Head, as `DecoderConfig.head` names it -> the model."""


def build_decoder(config: DecoderConfig, *, rngs: nnx.Rngs) -> DecoderTrunk:
    """Builds the model with the head that the config names."""
    return HEADS[config.head](config, rngs=rngs)
