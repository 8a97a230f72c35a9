"""Differences between BERT, RoBERTa and DistilBERT, as one table.

The families differ in their names, in how positions are counted, in token types and in the
classification head. Each difference is a field of `EncoderFamily`; there is no other code per
family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from goat_jax.models.config_keys import (
    COUNT,
    EPSILON,
    RATE,
    SIZES,
    anything,
    keys_of_family,
    number,
)
from goat_jax.models.family import Family
from goat_jax.nn.dropout import RateKeys


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderFamily(Family):
    """Names and settings that distinguish one family of encoders.

    Attributes:
        prefix: the encoder's name inside a model with a head.
        embeddings: our name of an embedding part -> its torch name under ``prefix.embeddings``.
        layer: name of the list of layers, under the prefix.
        block: our name of a block's part -> its torch name.
        head: names of the head's two dense layers.
        head_activation: the activation between them.
        keys: field of `EncoderConfig` -> the key in config.json.
        defaults: fields that config.json may leave out or does not have; the values are those of
            transformers.
        dropout: place where the torch model applies dropout -> the config.json keys of the rate.
            A place is the output of a part, the probabilities of the "attention", or the input of a
            dense layer of the head.
        positions_after_pad: whether positions count from pad + 1 over real tokens only (RoBERTa).
    """

    prefix: str
    embeddings: Mapping[str, str]
    layer: str
    block: Mapping[str, str]
    head: tuple[str, str]
    head_activation: str
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    dropout: Mapping[str, RateKeys]
    positions_after_pad: bool = False


_BERT_EMBEDDINGS = {
    "words": "word_embeddings",
    "positions": "position_embeddings",
    "types": "token_type_embeddings",
    "norm": "LayerNorm",
}
_BERT_BLOCK = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}
_DISTIL_BLOCK = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm": "output_layer_norm",
}
_BERT_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
    "pad_token_id": "pad_token_id",
}
# No key for the epsilon and the token types: DistilBERT fixes both, whatever a config contains.
_DISTIL_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_position_embeddings": "max_position_embeddings",
    "activation": "activation",
    "pad_token_id": "pad_token_id",
}
_BERT_DEFAULTS = {
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "activation": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
_HIDDEN = RateKeys(("hidden_dropout_prob",))
_CLASSIFIER = RateKeys(("classifier_dropout", "hidden_dropout_prob"))
_BERT_DROPOUT = {
    "embeddings": _HIDDEN,
    "attention": RateKeys(("attention_probs_dropout_prob",)),
    "attention_out": _HIDDEN,
    "down": _HIDDEN,
    "head_out": _CLASSIFIER,
}
_DISTIL_DROPOUT = {
    "embeddings": RateKeys(("dropout",)),
    "attention": RateKeys(("attention_dropout",)),
    "down": RateKeys(("dropout",)),
    "head_out": RateKeys(("seq_classif_dropout",), 0.2),
}

_BERT_CONFIG = keys_of_family(
    {
        **SIZES,
        "max_position_embeddings": anything,
        "type_vocab_size": COUNT,
        "layer_norm_eps": EPSILON,
        "pad_token_id": number(whole=True),
        "hidden_dropout_prob": RATE,
        "attention_probs_dropout_prob": RATE,
        "classifier_dropout": RATE,
    },
    {
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
)
_DISTIL_CONFIG = dataclasses.replace(
    keys_of_family(
        {
            **dict.fromkeys(("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim"), anything),
            "max_position_embeddings": anything,
            "activation": anything,
            "pad_token_id": number(whole=True),
            "dropout": RATE,
            "attention_dropout": RATE,
            "seq_classif_dropout": RATE,
        },
        {"position_embedding_type": ("absolute",), "is_decoder": (False,)},
        # The sinusoids only initialize a table that the checkpoint holds.
        ("sinusoidal_pos_embds", "qa_dropout"),
    ),
    aliases={
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    },
)

FAMILIES: dict[str, EncoderFamily] = {
    "bert": EncoderFamily(
        class_name="Bert",
        config_keys=_BERT_CONFIG,
        ignored=r"cls\..*|.*position_ids",
        prefix="bert",
        embeddings=_BERT_EMBEDDINGS,
        layer="encoder.layer",
        block=_BERT_BLOCK,
        head=("bert.pooler.dense", "classifier"),
        head_activation="tanh",
        keys=_BERT_KEYS,
        defaults=_BERT_DEFAULTS,
        dropout=_BERT_DROPOUT,
    ),
    "roberta": EncoderFamily(
        class_name="Roberta",
        config_keys=_BERT_CONFIG,
        ignored=r"lm_head\..*|.*pooler\.dense\..*|.*position_ids",
        prefix="roberta",
        embeddings=_BERT_EMBEDDINGS,
        layer="encoder.layer",
        block=_BERT_BLOCK,
        head=("classifier.dense", "classifier.out_proj"),
        head_activation="tanh",
        keys=_BERT_KEYS,
        defaults=_BERT_DEFAULTS | {"pad_token_id": 1},
        dropout=_BERT_DROPOUT | {"head_dense": _CLASSIFIER},
        positions_after_pad=True,
    ),
    "distilbert": EncoderFamily(
        class_name="DistilBert",
        config_keys=_DISTIL_CONFIG,
        ignored=r"vocab_\w+\..*|.*position_ids",
        prefix="distilbert",
        embeddings={k: v for k, v in _BERT_EMBEDDINGS.items() if k != "types"},
        layer="transformer.layer",
        block=_DISTIL_BLOCK,
        head=("pre_classifier", "classifier"),
        head_activation="relu",
        keys=_DISTIL_KEYS,
        defaults=_BERT_DEFAULTS | {"type_vocab_size": 0},
        dropout=_DISTIL_DROPOUT,
    ),
}
