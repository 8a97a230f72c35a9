"""Describes a model's counterpart in transformers: its class, its config.json and further parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from goat_jax.data.tasks.image import ImageTask
from goat_jax.data.tasks.registry import Task
from goat_jax.errors import UserError
from goat_jax.models.encoder.families import FAMILIES as ENCODERS
from goat_jax.models.vision.config import VisionConfig
from goat_jax.models.vision.families import FAMILIES as TOWERS
from goat_jax.models.vision.heads import CLASSIFIER, ZERO_SHOT
from goat_jax.models.vision.model import VisionModel
from goat_jax.models.vision.text_tower import class_kernel, load_text_tower
from goat_jax.nn.model import Model

SAME = 1e-6
"""Largest difference of two class matrices of one text tower whose columns have length 1."""


def _no_parts(model: Model, path: Path, task: Task) -> tuple[nnx.Module, ...]:
    """Returns no parts: most classes have no tensors besides those of our model."""
    return ()


def _text_tower(model: Model, path: Path, task: Task) -> tuple[nnx.Module, ...]:
    """Loads the checkpoint's text tower, which computes the class matrix from the class names.

    Raises:
        UserError: the model's class matrix was trained, so the text tower cannot compute it.
    """
    assert isinstance(model, VisionModel) and isinstance(task, ImageTask)  # all that have this head
    classes, computed = model.head.classifier, class_kernel(path, task.labels, task.prompt)
    kernel = np.asarray(classes.kernel[...])
    if classes.adapter is not None or not np.allclose(kernel, computed, rtol=0, atol=SAME):
        raise UserError(
            "its class matrix was trained, and transformers' model has none: it computes one "
            "from the class names; use --to goat, or train without classifier in "
            "adapter.modules_to_save or with head=linear"
        )
    return (load_text_tower(path),)


_LOAD = """from transformers import {auto}

model = {auto}.from_pretrained("{name}"{more})"""

_COMPARE = """from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{name}"{more})
config = model.config
classes = [config.id2label[number] for number in range(config.num_labels)]
texts = AutoTokenizer.from_pretrained("{name}")(
    [{prompt!r}.replace("{{}}", name) for name in classes],
    truncation=True,
    max_length=config.text_config.max_position_embeddings,
    padding="max_length",
    return_tensors="pt",
)


def logits(pixel_values):
    return model(pixel_values=pixel_values, **texts).logits_per_image"""


_ASIDE = """

import torch
from safetensors.torch import load_file

head = load_file("{name}/classifier.safetensors")


def logits(pixel_values):
    hidden = {model}(pixel_values=pixel_values).last_hidden_state
    patches = hidden[:, 1 + {model}.config.num_register_tokens :]
    pooled = torch.cat([hidden[:, 0], patches.mean(1)], 1)
    return pooled @ head["classifier.weight"].T + head["classifier.bias"]"""


@dataclasses.dataclass(frozen=True)
class HfForm:
    """The counterpart of one kind of model in transformers.

    Attributes:
        ending: the end of its class name, after the family's beginning.
        auto: the auto class that loads it by its config.json.
        absent: our module that it does not have, None if there is none.
        aside: the file that the absent module's tensors are written to, beside the others; None if
            it can be computed.
        parts: (model, its checkpoint, task) -> further models whose tensors it has; raises
            `UserError` if it cannot work without the absent module.
        use: Python code that loads it, with the fields {auto}, {name}, {more} and {prompt}.
        logits: Python code after that for the logits, with the fields {model} and {name}.
        peft: PEFT's task type; None if it has none.
        pads: whether it needs the padding token's id to find the end of a text.
    """

    ending: str
    auto: str
    absent: str | None = None
    parts: Callable[[Model, Path, Task], tuple[nnx.Module, ...]] = _no_parts
    use: str = _LOAD
    aside: str | None = None
    logits: str = ""
    peft: str | None = None
    pads: bool = False

    def has(self, tensor: str) -> bool:
        """True if it has this tensor of our model, given by its PyTorch name."""
        return tensor.rpartition(".")[0] != self.absent

    def snippet(self, name: str, task: Task, more: str = "") -> str:
        """Returns Python code that loads it from the folder `name`, with `more` arguments."""
        prompt = getattr(task, "prompt", "")
        load = self.use.format(auto=self.auto, name=name, more=more, prompt=prompt)
        return load + self.logits.format(model="model", name=name)


_TEXTS = HfForm("ForSequenceClassification", "AutoModelForSequenceClassification", peft="SEQ_CLS")
_TAGS = HfForm("ForTokenClassification", "AutoModelForTokenClassification", peft="TOKEN_CLS")

FORMS = {
    ("text encoder", "sequence"): _TEXTS,
    ("text encoder", "tokens"): _TAGS,
    ("language model", "language"): HfForm("ForCausalLM", "AutoModelForCausalLM", peft="CAUSAL_LM"),
    ("language model", "conditional"): HfForm(
        "ForConditionalGeneration", "AutoModelForSeq2SeqLM", peft="SEQ_2_SEQ_LM"
    ),
    ("language model", "sequence"): dataclasses.replace(_TEXTS, pads=True),
    ("language model", "tokens"): _TAGS,
    ("image encoder", "linear"): HfForm(
        "ForImageClassification", "AutoModelForImageClassification"
    ),
    ("image encoder", "tower"): HfForm(
        "Model", "AutoModel", CLASSIFIER, aside="classifier.safetensors", logits=_ASIDE
    ),
    ("image encoder", ZERO_SHOT): HfForm(
        "Model", "AutoModelForZeroShotImageClassification", CLASSIFIER, _text_tower, _COMPARE
    ),
}
"""(kind of a model, head in its config) -> its form; "tower" is a linear head that
transformers does not have."""


def form_of(kind: str, config: Any) -> HfForm:
    """Returns the form of a model.

    Args:
        kind: the model's kind, such as "language model".
        config: the model's goat_jax config.

    >>> from goat_jax.models.decoder.config import tiny_decoder_config
    >>> form_of("language model", tiny_decoder_config()).ending
    'ForCausalLM'
    """
    head = config.head
    if isinstance(config, VisionConfig) and not TOWERS[config.family].classifier:
        head = "tower"
    return FORMS[kind, head]


_POOLED = """

from transformers.activations import ACT2FN


def logits(**batch):
    inner = {model}
    hidden = inner.base_model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    dense, out = map(inner.get_submodule, {head})
    return out(ACT2FN["{activation}"](dense(mean)))"""


def pooling_option(config: Any) -> str:
    """Returns the pooling as an argument of `from_pretrained`; "" if config.json has no key for it.

    Args:
        config: the model's goat_jax config.

    >>> from goat_jax.models.encoder.config import tiny_config
    >>> pooling_option(tiny_config("modernbert", pooling="mean")), pooling_option(tiny_config())
    (', classifier_pooling="mean"', '')
    """
    family = ENCODERS.get(getattr(config, "family", ""))
    key = None if family is None else family.keys.get("pooling")
    return "" if key is None else f', {key}="{config.pooling}"'


def pooled_logits(config: Any, model: str) -> str:
    """Returns Python code for the logits of a head on mean-pooled tokens, "" for other heads.

    Args:
        config: the model's goat_jax config.
        model: the Python expression for transformers' model.
    """
    if getattr(config, "pooling", "cls") != "mean" or pooling_option(config):
        return ""
    if config.head != "sequence":
        return ""
    head = ENCODERS[config.family].head
    return _POOLED.format(model=model, head=head, activation=config.head_activation)
