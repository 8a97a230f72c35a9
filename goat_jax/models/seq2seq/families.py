"""Families of encoder-decoders, as one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from goat_jax.models.config_keys import COUNT, EPSILON, SIZE, ids, keys_of_family, switch, word
from goat_jax.models.family import Family


def is_scaled(hf: Mapping[str, Any]) -> bool:
    """True if the logits are scaled: unless the output was trained apart from the table."""
    stated = hf.get("scale_decoder_outputs")
    return hf.get("tie_word_embeddings") is not False if stated is None else bool(stated)


def _stated(hf: Mapping[str, Any], ending: str) -> dict[str, Any]:
    """States whether logits are scaled, which otherwise depends on the tie of the output."""
    return {**hf, "scale_decoder_outputs": is_scaled(hf)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqFamily(Family):
    """Names and defaults of one family of encoder-decoders.

    Attributes:
        keys: field of `Seq2SeqConfig` -> the key of config.json.
        defaults: fields that config.json may leave out; the values are those of transformers.
    """

    keys: Mapping[str, str]
    defaults: Mapping[str, Any]


_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "head_size": "d_kv",
    "intermediate_size": "d_ff",
    "encoder_layers": "num_layers",
    "num_layers": "num_decoder_layers",
    "num_heads": "num_heads",
    "buckets": "relative_attention_num_buckets",
    "reach": "relative_attention_max_distance",
    "norm_eps": "layer_norm_epsilon",
    "tie_embeddings": "tied_output",
    "scaled_logits": "scale_decoder_outputs",
}
_T5 = Seq2SeqFamily(
    class_name="T5",
    config_keys=keys_of_family(
        {
            **dict.fromkeys(("vocab_size", "d_model", "d_kv", "d_ff", "num_heads"), SIZE),
            **dict.fromkeys(("num_layers", "num_decoder_layers"), SIZE),
            "relative_attention_num_buckets": SIZE,
            "relative_attention_max_distance": COUNT,
            "layer_norm_epsilon": EPSILON,
            "feed_forward_proj": word,
            "tie_word_embeddings": switch,
            "scale_decoder_outputs": switch,
            "eos_token_id": ids,
            "pad_token_id": ids,
            "decoder_start_token_id": ids,
        },
        {"is_encoder_decoder": (True,)},
        (
            *("dropout_rate", "classifier_dropout", "n_positions", "output_past"),
            # What feed_forward_proj says, too.
            *("dense_act_fn", "is_gated_act"),
            *("hidden_size", "num_attention_heads", "num_hidden_layers", "head_dim"),
        ),
    ),
    ignored=r"(encoder|decoder)\.embed_tokens\.weight|lm_head\.weight|"
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    exported=_stated,
    keys=_KEYS,
    defaults={
        "vocab_size": 32128,
        "hidden_size": 512,
        "head_size": 64,
        "intermediate_size": 2048,
        "encoder_layers": 6,
        "num_heads": 8,
        "buckets": 32,
        "reach": 128,
        "norm_eps": 1e-6,
    },
)

FAMILIES: dict[str, Seq2SeqFamily] = {"t5": _T5}

HEADS = ("conditional",)
"""Heads that a config may name: the vocabulary's, for a token given the prompt and the answer."""
