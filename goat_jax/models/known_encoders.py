"""Configs of well-known text encoders: those of the published config.json files.

Settings that a file leaves out, or that equal the family's default, are left out here, too.
"""

from __future__ import annotations

from typing import Any

_Config = dict[str, Any]


def _encoder(
    model_type: str, width: int, layers: int, heads: int, inner: int, vocabulary: int, **rest: Any
) -> _Config:
    return {
        "model_type": model_type,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        **rest,
    }


_BASE, _LARGE = (768, 12, 12, 3072), (1024, 24, 16, 4096)
_BERT: _Config = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0}
_ROBERTA: _Config = {
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
_MPNET: _Config = {"max_position_embeddings": 514, "layer_norm_eps": 1e-5}
_ALBERT: _Config = {"embedding_size": 128, "hidden_act": "gelu_new"}
_DEBERTA: _Config = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}
_DEBERTA_2 = _DEBERTA | {"conv_kernel_size": 3, "conv_act": "gelu"}
_MODERN: _Config = {
    "global_attn_every_n_layers": 3,
    "local_attention": 128,
    "classifier_pooling": "mean",
    "pad_token_id": 50283,
}

KNOWN_ENCODERS: dict[str, _Config] = {
    "bert-base-uncased": _encoder("bert", *_BASE, 30522, **_BERT),
    "bert-base-cased": _encoder("bert", *_BASE, 28996, **_BERT),
    "bert-base-multilingual-cased": _encoder("bert", *_BASE, 119547, **_BERT),
    "distilbert-base-uncased": {
        "model_type": "distilbert",
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
    },
    "distilroberta-base": _encoder("roberta", 768, 6, 12, 3072, 50265, **_ROBERTA),
    "bert-large-uncased": _encoder("bert", *_LARGE, 30522, **_BERT),
    "all-minilm-l6-v2": _encoder("bert", 384, 6, 12, 1536, 30522, **_BERT),
    "roberta-base": _encoder("roberta", *_BASE, 50265, **_ROBERTA),
    "roberta-large": _encoder("roberta", *_LARGE, 50265, **_ROBERTA),
    "xlm-roberta-base": _encoder("xlm-roberta", *_BASE, 250002, **_ROBERTA),
    "xlm-roberta-large": _encoder("xlm-roberta", *_LARGE, 250002, **_ROBERTA),
    "camembert-base": _encoder("camembert", *_BASE, 32005, **_ROBERTA),
    "electra-small-discriminator": _encoder(
        "electra", 256, 12, 4, 1024, 30522, embedding_size=128, **_BERT
    ),
    "electra-base-discriminator": _encoder("electra", *_BASE, 30522, embedding_size=768, **_BERT),
    "electra-large-discriminator": _encoder(
        "electra", *_LARGE, 30522, embedding_size=1024, **_BERT
    ),
    "mpnet-base": _encoder("mpnet", *_BASE, 30527, **_MPNET),
    "all-mpnet-base-v2": _encoder("mpnet", *_BASE, 30527, **_MPNET),
    "albert-base-v2": _encoder("albert", *_BASE, 30000, **_ALBERT),
    "albert-large-v2": _encoder("albert", *_LARGE, 30000, **_ALBERT),
    "albert-xlarge-v2": _encoder("albert", 2048, 24, 16, 8192, 30000, **_ALBERT),
    "albert-xxlarge-v2": _encoder("albert", 4096, 12, 64, 16384, 30000, **_ALBERT),
    "modernbert-base": _encoder("modernbert", 768, 22, 12, 1152, 50368, **_MODERN),
    "modernbert-large": _encoder("modernbert", 1024, 28, 16, 2624, 50368, **_MODERN),
    "deberta-v3-xsmall": _encoder("deberta-v2", 384, 12, 6, 1536, 128100, **_DEBERTA),
    "deberta-v3-small": _encoder("deberta-v2", 768, 6, 12, 3072, 128100, **_DEBERTA),
    "deberta-v3-base": _encoder("deberta-v2", *_BASE, 128100, **_DEBERTA),
    "deberta-v3-large": _encoder("deberta-v2", *_LARGE, 128100, **_DEBERTA),
    "mdeberta-v3-base": _encoder("deberta-v2", *_BASE, 251000, **_DEBERTA),
    "deberta-v2-xlarge": _encoder("deberta-v2", 1536, 24, 24, 6144, 128100, **_DEBERTA_2),
    "deberta-v2-xxlarge": _encoder("deberta-v2", 1536, 48, 24, 6144, 128100, **_DEBERTA_2),
}
"""Short name of an encoder -> the sizes and settings of its config.json."""
