"""The language model inside a multimodal checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from goat_jax.errors import UserError
from goat_jax.pretrained.safetensors import Weights
from goat_jax.pretrained.weight_view import Place, view

TEXT_CONFIG = "text_config"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")


@dataclasses.dataclass(frozen=True)
class TextPart:
    """Names of the language model in a multimodal checkpoint.

    Attributes:
        model_type: its model_type if its config has none.
        renamed: beginning of its tensors' names -> that of the language model alone. transformers 4
            and 5 name them differently.
    """

    model_type: str
    renamed: Mapping[str, str]


_RENAMED = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "lm_head.": "lm_head.",
}

TEXT_PARTS = {
    "gemma3": TextPart("gemma3_text", _RENAMED),
    "mistral3": TextPart("mistral", _RENAMED),
}
"""model_type of a multimodal config.json -> its text part."""


def text_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config.json of the language model; that of a text model is returned unchanged.

    >>> text_config({"model_type": "gemma3", "eos_token_id": 1, "text_config": {"hidden_size": 8}})
    {'model_type': 'gemma3_text', 'hidden_size': 8, 'eos_token_id': 1}
    """
    part = TEXT_PARTS.get(str(hf.get("model_type")))
    if part is None:
        return dict(hf)
    inner = hf.get(TEXT_CONFIG)
    if not isinstance(inner, Mapping):
        raise UserError(f"config.json: {TEXT_CONFIG} is {inner!r}: it must be an object")
    outer = {key: hf[key] for key in _TOKENS if hf.get(key) is not None}
    return {"model_type": part.model_type, **inner, **outer}


def text_weights(hf: Mapping[str, Any], weights: Weights) -> Weights:
    """Returns the language model's tensors.

    Args:
        hf: the checkpoint's config.json as it is stored.
        weights: the checkpoint's tensors.
    """
    part = TEXT_PARTS.get(str(hf.get("model_type")))
    if part is None:
        return weights
    places: dict[str, Place] = {}
    others: dict[str, None] = {}
    for name in weights:
        for stored, ours in part.renamed.items():
            if name.startswith(stored):
                places[ours + name.removeprefix(stored)] = Place(name)
                break
        else:
            others[name.removeprefix("model.").partition(".")[0]] = None
    return view(weights, places, tuple(others))
