"""What a model is in transformers: its class, that class's config.json and further parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from goat_jax.errors import UserError
from goat_jax.models.encoder.families import FAMILIES as ENCODERS
from goat_jax.models.load import load_model
from goat_jax.models.vision.clip_text import TEXT, class_kernel
from goat_jax.models.vision.heads import CLASSIFIER, ZERO_SHOT

SAME = 1e-6
"""How far two class matrices of one text tower may be apart, their columns of length 1."""


def _no_parts(model: Any, path: Path, task: Any) -> tuple[nnx.Module, ...]:
    """Most classes have nothing but what our model has."""
    return ()


def _text_tower(model: Any, path: Path, task: Any) -> tuple[nnx.Module, ...]:
    """CLIP's text tower as the checkpoint has it, which makes the class matrix of the names anew.

    Raises:
        UserError: a class matrix that it does not make.
    """
    classes, made = model.head.classifier, class_kernel(path, task.labels, task.prompt)
    kernel = np.asarray(classes.kernel[...])
    if classes.adapter is not None or not np.allclose(kernel, made, rtol=0, atol=SAME):
        raise UserError(
            "its class matrix was trained, and transformers' CLIPModel has none: it makes its own "
            "of the class names; train without classifier in adapter.train, or with head=linear"
        )
    return (load_model(path, key=jax.random.key(0), architecture=TEXT).model,)


_LOAD = """from transformers import {auto}

model = {auto}.from_pretrained("{name}")"""

_COMPARE = """from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{name}")
config = model.config
classes = [config.id2label[number] for number in range(config.num_labels)]
texts = AutoTokenizer.from_pretrained("{name}")(
    [{prompt!r}.replace("{{}}", name) for name in classes],
    truncation=True,
    max_length=config.text_config.max_position_embeddings,
    padding=True,
    return_tensors="pt",
)


def logits(pixel_values):
    return model(pixel_values=pixel_values, **texts).logits_per_image"""


@dataclasses.dataclass(frozen=True)
class Form:
    """What one kind of model is in transformers.

    Attributes:
        ending: of its class, after the family's beginning.
        auto: the class that finds it by its config.json.
        absent: the module of ours that it does not have, None if there is none.
        parts: (model, its checkpoint, task) -> models whose tensors it has besides ours; raises
            `UserError` if it cannot do without the absent module.
        use: Python lines that load it, with {auto}, {name} and {prompt}.
    """

    ending: str
    auto: str
    absent: str | None = None
    parts: Callable[[Any, Path, Any], tuple[nnx.Module, ...]] = _no_parts
    use: str = _LOAD

    def has(self, tensor: str) -> bool:
        """Whether it has one of our tensors, by torch's name."""
        return tensor.rpartition(".")[0] != self.absent

    def snippet(self, name: str, task: Any) -> str:
        """Python lines that load it from a folder."""
        return self.use.format(auto=self.auto, name=name, prompt=getattr(task, "prompt", ""))


FORMS = {
    ("text encoder", None): Form("ForSequenceClassification", "AutoModelForSequenceClassification"),
    ("language model", None): Form("ForCausalLM", "AutoModelForCausalLM"),
    ("image encoder", "linear"): Form("ForImageClassification", "AutoModelForImageClassification"),
    ("image encoder", ZERO_SHOT): Form(
        "Model", "AutoModelForZeroShotImageClassification", CLASSIFIER, _text_tower, _COMPARE
    ),
}
"""(kind of a model, the head of its config if that has one) -> its form."""


def form_of(kind: str, config: Any) -> Form:
    """The form of a model.

    Args:
        kind: of the model.  config: our own.

    >>> form_of("language model", None).ending
    'ForCausalLM'
    """
    return FORMS[kind, getattr(config, "head", None)]


_POOLED = """

import torch


def logits(**batch):
    inner = {model}
    hidden = inner.base_model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    dense, out = map(inner.get_submodule, {head})
    return out(torch.{activation}(dense(mean)))"""


def pooled_logits(config: Any, model: str) -> str:
    """Python lines for the logits of a head that reads the mean of the tokens, "" for others.

    Args:
        config: our own.
        model: the expression for transformers' model.
    """
    if getattr(config, "pooling", "cls") != "mean":
        return ""
    family = ENCODERS[config.family]
    return _POOLED.format(model=model, head=family.head, activation=family.head_activation)


def _whole_clip(hf: Mapping[str, Any]) -> dict[str, Any]:
    """A vision tower's config inside that of a whole CLIP: its classifier takes no other."""
    whole = {key: hf[key] for key in ("projection_dim",) if key in hf}
    return {"model_type": "clip", "vision_config": dict(hf), **whole}


def _without_mask_token(hf: Mapping[str, Any]) -> dict[str, Any]:
    """It stands for hidden patches in pretraining, so our model does not have it."""
    return {**hf, "use_mask_token": False}


@dataclasses.dataclass(frozen=True)
class Family:
    """What is transformers' own in a family of models.

    Attributes:
        beginning: of its classes.
        config: config.json of a checkpoint -> what the class reads.
    """

    beginning: str
    config: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


FAMILIES = {
    "bert": Family("Bert"),
    "roberta": Family("Roberta"),
    "distilbert": Family("DistilBert"),
    "llama": Family("Llama"),
    "qwen2": Family("Qwen2"),
    "mistral": Family("Mistral"),
    "clip": Family("CLIP"),
    "clip_vision_model": Family("CLIP", _whole_clip),
    "vit": Family("ViT"),
    "dinov2": Family("Dinov2", _without_mask_token),
}
"""model_type -> what is its own."""
