"""Inputs and losses of the kinds of models that parity replays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from goat_jax.adapters.context import Context
from goat_jax.errors import UserError
from goat_jax.models.decoder.model import Decoder
from goat_jax.training.losses import (
    CLASSIFICATION,
    IMAGE_CLASSIFICATION,
    LANGUAGE,
    REGRESSION,
    LossFn,
    language_loss,
)
from goat_jax.typing import Array, Batch

Inputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """Inputs and loss of one kind of model.

    Attributes:
        inputs: the names of the arrays that a batch may have besides labels; the first is required.
        complete: the function that checks the shapes of a batch and adds row weights and the
            defaults of the PyTorch model. Its second argument is the file, for messages.
        loss_fn: config.json -> the loss that PyTorch's model computes.
    """

    inputs: tuple[str, ...]
    complete: Callable[[Inputs, str], Inputs]
    loss_fn: Callable[[Mapping[str, Any]], LossFn]


def _complete_tokens(batch: Inputs, where: str) -> Inputs:
    ids = batch["input_ids"]
    for name, array in batch.items():
        expected = ids.shape[:1] if name == "labels" else ids.shape
        if array.shape != expected or array.ndim > 2:
            raise UserError(f"{where}: {name} has shape {array.shape}, not {expected}")
    defaults = {
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
        "weights": np.ones(ids.shape[:1], np.float32),
    }
    return defaults | batch


def _complete_images(batch: Inputs, where: str) -> Inputs:
    """Moves the channels of PyTorch's images to the last axis and adds row weights."""
    images, labels = batch["pixel_values"], batch["labels"]
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{where}: pixel_values have shape {images.shape} and labels {labels.shape}: they must "
            "be (batch, channels, height, width) and (batch,)"
        )
    weights = np.ones(labels.shape, np.float32)
    pixels = {"pixel_values": np.ascontiguousarray(images.transpose(0, 2, 3, 1))}
    return {"weights": weights} | batch | pixels


_TEXT_PROBLEMS = {"regression": REGRESSION, "single_label_classification": CLASSIFICATION}
_IMAGE_PROBLEMS = {"single_label_classification": IMAGE_CLASSIFICATION}


def _classification(problems: Mapping[str, LossFn], hf: Mapping[str, Any]) -> LossFn:
    """Returns the loss of a classifier: with one label, and no problem_type, it is a regression."""
    labels = hf.get("num_labels") or len(hf.get("id2label") or (0, 1))
    default = "regression" if labels == 1 else "single_label_classification"
    problem = hf.get("problem_type") or default
    if problem not in problems or (problem == "regression" and labels != 1):
        raise UserError(f"config.json: {problem!r} with {labels} labels is not covered by parity")
    return problems[problem]


def _complete_language(batch: Inputs, where: str) -> Inputs:
    """Converts PyTorch's labels, which repeat the tokens to train on, to a mask of these tokens."""
    ids, labels = batch["input_ids"], batch["labels"]
    for name, array in batch.items():
        if array.shape != ids.shape or array.ndim != 2:
            raise UserError(f"{where}: {name} has shape {array.shape}, not {ids.shape}")
    loss_mask = labels != IGNORED
    if (labels[loss_mask] != ids[loss_mask]).any():
        raise UserError(f"{where}: labels differ from input_ids where they are not {IGNORED}")
    masks = {
        "loss_mask": loss_mask.astype(np.int32),
        "weights": np.ones(ids.shape[:1], np.float32),
    }
    return {"attention_mask": np.ones_like(ids)} | batch | masks


def _language_loss_and_logits(
    model: Decoder, batch: Batch, ctx: Context
) -> tuple[Array, dict[str, Array], Array]:
    loss, sums, (_, hidden) = language_loss(model, batch, ctx, batch["attention_mask"])
    return loss, sums, model.logits(hidden)


IGNORED = -100
"""PyTorch's label of a token that is not trained on."""

_LANGUAGE = dataclasses.replace(LANGUAGE, loss=_language_loss_and_logits)

INPUTS: dict[str, ModelInputs] = {
    "language model": ModelInputs(
        inputs=("input_ids", "attention_mask"),
        complete=_complete_language,
        loss_fn=lambda hf: _LANGUAGE,
    ),
    "text encoder": ModelInputs(
        inputs=("input_ids", "attention_mask", "token_type_ids"),
        complete=_complete_tokens,
        loss_fn=partial(_classification, _TEXT_PROBLEMS),
    ),
    "image encoder": ModelInputs(
        inputs=("pixel_values",),
        complete=_complete_images,
        loss_fn=partial(_classification, _IMAGE_PROBLEMS),
    ),
}
"""Kind of a model -> its inputs."""


LABELS = {
    CLASSIFICATION: np.int32,
    REGRESSION: np.float32,
    IMAGE_CLASSIFICATION: np.int32,
    _LANGUAGE: np.int32,
}
"""LossFn -> the dtype of its labels."""


def complete_batch(batch: Inputs, kind: ModelInputs, loss_fn: LossFn, where: str) -> Inputs:
    """Completes a batch to the inputs of the package's models.

    Args:
        batch: the bundle's arrays.
        kind: the row of `INPUTS` of the model's kind.
        loss_fn: the model's loss.
        where: the file, for messages.

    Raises:
        UserError: inputs are missing or unknown, or have the wrong shape or type.
    """
    if kind.inputs[0] not in batch:
        raise UserError(f"{where} lacks the arrays {kind.inputs[0]}_STEP")
    unknown = sorted(set(batch) - {*kind.inputs, "labels"})
    if unknown:
        raise UserError(f"{where} has {unknown[0]!r}, which is not an input of this model")
    labels, dtype = batch["labels"], LABELS[loss_fn]
    if dtype == np.int32 and labels.dtype.kind not in "iu":
        raise UserError(f"{where}: labels are {labels.dtype}, but this model's are class numbers")
    return kind.complete(batch | {"labels": labels.astype(dtype)}, where)
