"""The language model inside a multimodal checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from goat_jax.errors import UserError
from goat_jax.pretrained.safetensors import Weights
from goat_jax.pretrained.weight_view import Place, view

TEXT_CONFIG = "text_config"
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")


TEXT_PARTS = {"gemma3": "gemma3_text", "mistral3": "mistral"}
"""model_type of a multimodal config.json -> that of its text part, if its own config has none."""

RENAMED = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "lm_head.": "lm_head.",
}
"""Beginning of a tensor's name, as transformers 5 and 4 write it -> that of the language model."""


def text_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config.json of the language model; that of a text model is returned unchanged.

    >>> text_config({"model_type": "gemma3", "eos_token_id": 1, "text_config": {"hidden_size": 8}})
    {'model_type': 'gemma3_text', 'hidden_size': 8, 'eos_token_id': 1}
    """
    model_type = TEXT_PARTS.get(str(hf.get("model_type")))
    if model_type is None:
        return dict(hf)
    inner = hf.get(TEXT_CONFIG)
    if not isinstance(inner, Mapping):
        raise UserError(f"config.json: {TEXT_CONFIG} is {inner!r}: it must be an object")
    outer = {key: hf[key] for key in _TOKENS if hf.get(key) is not None}
    return {"model_type": model_type, **inner, **outer}


def text_weights(hf: Mapping[str, Any], weights: Weights) -> Weights:
    """Returns the language model's tensors.

    Args:
        hf: the checkpoint's config.json as it is stored.
        weights: the checkpoint's tensors.
    """
    if str(hf.get("model_type")) not in TEXT_PARTS:
        return weights
    places: dict[str, Place] = {}
    others: dict[str, None] = {}
    for name in weights:
        for stored, ours in RENAMED.items():
            if name.startswith(stored):
                places[ours + name.removeprefix(stored)] = Place(name)
                break
        else:
            others[name.removeprefix("model.").partition(".")[0]] = None
    return view(weights, places, tuple(others))
