"""Sizes and settings of an encoder-decoder, read from a config.json or given directly."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from goat_jax.errors import UserError
from goat_jax.models.seq2seq.families import FAMILIES, HEADS, is_scaled
from goat_jax.models.vision.config import read_fields
from goat_jax.nn.modules import ACTIVATIONS
from goat_jax.nn.pre_norm_block import check_choice, check_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """Sizes of an encoder-decoder; `from_hf` reads them from a config.json.

    Attributes:
        family: a key of `FAMILIES`.
        vocab_size: number of tokens in the vocabulary.
        hidden_size: width D of the residual streams.
        head_size: size of an attention head.
        intermediate_size: width of the feed-forward's hidden layer.
        encoder_layers: number of the encoder's blocks.
        num_layers: number of the decoder's blocks.
        num_heads: attention heads per block.
        buckets: number of biases by distance, in each direction together.
        reach: the distance from which all share the last bucket.
        norm_eps: constant added to every mean square in normalization.
        activation: the feed-forward's activation, a key of `ACTIVATIONS`.
        gated: whether the activation is multiplied by a second linear map.
        tie_embeddings: whether the output's kernel is the transposed embedding table.
        scaled_logits: whether logits are divided by the root of the width.
        eos_ids: tokens that end an answer; a prompt ends with the first of them.
        start_id: the token that an answer begins with.
        head: the kind of output, one of `HEADS`.
        context: the largest number of tokens, which relative positions do not limit.
        unbounded: whether texts may be longer than that.
        rotation_changes_after: None, as there are no rotary positions.
        logit_cap: the bound of the logits; there is none.

    Raises:
        UserError: a size below 1, an unknown activation.
    """

    family: str
    vocab_size: int
    hidden_size: int
    head_size: int
    intermediate_size: int
    encoder_layers: int
    num_layers: int
    num_heads: int
    buckets: int
    reach: int
    norm_eps: float
    activation: str = "relu"
    gated: bool = False
    tie_embeddings: bool = True
    scaled_logits: bool = True
    eos_ids: tuple[int, ...] = (1,)
    start_id: int = 0
    head: str = "conditional"
    context: int = 1 << 30
    unbounded: bool = True
    rotation_changes_after: int | None = None
    logit_cap: None = None

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "hidden_size", "head_size", "intermediate_size")
        check_sizes(self, "encoder_layers", "num_layers", "num_heads", "buckets", "reach")
        if self.buckets < 4 or self.reach <= self.buckets // 2:
            raise UserError(
                f"{self.buckets} buckets for distances up to {self.reach}: give at least 4 "
                "buckets and a distance above their half"
            )
        check_choice("activation", self.activation, ACTIVATIONS)

    @property
    def logit_scale(self) -> float:
        """Factor of the logits."""
        return self.hidden_size**-0.5 if self.scaled_logits else 1.0

    @property
    def before_answer(self) -> tuple[int, int]:
        """Tokens between a prompt and its answer: the prompt's end, and the answer's start."""
        return self.eos_ids[0], self.start_id

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], **overrides: Any) -> Seq2SeqConfig:
        """Reads a config.json given as a dict; overrides win.

        Raises:
            UserError: a size that is not valid, an unknown override or head, or a feed-forward that
                is not computed here.

        >>> config = Seq2SeqConfig.from_hf({"model_type": "t5", "feed_forward_proj": "gated-gelu"})
        >>> config.activation, config.gated, config.num_layers
        ('gelu_new', True, 6)
        """
        family = FAMILIES[hf["model_type"]]
        family.check_head(overrides.get("head", cls.head), HEADS)
        layers = hf.get("num_decoder_layers") or hf.get("num_layers")
        flat = {**hf, "num_decoder_layers": layers, "scale_decoder_outputs": is_scaled(hf)}
        fixed = {
            "family": hf["model_type"],
            "num_layers": family.defaults["encoder_layers"],
            "eos_ids": _ids(hf.get("eos_token_id", 1)),
            "start_id": _first(hf.get("decoder_start_token_id"), hf.get("pad_token_id"), 0),
            **_feed_forward(hf.get("feed_forward_proj") or "relu"),
        }
        return cls(**read_fields(cls, flat, family.keys, {**family.defaults, **fixed}, overrides))


def _feed_forward(name: str) -> dict[str, Any]:
    """Reads the activation and the gate from a name such as "gated-gelu"."""
    *gate, word = name.split("-")
    if gate not in ([], ["gated"]) or word not in ACTIVATIONS:
        raise UserError(
            f"config.json: feed_forward_proj is {name!r}: give an activation, or one after "
            f"'gated-', of {', '.join(ACTIVATIONS)}"
        )
    # The name of the first gated T5 means the approximation by tanh.
    return {"activation": "gelu_new" if name == "gated-gelu" else word, "gated": bool(gate)}


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (1 if value is None else value,)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


tiny_seq2seq_config = functools.partial(
    Seq2SeqConfig,
    family="t5",
    vocab_size=64,
    hidden_size=16,
    head_size=6,
    intermediate_size=24,
    encoder_layers=2,
    num_layers=3,
    num_heads=2,
    buckets=8,
    reach=12,
    norm_eps=1e-6,
)
"""Builds a config small enough for tests and examples."""
