"""Text towers of CLIP and SigLIP, and the zero-shot classifier made of class names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
from goat_jax.models.vision.families import (
    BLOCK_KEYS,
    CLIP_BLOCK,
    CLIP_CONFIG,
    SIGLIP_CONFIG,
    clip_section,
    section,
)
from goat_jax.models.vision.heads import unit
from goat_jax.nn.attention_need import Need
from goat_jax.nn.model import Model
from goat_jax.nn.modules import Embedding, LayerNorm, Projection
from goat_jax.nn.pre_norm_block import BlockConfig, PreNormBlock, check_sizes
from goat_jax.nn.stack import Stack
from goat_jax.pretrained.resolve import open_checkpoint
from goat_jax.typing import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFamily(Family):
    """Facts about the text towers of one family.

    Attributes:
        section: (config.json, "text") -> the tower's section.
        keys: field of `TextConfig` -> its key in the section.
        defaults: fields that the section may leave out; the values are those of transformers.
        projection: torch's name of the map to the shared space.
    """

    section: Callable[[Mapping[str, Any], str], dict[str, Any]]
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    projection: str


_KEYS = {
    **BLOCK_KEYS,
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
}
# A config.json may hold only the settings that differ from these, sizes included.
_CLIP = {
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
_SIGLIP = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "intermediate_size": 3072,
    "activation": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vocab_size": 32000,
    "max_position_embeddings": 64,
    "causal": False,
    "eos_token_id": None,
    "projection_bias": True,
}


def _siglip_section(hf: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the section with the size of the shared space, which is the tower's by default."""
    own = section(hf, name)
    width = own.get("hidden_size") or _SIGLIP["hidden_size"]
    return own | {"projection_size": own.get("projection_size") or width}


FAMILIES = {
    "clip": TextFamily(
        class_name="CLIPText",
        config_keys=CLIP_CONFIG,
        ignored=r"vision_model\..*|visual_projection\..*|logit_scale|classifier\..*|.*position_ids",
        section=clip_section,
        keys=_KEYS | {"eos_token_id": "eos_token_id", "projection_dim": "projection_dim"},
        defaults=_CLIP,
        projection="text_projection",
    ),
    "siglip": TextFamily(
        class_name="SiglipText",
        config_keys=SIGLIP_CONFIG,
        ignored=r"vision_model\..*|logit_(scale|bias)|classifier\..*|.*position_ids",
        section=_siglip_section,
        keys=_KEYS | {"projection_dim": "projection_size"},
        defaults=_SIGLIP,
        projection="text_model.head",
    ),
}
"""model_type of a full model -> the family of its text tower."""

_OLD_EOS = 2
"""Wrong eos_token_id of old configs; with it, the largest id of the text is used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(BlockConfig):
    """Sizes of a text tower; `from_hf` reads them from a checkpoint's config.json.

    Attributes:
        family: a key of `FAMILIES`.
        vocab_size: number of tokens in the vocabulary.
        max_position_embeddings: number of rows of the position table.
        causal: whether a token sees only those before it.
        eos_token_id: the token whose hidden state represents the text; None for the last one. With
            2, which old configs have by mistake, it is the largest id of the text, as in
            transformers.
        projection_dim: size of the space that images and texts share.
        projection_bias: whether the map to that space has a bias.

    Raises:
        UserError: a size below 1, heads that do not divide the width, an unknown activation.
    """

    family: str
    vocab_size: int
    max_position_embeddings: int
    causal: bool = True
    eos_token_id: int | None
    projection_dim: int
    projection_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "vocab_size", "max_position_embeddings", "projection_dim")
        if self.eos_token_id is not None and type(self.eos_token_id) is not int:
            raise UserError(f"eos_token_id is {self.eos_token_id!r}: it must be one whole number")

    @classmethod
    def from_hf(cls, name: str, hf: Mapping[str, Any], **overrides: Any) -> TextConfig:
        """Reads the config.json of a full model, given as a dict; overrides win.

        Args:
            name: the family, a key of `FAMILIES`.
            hf: the config.json.
            overrides: fields and their values.

        >>> TextConfig.from_hf("clip", {"text_config": {"hidden_size": 64}}).eos_token_id
        49407
        """
        family = FAMILIES[name]
        defaults = {**family.defaults, "family": name}
        flat = family.section(hf, "text")
        return cls(**read_fields(cls, flat, family.keys, defaults, overrides))


class TextTower(Model):
    """Transformer whose state at the end of the text is projected to the shared space.

    >>> config = TextConfig.from_hf("clip", {"projection_dim": 6, "text_config": {
    ...     "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    ...     "intermediate_size": 16, "eos_token_id": 8}})
    >>> def embedding(ids):
    ...     return TextTower(config, rngs=nnx.Rngs(0))(ids, jnp.ones_like(ids))
    >>> jax.eval_shape(embedding, jnp.array([[1, 5, 8]])).shape
    (1, 6)
    """

    config: TextConfig

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        width, shared = config.hidden_size, config.projection_dim
        self.words = Embedding(config.vocab_size, width, rngs=rngs)
        self.positions = Embedding(config.max_position_embeddings, width, rngs=rngs)
        self.layers = Stack(lambda r: PreNormBlock(config, rngs=r), config.num_layers, rngs=rngs)
        self.final_norm = LayerNorm(width, config.layer_norm_eps)
        self.projection = Projection(width, shared, use_bias=config.projection_bias, rngs=rngs)
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
            "projection": FAMILIES[self.config.family].projection,
        }

    def attention_need(self, tokens: int, dtype: str) -> Need:
        return self.config.attention_need(tokens, dtype, causal=self.config.causal)

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
        visible = Visible(causal=self.config.causal, real=attention_mask != 0)
        attend = self.attention.attend(visible, tokens, tokens)
        return self.final_norm(self.layers(x, ctx, attend))

    def __call__(self, input_ids: Array, attention_mask: Array, ctx: Context = EVAL) -> Array:
        """Returns text features (B, P), float32, not normalized; arguments as for `features`."""
        hidden = self.features(input_ids, attention_mask, ctx).astype(jnp.float32)
        eos = self.config.eos_token_id
        if eos is None:
            return self.projection(hidden[:, -1])
        end_scores = input_ids if eos == _OLD_EOS else (input_ids == eos).astype(jnp.int32)
        # argmax returns the first match; padding may consist of end tokens, too.
        return self.projection(hidden[jnp.arange(len(hidden)), end_scores.argmax(-1)])


def _text(name: str) -> Architecture:
    return Architecture(
        kind="text tower",
        config=partial(TextConfig.from_hf, name),
        build=TextTower,
        family=FAMILIES[name],
        prefix="text_model.",
    )


TEXT = {name: _text(name) for name in FAMILIES}
"""model_type of a full model -> the architecture of its text tower."""


def load_text_tower(folder: Path) -> TextTower:
    """Loads the text tower of a checkpoint.

    Raises:
        UserError: the checkpoint has none, or not of a family that is known here.
    """
    kind = open_checkpoint(folder)[0].get("model_type")
    if kind not in TEXT:
        raise UserError(
            f"{folder}: a model of type {kind} has no text tower: use a checkpoint of "
            f"{', '.join(TEXT)} with both towers"
        )
    model = load_model(folder, key=jax.random.key(0), architecture=TEXT[kind]).model
    assert isinstance(model, TextTower)
    return model


def class_kernel(
    folder: Path, class_names: Sequence[str], template: str = "a photo of a {}"
) -> np.ndarray:
    """Computes the zero-shot head's kernel (P, classes), float32, from the classes' names.

    The columns are the text tower's features, normalized to length 1. Texts are padded to the
    tower's length: a SigLIP is trained so, and a CLIP does not look at what follows a text's end.

    Args:
        folder: a checkpoint of both towers with its tokenizer.
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
    model = load_text_tower(folder)
    batch = tokenizer(
        [template.replace("{}", name) for name in class_names],
        truncation=True,
        max_length=min(model.config.max_position_embeddings, tokenizer.model_max_length),
        padding="max_length",
        return_tensors="np",
    )
    ids = batch["input_ids"].astype(np.int32)
    # A tokenizer without a mask is of a model that looks at the padding, too.
    mask = np.asarray(batch.get("attention_mask", np.ones_like(ids)), np.int32)
    graph, state = nnx.split(model)
    features = jax.jit(lambda state, *inputs: unit(nnx.merge(graph, state)(*inputs)))
    return np.asarray(features(state, ids, mask)).T
