"""Registry of all architectures that can be loaded, by the model_type of config.json."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.errors import UserError
from goat_jax.models.config_keys import check_keys
from goat_jax.models.decoder import families as decoder_families
from goat_jax.models.decoder import model as decoder
from goat_jax.models.decoder.classifiers import SCORE, build_decoder
from goat_jax.models.decoder.families import DecoderFamily
from goat_jax.models.encoder import families as encoder_families
from goat_jax.models.encoder import model as encoder
from goat_jax.models.encoder.families import EncoderFamily
from goat_jax.models.expert_tensors import ExpertTensor
from goat_jax.models.family import Family
from goat_jax.models.fused import Fused
from goat_jax.models.seq2seq import families as seq2seq_families
from goat_jax.models.seq2seq import model as seq2seq
from goat_jax.models.seq2seq.families import Seq2SeqFamily
from goat_jax.models.vision import families as vision_families
from goat_jax.models.vision import heads as vision_heads
from goat_jax.models.vision import model as vision
from goat_jax.models.vision.families import VisionFamily
from goat_jax.nn.model import Model

SAME_NAMES = {
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "tokens",
    "ForMultipleChoice": "choices",
}
"""Suffix of transformers classes whose heads have the same names -> the head."""


@dataclasses.dataclass(frozen=True)
class Tie:
    """Two tensors of a model that config.json may declare to be one.

    Attributes:
        name: the tensor that files may leave out.
        twin: the tensor it equals.
        key: the key of config.json that ties them.
        field: that key's field in our config.
        default: whether the two are tied without that key.
    """

    name: str
    twin: str
    key: str
    field: str
    default: bool = False

    def applies(self, hf: Mapping[str, Any]) -> bool:
        """True if a config.json ties the two."""
        value = hf.get(self.key)
        return self.default if value is None else bool(value)

    def equal(self, tensors: Mapping[str, Any]) -> bool:
        """True unless both tensors are there and hold different numbers.

        >>> tie = Tie("a", "b", "tied", "tied")
        >>> tie.equal({"a": np.ones(2), "b": np.zeros(2)}), tie.equal({"a": np.ones(2)})
        (False, True)
        """
        both = self.name in tensors and self.twin in tensors
        return not both or np.array_equal(tensors[self.name], tensors[self.twin])


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Instructions to build and fill a family of models.

    Attributes:
        kind: the kind of model: "text encoder", "language model", ...
        config: function from config.json as a dict, and overrides, to our config.
        build: function from our config to a model with fresh parameters.
        family: the facts that distinguish it from others of its kind.
        prefix: the prefix that names lack in a checkpoint without the head ("bert.").
        heads: a head, as the config's field `head` names it -> the names of its modules, which a
            checkpoint may lack; they are then initialized. The last one has an output per label.
            Empty for a head without parameters beyond the pretrained ones.
        head: those of the model that is built; `for_config` sets it.
        renamed: pairs (part of a stored name, current part), in the order in which they apply.
        drops: whether the config takes dropout rates.
        tie: tensors that config.json may tie; None if the family has none.
        keys: field of our config -> the key of config.json with the same meaning.
        fused: linear layers that checkpoints store as one and the model has as several.
        expert_tensors: parameters of transformers that hold a layer of all experts of a mixture.
    """

    kind: str
    config: Callable[..., Any]
    build: Callable[..., Model]
    family: Family
    prefix: str
    heads: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    head: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    drops: bool = False
    tie: Tie | None = None
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fused: tuple[Fused, ...] = ()
    expert_tensors: tuple[ExpertTensor, ...] = ()

    def todays_name(self, name: str) -> str:
        """Translates a parameter's stored name to the current name of its module."""
        for stored, today in self.renamed:
            name = re.sub(_before(stored, today) + re.escape(stored), today, name)
        return name

    def stored_name(self, name: str) -> str:
        """Translates a parameter's name to the stored one, which all versions of transformers read.

        >>> ARCHITECTURES["vit"].stored_name("vit.layers.0.attention.o_proj.weight")
        'vit.encoder.layer.0.attention.output.dense.weight'
        """
        for stored, today in reversed(self.renamed):
            name = name.replace(today, stored)
        return name

    def for_config(self, config: Any) -> Architecture:
        """Returns the architecture of a model with this config, whose head is known."""
        return dataclasses.replace(self, head=self.heads.get(getattr(config, "head", ""), ()))

    def config_of(self, hf: Mapping[str, Any], *, untied: bool = False, **overrides: Any) -> Any:
        """Reads a config.json into our config; overrides win.

        Args:
            hf: config.json as a dict.
            untied: whether tensors that config.json ties become two, one of which changes.
            overrides: fields of our config.

        Raises:
            UserError: dropout for a model without it, or a setting that `config` rejects.
        """
        if overrides.get("dropout") and not self.drops:
            raise UserError(
                f"model.dropout {overrides['dropout']!r}: a model of the kind {self.kind} has no "
                "dropout of its own here: leave it at 0"
            )
        check_keys(self.family.config_keys, hf)
        if untied and self.tie and self.tie.applies(hf):
            overrides = {self.tie.field: False} | overrides
        return self.config(hf, **overrides)


def _before(stored: str, today: str) -> str:
    """Returns a condition on what precedes a stored name: that it is not yet today's.

    >>> re.sub(_before("layer.", "model.layer.") + "layer", "X", "layer model.layer")
    'X model.layer'
    """
    lead = today.removesuffix(stored)
    return f"(?<!{re.escape(lead)})" if lead and lead != today else ""


def _encoder(family: EncoderFamily) -> Architecture:
    return Architecture(
        kind="text encoder",
        config=encoder.EncoderConfig.from_hf,
        build=encoder.Encoder,
        family=family,
        prefix=family.prefix + ".",
        heads=family.heads,
        drops=True,
        keys=family.keys,
        fused=family.fused,
    )


def _decoder(family: DecoderFamily) -> Architecture:
    return Architecture(
        kind="language model",
        config=decoder.DecoderConfig.from_hf,
        build=build_decoder,
        family=family,
        prefix="model.",
        heads={"language": (), "sequence": (SCORE,), "tokens": (SCORE,)},
        tie=dataclasses.replace(_OUTPUT_IS_TABLE, default=family.defaults["tie_embeddings"]),
        keys=family.keys,
        fused=family.fused,
        expert_tensors=family.expert_tensors,
    )


def _seq2seq(family: Seq2SeqFamily) -> Architecture:
    return Architecture(
        kind="language model",
        config=seq2seq.Seq2SeqConfig.from_hf,
        build=seq2seq.Seq2Seq,
        family=family,
        prefix="",
        heads=dict.fromkeys(seq2seq_families.HEADS, ()),
        tie=_SEQ2SEQ_TIE,
        keys=family.keys,
    )


def _vision(family: VisionFamily) -> Architecture:
    return Architecture(
        kind="image encoder",
        config=vision.VisionConfig.from_hf,
        build=vision.VisionModel,
        family=family,
        prefix=family.prefix and family.prefix + ".",
        heads=dict.fromkeys(family.heads, (vision_heads.CLASSIFIER,)),
        renamed=family.renamed,
    )


_OUTPUT_IS_TABLE = Tie(
    "lm_head.weight", "model.embed_tokens.weight", "tie_word_embeddings", "tie_embeddings"
)
# transformers ties the two whatever config.json says, unless a file has two different tensors.
_SEQ2SEQ_TIE = Tie("lm_head.weight", "shared.weight", "tied_output", "tie_embeddings", default=True)

ARCHITECTURES: dict[str, Architecture] = {
    **{name: _encoder(family) for name, family in encoder_families.FAMILIES.items()},
    **{name: _decoder(family) for name, family in decoder_families.FAMILIES.items()},
    **{name: _seq2seq(family) for name, family in seq2seq_families.FAMILIES.items()},
    **{name: _vision(family) for name, family in vision_families.FAMILIES.items()},
}
"""model_type of config.json -> its architecture."""

TIED = {
    tensor.rpartition(".")[0]
    for architecture in ARCHITECTURES.values()
    if architecture.tie
    for tensor in (architecture.tie.name, architecture.tie.twin)
}
"""Modules that some config.json declares to have one tensor with another."""


def has_other_head(hf: Mapping[str, Any], head: str) -> bool:
    """True if the class in config.json has a head with the names of this one, for another task.

    >>> has_other_head({"architectures": ["BertForMultipleChoice"]}, "sequence")
    True
    """
    classes = hf.get("architectures") or ()
    names = classes if isinstance(classes, list | tuple) else [classes]
    others = tuple(ending for ending, of_class in SAME_NAMES.items() if of_class != head)
    return any(str(name).endswith(others) for name in names)


def architecture_of(hf: Mapping[str, Any], where: Path) -> Architecture:
    """Returns the architecture of a config.json.

    Args:
        hf: config.json as a dict.
        where: its folder, for the error message.

    Raises:
        UserError: no model_type, or one that is not in `ARCHITECTURES`.

    >>> architecture_of({"model_type": "roberta"}, Path(".")).prefix
    'roberta.'
    """
    kind, known = hf.get("model_type"), ", ".join(ARCHITECTURES)
    if kind is None:
        raise UserError(f"{where / 'config.json'} has no model_type: add one of {known}")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        # No "did you mean": a name that is close (albert, qwen3_moe) is another network.
        raise UserError(
            f"{where}: model_type {kind!r} is not supported: use a checkpoint of one of {known}"
        )
    return ARCHITECTURES[kind]
