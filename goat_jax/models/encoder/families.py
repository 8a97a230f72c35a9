"""Differences between families of encoders, as one table of names, defaults and settings.

Each difference is a field of `EncoderFamily`, or one of
`goat_jax.models.encoder.config.EncoderConfig` that a `Setting` reads; there is no other code per
family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from goat_jax.models.config_keys import (
    COUNT,
    EPSILON,
    RATE,
    SIZE,
    SIZES,
    Check,
    Keys,
    activation,
    keys_of_family,
    number,
    one_of,
)
from goat_jax.models.encoder.relative import BUCKETS
from goat_jax.models.encoder.settings import (
    CONVOLUTION,
    DISENTANGLED,
    HEAD_SIZE,
    LAYER_GROUPS,
    LOCAL_AND_GLOBAL,
    POSITION_TABLE,
    PROJECTION_IF_NARROW,
    equal_to_width,
    head_activation,
    size,
)
from goat_jax.models.family import Family
from goat_jax.models.fused import Fused
from goat_jax.models.settings import Setting, always, flag
from goat_jax.nn.dropout import RateKeys
from goat_jax.nn.modules import POOLING


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderFamily(Family):
    """Names and settings that distinguish one family of encoders.

    Attributes:
        prefix: the encoder's name inside a model with a head.
        embeddings: our name of an embedding part -> its torch name under ``prefix.embeddings``.
        others: our path of a further module -> its torch name under the prefix.
        layer: name of the list of layers, under the prefix.
        block: our name of a block's part -> its torch name.
        head: names of the head's two dense layers, and of the norm between them if there is one.
        token_head: names of the layers of a head for every token.
        keys: field of `EncoderConfig` -> the key in config.json.
        defaults: fields that config.json may leave out or does not have; the values are those of
            transformers.
        dropout: place where the torch model applies dropout -> the config.json keys of the rate.
            A place is the output of a part, the probabilities of the "attention", or the input of a
            dense layer of the head.
        positions_after_pad: whether positions count from pad + 1 over real tokens only (RoBERTa).
        settings: the fields of `EncoderConfig` that not all families have, in the order in which
            they are read.
        fused: linear layers that are several of ours in one.
    """

    prefix: str
    embeddings: Mapping[str, str]
    layer: str
    block: Mapping[str, str]
    head: tuple[str, ...]
    token_head: tuple[str, ...] = ("classifier",)
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    dropout: Mapping[str, RateKeys]
    positions_after_pad: bool = False
    settings: tuple[Setting, ...] = ()
    fused: tuple[Fused, ...] = ()
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def heads(self) -> dict[str, tuple[str, ...]]:
        """Names of the layers of each head, by the head as `EncoderConfig.head` names it."""
        return {"sequence": self.head, "tokens": self.token_head}


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

_BERT_READ: dict[str, Check] = {
    **SIZES,
    "max_position_embeddings": SIZE,
    "type_vocab_size": COUNT,
    "layer_norm_eps": EPSILON,
    "pad_token_id": number(whole=True),
    "hidden_dropout_prob": RATE,
    "attention_probs_dropout_prob": RATE,
}
_BERT_FIXED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
_BERT_CONFIG = keys_of_family({**_BERT_READ, "classifier_dropout": RATE}, _BERT_FIXED)
_DISTIL_CONFIG = dataclasses.replace(
    keys_of_family(
        {
            **dict.fromkeys(("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim"), SIZE),
            "max_position_embeddings": SIZE,
            "activation": activation,
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


def _without(keys: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    return {name: value for name, value in keys.items() if name not in left_out}


def _config(
    keys: Mapping[str, Check],
    settings: tuple[Setting, ...],
    fixed: Mapping[str, tuple[Any, ...]] = MappingProxyType({}),
    without: tuple[str, ...] = (),
) -> Keys:
    """Returns the treatment of a family's keys, given those that no setting reads."""
    read = dict(keys)
    for setting in settings:
        read |= setting.keys
    return keys_of_family(read, fixed, without)


# The summary is that of multiple choice, not of sequence classification.
_ELECTRA_WITHOUT = ("summary_type", "summary_use_proj", "summary_activation")
_ELECTRA_WITHOUT += ("summary_last_dropout", "summary_first_dropout", "summary_proj_to_labels")
_ELECTRA_SETTINGS = (size("embedding_size", "embedding_size", 128), PROJECTION_IF_NARROW)

_MPNET_BLOCK = _BERT_BLOCK | {
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "attention_out": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
}
# transformers has 32 buckets, whatever the size of the table.
_MPNET_BUCKETS = Setting(
    {"relative_attention_num_buckets": number(at_least=BUCKETS, whole=True)},
    lambda hf, values: {"relative_buckets": hf.get("relative_attention_num_buckets") or BUCKETS},
)

_ALBERT_BLOCK = {
    "query": "attention.query",
    "key": "attention.key",
    "value": "attention.value",
    "attention_out": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "up": "ffn",
    "down": "ffn_output",
    "norm": "full_layer_layer_norm",
}
_ALBERT_SETTINGS = (
    size("embedding_size", "embedding_size", 128),
    always(projected=True),
    LAYER_GROUPS,
)
_ALBERT_DROPOUT = {
    "embeddings": RateKeys(("hidden_dropout_prob",), 0.0),
    "attention": RateKeys(("attention_probs_dropout_prob",), 0.0),
    "attention_out": RateKeys(("hidden_dropout_prob",), 0.0),
    "head_out": RateKeys(("classifier_dropout_prob",)),
}

_MODERN_BLOCK = {
    "query": "attn.Wq",
    "key": "attn.Wk",
    "value": "attn.Wv",
    "attention_out": "attn.Wo",
    "attention_norm": "attn_norm",
    "gate": "mlp.Wi_input",
    "up": "mlp.Wi_gate",
    "down": "mlp.Wo",
    "norm": "mlp_norm",
}
_MODERN_FUSED = (
    Fused(
        "attn.Wqkv",
        ("attn.Wq", "attn.Wk", "attn.Wv"),
        lambda config: (config.hidden_size,) * 3,
    ),
    # transformers activates the first half, "input", and multiplies by the second, "gate".
    Fused(
        "mlp.Wi",
        ("mlp.Wi_input", "mlp.Wi_gate"),
        lambda config: (config.intermediate_size,) * 2,
    ),
)
_MODERN_SETTINGS = (
    always(norm_before=True, gated=True, position_table=False, head_norm=True),
    LOCAL_AND_GLOBAL,
    flag("norm_bias", "norm_bias"),
    flag("attention_bias", "attention_bias"),
    flag("mlp_bias", "mlp_bias"),
    flag("classifier_bias", "head_bias"),
    head_activation("classifier_activation"),
)
_MODERN_READ: dict[str, Check] = {
    **_without(SIZES, "hidden_act"),
    "hidden_activation": activation,
    "max_position_embeddings": SIZE,
    "norm_eps": EPSILON,
    "classifier_pooling": one_of(*POOLING),
    "embedding_dropout": RATE,
    "attention_dropout": RATE,
    "mlp_dropout": RATE,
    "classifier_dropout": RATE,
}
# Of the masked language model's head, and of kernels that compute the same.
_MODERN_WITHOUT = ("decoder_bias", "sparse_prediction", "sparse_pred_ignore_index", "cls_token_id")
_MODERN_WITHOUT += ("initializer_cutoff_factor", "deterministic_flash_attn", "reference_compile")
_NO_DROPOUT = {
    place: RateKeys((key,), 0.0)
    for place, key in {
        "embeddings": "embedding_dropout",
        "attention": "attention_dropout",
        "attention_out": "attention_dropout",
        "inner": "mlp_dropout",
        "head_out": "classifier_dropout",
    }.items()
}

_DEBERTA_BLOCK = _BERT_BLOCK | {
    "query": "attention.self.query_proj",
    "key": "attention.self.key_proj",
    "value": "attention.self.value_proj",
    "position_key": "attention.self.pos_key_proj",
    "position_query": "attention.self.pos_query_proj",
}
_DEBERTA_SETTINGS = (
    HEAD_SIZE,
    equal_to_width("embedding_size", "pooler_hidden_size"),
    POSITION_TABLE,
    DISENTANGLED,
    CONVOLUTION,
    head_activation("pooler_hidden_act"),
)
_DEBERTA_READ = _BERT_READ | {
    "type_vocab_size": number(at_least=0, whole=True),
    "pooler_dropout": RATE,
    "cls_dropout": RATE,
}
_DEBERTA_DROPOUT = _BERT_DROPOUT | {
    "positions": _HIDDEN,
    "convolution": _HIDDEN,
    "head_dense": RateKeys(("pooler_dropout",), 0.0),
    "head_out": RateKeys(("cls_dropout", "hidden_dropout_prob")),
}

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
        embeddings=_BERT_EMBEDDINGS,
        layer="transformer.layer",
        block=_DISTIL_BLOCK,
        head=("pre_classifier", "classifier"),
        keys=_DISTIL_KEYS,
        defaults=_BERT_DEFAULTS | {"type_vocab_size": 0, "head_activation": "relu"},
        dropout=_DISTIL_DROPOUT,
    ),
    "electra": EncoderFamily(
        class_name="Electra",
        config_keys=_config(
            {**_BERT_READ, "classifier_dropout": RATE},
            _ELECTRA_SETTINGS,
            _BERT_FIXED,
            _ELECTRA_WITHOUT,
        ),
        ignored=r"(discriminator|generator)_\w+\..*|.*position_ids",
        prefix="electra",
        embeddings=_BERT_EMBEDDINGS,
        others={"embeddings.projection": "embeddings_project"},
        layer="encoder.layer",
        block=_BERT_BLOCK,
        head=("classifier.dense", "classifier.out_proj"),
        keys=_BERT_KEYS,
        defaults=_BERT_DEFAULTS | {"head_activation": "gelu"},
        dropout=_BERT_DROPOUT | {"head_dense": _CLASSIFIER},
        settings=_ELECTRA_SETTINGS,
    ),
    "mpnet": EncoderFamily(
        class_name="MPNet",
        config_keys=_config(
            _without(_BERT_READ, "type_vocab_size", "pad_token_id"), (_MPNET_BUCKETS,)
        ),
        ignored=r"lm_head\..*|.*pooler\.dense\..*|.*position_ids",
        prefix="mpnet",
        embeddings=_BERT_EMBEDDINGS,
        others={"relative": "encoder.relative_attention_bias"},
        layer="encoder.layer",
        block=_MPNET_BLOCK,
        head=("classifier.dense", "classifier.out_proj"),
        keys=_without(_BERT_KEYS, "type_vocab_size", "pad_token_id"),
        # transformers counts positions from 1, whatever the padding token.
        defaults=_BERT_DEFAULTS | {"type_vocab_size": 0, "pad_token_id": 1},
        dropout=_BERT_DROPOUT | {"head_dense": _HIDDEN, "head_out": _HIDDEN},
        positions_after_pad=True,
        settings=(_MPNET_BUCKETS,),
    ),
    "albert": EncoderFamily(
        class_name="Albert",
        config_keys=_config(
            {**_BERT_READ, "classifier_dropout_prob": RATE},
            _ALBERT_SETTINGS,
            _without(_BERT_FIXED, "is_decoder", "add_cross_attention") | {"inner_group_num": (1,)},
        ),
        ignored=r"predictions\..*|sop_classifier\..*|.*position_ids",
        prefix="albert",
        embeddings=_BERT_EMBEDDINGS,
        others={"embeddings.projection": "encoder.embedding_hidden_mapping_in"},
        layer="encoder.albert_layer_groups",
        block={ours: f"albert_layers.0.{theirs}" for ours, theirs in _ALBERT_BLOCK.items()},
        head=("albert.pooler", "classifier"),
        keys=_BERT_KEYS,
        defaults=_BERT_DEFAULTS | {"activation": "gelu_new"},
        dropout=_ALBERT_DROPOUT,
        settings=_ALBERT_SETTINGS,
    ),
    "modernbert": EncoderFamily(
        class_name="ModernBert",
        # transformers computes this window from local_attention, and never stores it.
        config_keys=_config(
            _MODERN_READ, _MODERN_SETTINGS, {"sliding_window": (None,)}, _MODERN_WITHOUT
        ),
        ignored=r"decoder\..*",
        prefix="model",
        embeddings={"words": "tok_embeddings", "norm": "norm"},
        others={"final_norm": "final_norm"},
        layer="layers",
        block=_MODERN_BLOCK,
        head=("head.dense", "head.norm", "classifier"),
        token_head=("head.dense", "head.norm", "classifier"),
        keys=_without(_BERT_KEYS, "type_vocab_size", "pad_token_id")
        | {
            "activation": "hidden_activation",
            "layer_norm_eps": "norm_eps",
            "pooling": "classifier_pooling",
        },
        defaults={
            "max_position_embeddings": 8192,
            "type_vocab_size": 0,
            "activation": "gelu",
            "layer_norm_eps": 1e-5,
            "pad_token_id": 50283,
            "pooling": "cls",
        },
        dropout=_NO_DROPOUT,
        settings=_MODERN_SETTINGS,
        fused=_MODERN_FUSED,
    ),
    "deberta-v2": EncoderFamily(
        class_name="DebertaV2",
        config_keys=_config(_DEBERTA_READ, _DEBERTA_SETTINGS, without=("legacy",)),
        ignored=r"(lm|mask)_predictions\..*|cls\..*|lm_head\..*|.*position_ids"
        r"|deberta\.embeddings\.position_embeddings\.weight",
        prefix="deberta",
        embeddings=_BERT_EMBEDDINGS,
        others={
            "relative": "encoder.rel_embeddings",
            "relative_norm": "encoder.LayerNorm",
            "layers.convolution": "encoder.conv.conv",
            "layers.convolution_norm": "encoder.conv.LayerNorm",
        },
        layer="encoder.layer",
        block=_DEBERTA_BLOCK,
        head=("pooler.dense", "classifier"),
        keys=_BERT_KEYS,
        defaults=_BERT_DEFAULTS | {"type_vocab_size": 0, "layer_norm_eps": 1e-7},
        dropout=_DEBERTA_DROPOUT,
        settings=_DEBERTA_SETTINGS,
    ),
}
FAMILIES |= {
    "xlm-roberta": dataclasses.replace(FAMILIES["roberta"], class_name="XLMRoberta"),
    "camembert": dataclasses.replace(FAMILIES["roberta"], class_name="Camembert"),
}
