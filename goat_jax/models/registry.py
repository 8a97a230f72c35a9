"""Which model a config.json asks for: the table of everything that can be loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from goat_jax.errors import UserError
from goat_jax.models.config_keys import check_keys
from goat_jax.models.decoder import config as decoder_config
from goat_jax.models.decoder import model as decoder
from goat_jax.models.encoder import model as encoder
from goat_jax.models.encoder.families import FAMILIES
from goat_jax.models.vision import families as vision_families
from goat_jax.models.vision import heads as vision_heads
from goat_jax.models.vision import model as vision

OTHER_TASKS = ("ForTokenClassification", "ForMultipleChoice")
"""Endings of classes of transformers whose heads have the names of a sequence's classifier."""


@dataclasses.dataclass(frozen=True)
class Tie:
    """Two tensors of a model that are one where config.json says so.

    Attributes:
        name: the tensor that files may leave out.
        twin: the tensor it equals.
        key: the key of config.json that ties them.
        field: that key's field in our config.
    """

    name: str
    twin: str
    key: str
    field: str

    def applies(self, hf: Mapping[str, Any]) -> bool:
        """Whether a config.json ties the two; transformers does not without the key."""
        return bool(hf.get(self.key, False))

    def equal(self, tensors: Mapping[str, Any]) -> bool:
        """Whether two tensors that are both there hold the same numbers.

        >>> tie = Tie("a", "b", "tied", "tied")
        >>> tie.equal({"a": np.ones(2), "b": np.zeros(2)}), tie.equal({"a": np.ones(2)})
        (False, True)
        """
        both = self.name in tensors and self.twin in tensors
        return not both or np.array_equal(tensors[self.name], tensors[self.twin])


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How to build and fill a family of models.

    Attributes:
        kind: what it takes and gives: "text encoder", "language model", ...
        config: config.json as a dict, and overrides -> our config.
        build: our config -> model with fresh parameters.
        prefix: what a checkpoint without the head leaves off its names ("bert.").
        ignored: names in a checkpoint that the model does not need, a regular expression.
        head: names of modules a checkpoint may lack: they start fresh. The last one has an
            output per label. Empty for models that have nothing but what was pretrained.
        renamed: part of a stored name -> today's, in the order in which they apply.
        drops: whether its config takes rates of dropout.
        tie: tensors that config.json may tie, None if the family has none.
        keys: field of our config -> the key of config.json that says the same.
    """

    kind: str
    config: Callable[..., Any]
    build: Callable[..., nnx.Module]
    prefix: str
    ignored: str
    head: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...] = ()
    drops: bool = False
    tie: Tie | None = None
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def todays_name(self, name: str) -> str:
        """A parameter's name in a file as its module is called today."""
        for stored, today in self.renamed:
            name = name.replace(stored, today)
        return name

    def stored_name(self, name: str) -> str:
        """A parameter's name as files have it, which every version of transformers reads.

        >>> ARCHITECTURES["vit"].stored_name("vit.layers.0.attention.o_proj.weight")
        'vit.encoder.layer.0.attention.output.dense.weight'
        """
        for stored, today in reversed(self.renamed):
            name = name.replace(today, stored)
        return name

    def has_other_head(self, hf: Mapping[str, Any]) -> bool:
        """Whether the class in config.json has a head by our names that does another task.

        >>> ARCHITECTURES["bert"].has_other_head({"architectures": ["BertForMultipleChoice"]})
        True
        """
        classes = hf.get("architectures") or ()
        names = classes if isinstance(classes, list | tuple) else [classes]
        return bool(self.head) and any(str(name).endswith(OTHER_TASKS) for name in names)

    def config_of(self, hf: Mapping[str, Any], **overrides: Any) -> Any:
        """Our config of a config.json; overrides win.

        Raises:
            UserError: dropout where there is none, or what `config` finds wrong.
        """
        if overrides.get("dropout") and not self.drops:
            raise UserError(
                f"model.dropout {overrides['dropout']!r}: a model of the kind {self.kind} has no "
                "dropout of its own here: leave it 0"
            )
        check_keys(hf["model_type"], hf)
        return self.config(hf, **overrides)


def _encoder(name: str, ignored: str) -> Architecture:
    family = FAMILIES[name]
    return Architecture(
        kind="text encoder",
        config=encoder.EncoderConfig.from_hf,
        build=encoder.Encoder,
        prefix=family.prefix + ".",
        ignored=ignored,
        head=family.head,
        drops=True,
        keys=family.keys,
    )


_DECODER = Architecture(
    kind="language model",
    config=decoder.DecoderConfig.from_hf,
    build=decoder.Decoder,
    prefix="model.",
    ignored=r".*rotary_emb\.inv_freq|lm_head\.weight",  # a tied output may be stored all the same
    head=(),
    tie=Tie("lm_head.weight", "model.embed_tokens.weight", "tie_word_embeddings", "tie_embeddings"),
    keys=decoder_config.KEYS,
)


def _vision(name: str, ignored: str) -> Architecture:
    family = vision_families.FAMILIES[name]
    return Architecture(
        kind="image encoder",
        config=vision.VisionConfig.from_hf,
        build=vision.VisionModel,
        prefix=family.prefix + ".",
        ignored=ignored,
        head=(vision_heads.CLASSIFIER,),
        renamed=family.renamed,
    )


_CLIP_REST = r"text_\w+\..*|visual_projection\..*|logit_scale|.*position_ids"

ARCHITECTURES: dict[str, Architecture] = {
    "bert": _encoder("bert", r"cls\..*|.*position_ids"),
    "roberta": _encoder("roberta", r"lm_head\..*|.*pooler\.dense\..*|.*position_ids"),
    "distilbert": _encoder("distilbert", r"vocab_\w+\..*|.*position_ids"),
    **dict.fromkeys(decoder_config.FAMILIES, _DECODER),
    "clip": _vision("clip", _CLIP_REST),
    "clip_vision_model": _vision("clip_vision_model", _CLIP_REST),
    "vit": _vision("vit", r"vit\.pooler\..*|decoder\..*|.*mask_token"),
    "dinov2": _vision("dinov2", r".*mask_token"),
}


def architecture_of(hf: Mapping[str, Any], where: Path) -> Architecture:
    """The architecture a config.json asks for.

    Args:
        hf: the config as a dict.  where: its folder, for the message.

    Raises:
        UserError: no model_type, or one that is not in `ARCHITECTURES`.

    >>> architecture_of({"model_type": "roberta"}, Path(".")).prefix
    'roberta.'
    """
    kind, known = hf.get("model_type"), ", ".join(ARCHITECTURES)
    if kind is None:
        raise UserError(f"{where / 'config.json'} has no model_type: add one of {known}")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        # No "did you mean": a name that is close (albert, qwen3) is another network.
        raise UserError(
            f"{where}: model_type {kind!r} is not supported: use a checkpoint of one of {known}"
        )
    return ARCHITECTURES[kind]
