"""CLIP's text tower, and the zero-shot classifier that it computes from class names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.adapters.context import EVAL, Context
from goat_jax.core.attention import Visible
from goat_jax.data.pipeline.tokenize import load_tokenizer
from goat_jax.errors import UserError
from goat_jax.models.family import Family
from goat_jax.models.load import load_model
from goat_jax.models.registry import Architecture
from goat_jax.models.vision.config import read_fields
from goat_jax.models.vision.families import BLOCK_KEYS, CLIP_BLOCK, CLIP_CONFIG, clip_section
from goat_jax.models.vision.heads import unit
from goat_jax.nn.attention_need import Need
from goat_jax.nn.model import Model
from goat_jax.nn.modules import Embedding, LayerNorm, Projection
from goat_jax.nn.pre_norm_block import BlockConfig, PreNormBlock, check_sizes
from goat_jax.nn.stack import Stack
from goat_jax.typing import Array

_KEYS = {
    **BLOCK_KEYS,
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "eos_token_id": "eos_token_id",
    "projection_dim": "projection_dim",
}
# A CLIP config.json may hold only the settings that differ from these, sizes included.
_DEFAULTS = {
    "hidden_size": 512,
    "num_layers": 12,
    "num_heads": 8,
    "intermediate_size": 2048,
    "activation": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
    "projection_dim": 512,
}
_OLD_EOS = 2
"""Wrong eos_token_id of old configs; with it, the largest id of the text is used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(BlockConfig):
    """Sizes of a text tower; `from_hf` reads them from a CLIP checkpoint's config.json.

    Attributes:
        vocab_size: number of tokens in the vocabulary.
        max_position_embeddings: number of rows of the position table.
        eos_token_id: the token whose hidden state represents the text. With 2, which old configs
            have by mistake, it is the largest id of the text, as in transformers.
        projection_dim: size of the space that images and texts share.

    Raises:
        UserError: a size below 1, heads that do not divide the width, an unknown activation.
    """

    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int
    projection_dim: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "vocab_size", "max_position_embeddings", "projection_dim")
        if type(self.eos_token_id) is not int:
            raise UserError(f"eos_token_id is {self.eos_token_id!r}: it must be one whole number")

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], **overrides: Any) -> ClipTextConfig:
        """Reads a config.json given as a dict; overrides win.

        >>> ClipTextConfig.from_hf({"text_config": {"hidden_size": 64}}).eos_token_id
        49407
        """
        return cls(**read_fields(cls, clip_section(hf, "text"), _KEYS, _DEFAULTS, overrides))


class ClipText(Model):
    """Causal transformer whose state at the end of the text is projected to the shared space.

    >>> config = ClipTextConfig.from_hf({"projection_dim": 6, "text_config": {
    ...     "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    ...     "intermediate_size": 16, "eos_token_id": 8}})
    >>> ids = jnp.array([[1, 5, 8]])
    >>> ClipText(config, rngs=nnx.Rngs(0))(ids, jnp.ones_like(ids)).shape
    (1, 6)
    """

    config: ClipTextConfig

    def __init__(self, config: ClipTextConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.words = Embedding(config.vocab_size, width, rngs=rngs)
        self.positions = Embedding(config.max_position_embeddings, width, rngs=rngs)
        self.layers = Stack(lambda r: PreNormBlock(config, rngs=r), config.num_layers, rngs=rngs)
        self.final_norm = LayerNorm(width, config.layer_norm_eps)
        self.projection = Projection(width, config.projection_dim, rngs=rngs)
        self.config = config

    def hf_names(self) -> dict[str, str]:
        """Maps our path to the torch name of the module (see `goat_jax.nn.named_modules`)."""
        block = {
            f"layers.{ours}": f"text_model.encoder.layers.{{}}.{theirs}"
            for ours, theirs in CLIP_BLOCK.items()
        }
        return {
            "words": "text_model.embeddings.token_embedding",
            "positions": "text_model.embeddings.position_embedding",
            **block,
            "final_norm": "text_model.final_layer_norm",
            "projection": "text_projection",
        }

    def attention_need(self, tokens: int, dtype: str) -> Need:
        return self.config.attention_need(tokens, dtype, causal=True)

    def features(self, input_ids: Array, attention_mask: Array, ctx: Context = EVAL) -> Array:
        """Returns the last hidden states (B, T, D), normalized.

        Args:
            input_ids: (B, T) integers.
            attention_mask: (B, T) integers, 0 where padded.
            ctx: dropout key and the mask that the balance loss uses.

        Raises:
            UserError: more tokens than there are positions.
        """
        tokens, most = input_ids.shape[1], self.config.max_position_embeddings
        if tokens > most:
            raise UserError(
                f"{tokens} tokens are more than the model's {most} positions: "
                f"truncate the texts to {most} tokens"
            )
        positions = self.positions(jnp.arange(tokens))
        x = self.words(input_ids)
        x = x + jnp.broadcast_to(positions, x.shape)
        visible = Visible(causal=True, real=attention_mask != 0)
        attend = self.attention.attend(visible, tokens, tokens)
        return self.final_norm(self.layers(x, ctx, attend))

    def __call__(self, input_ids: Array, attention_mask: Array, ctx: Context = EVAL) -> Array:
        """Returns text features (B, P), float32, not normalized; arguments as for `features`."""
        hidden = self.features(input_ids, attention_mask, ctx).astype(jnp.float32)
        eos = self.config.eos_token_id
        end_scores = input_ids if eos == _OLD_EOS else (input_ids == eos).astype(jnp.int32)
        # argmax returns the first match; padding may consist of end tokens, too.
        return self.projection(hidden[jnp.arange(len(hidden)), end_scores.argmax(-1)])


TEXT = Architecture(
    kind="text tower",
    config=ClipTextConfig.from_hf,
    build=ClipText,
    family=Family(
        class_name="CLIPText",
        config_keys=CLIP_CONFIG,
        ignored=r"vision_model\..*|visual_projection\..*|logit_scale|classifier\..*|.*position_ids",
    ),
    prefix="text_model.",
    head=(),
)
"""Architecture of the text tower of a complete CLIP checkpoint, or of one that has only it."""


def class_kernel(
    folder: Path, class_names: Sequence[str], template: str = "a photo of a {}"
) -> np.ndarray:
    """Computes the zero-shot head's kernel (P, classes), float32, from the classes' names.

    The columns are CLIP's text features, normalized to length 1.

    Args:
        folder: a CLIP checkpoint with its tokenizer.
        class_names: the classes' names, in the order of the labels.
        template: the sentence with ``{}`` in place of the name.

    Raises:
        UserError: no names, a template without ``{}``, no tokenizer, or a checkpoint without text
            tower.
    """
    if not class_names:
        raise UserError("class_names is empty: give the name of every class")
    if "{}" not in template:
        raise UserError(f"template {template!r} has no {{}}: put it where the class name goes")
    folder = Path(folder)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, key=jax.random.key(0), architecture=TEXT).model
    most = min(model.config.max_position_embeddings, tokenizer.model_max_length)
    batch = tokenizer(
        [template.replace("{}", name) for name in class_names],
        truncation=True,
        max_length=most,
        padding="longest",
        return_attention_mask=True,
        return_tensors="np",
    )
    graph, state = nnx.split(model)
    features = jax.jit(lambda state, *inputs: unit(nnx.merge(graph, state)(*inputs)))
    inputs = (batch[name].astype(np.int32) for name in ("input_ids", "attention_mask"))
    return np.asarray(features(state, *inputs)).T
