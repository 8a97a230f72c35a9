"""Tiny random encoders of transformers, and the largest difference of our logits from theirs.

Run as a program, it prints the table of docs/models.md:

    PYTHONPATH=tests/helpers python tests/helpers/torch_models/encoder_parity.py
"""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from goat_jax.models.load import load_model
from parity_table import print_table
from random_torch import randomized

TOLERANCE = 1e-5
"""Largest difference of a logit, over the largest logit."""

SIZES = dict(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
)
DISTIL = dict(
    vocab_size=60, dim=32, hidden_dim=48, n_layers=3, n_heads=4, max_position_embeddings=64
)
ODD = {"num_attention_heads": 2, "layer_norm_eps": 0.1, "num_labels": 3}
TWO_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5e4, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
}
V3 = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 6,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_biased_input": False,
    "type_vocab_size": 0,
}
V2 = V3 | {"conv_kernel_size": 3, "conv_act": "gelu", "pos_att_type": "p2c|c2p"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "bert odd": ("Bert", ODD | {"hidden_act": "relu", "type_vocab_size": 3}),
    "distilbert": ("DistilBert", {"activation": "gelu_new", "num_labels": 1}),
    "roberta": ("Roberta", {"pad_token_id": 2}),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta odd": ("XLMRoberta", ODD | {"hidden_act": "silu", "pad_token_id": 0}),
    "camembert": ("Camembert", {"type_vocab_size": 1}),
    "camembert odd": ("Camembert", ODD | {"hidden_act": "gelu_new", "pad_token_id": 3}),
    "electra": ("Electra", {"embedding_size": 12}),
    "electra odd": ("Electra", ODD | {"embedding_size": 32, "hidden_act": "relu"}),
    "mpnet": ("MPNet", {"pad_token_id": 1}),
    "mpnet odd": (
        "MPNet",
        ODD | {"relative_attention_num_buckets": 40, "hidden_act": "silu", "pad_token_id": 0},
    ),
    "albert groups": (
        "Albert",
        ODD
        | {"embedding_size": 32, "num_hidden_layers": 5, "num_hidden_groups": 2}
        | {"hidden_act": "relu", "type_vocab_size": 3},
    ),
    "albert": ("Albert", {"embedding_size": 12}),
    "modernbert": ("ModernBert", {"local_attention": 6, "pad_token_id": 0}),
    "modernbert odd": (
        "ModernBert",
        {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}
        | {"classifier_pooling": "mean", "classifier_activation": "relu", "norm_eps": 0.1}
        | {"hidden_activation": "silu", "local_attention": 5, "rope_parameters": TWO_ROPES}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
        | {"num_labels": 3, "pad_token_id": 0},
    ),
    "modernbert global": ("ModernBert", {"layer_types": ["full_attention"] * 3, "pad_token_id": 0}),
    "deberta v2": ("DebertaV2", V2),
    "deberta v3": ("DebertaV2", V3),
    "deberta no buckets": (
        "DebertaV2",
        ODD
        | V3
        | {"share_att_key": False, "position_buckets": -1, "max_relative_positions": 7}
        | {"norm_rel_ebd": "none", "position_biased_input": True, "type_vocab_size": 2},
    ),
    "deberta c2p": (
        "DebertaV2",
        V3
        | {"pos_att_type": ["c2p"], "share_att_key": False, "pooler_hidden_act": "tanh"}
        | {"conv_kernel_size": 5, "conv_groups": 4, "hidden_act": "relu"},
    ),
    "deberta p2c": ("DebertaV2", V3 | {"pos_att_type": "p2c", "position_buckets": 7}),
    "deberta absolute": ("DebertaV2", {"pos_att_type": ["c2p"], "max_position_embeddings": 40}),
}
"""Name of a case -> the beginning of its class in transformers, and its settings."""


def write(
    folder: Path, case: str, seed: int = 0, kind: str = "ForSequenceClassification", **more: Any
) -> Any:
    """Saves a model with the settings of a case and more, every number random, and returns it."""
    name, settings = CASES[case]
    sizes = DISTIL if name == "DistilBert" else SIZES
    config = getattr(transformers, name + "Config")(**{**sizes, **settings, **more})
    model = randomized(lambda: getattr(transformers, name + kind)(config), seed)
    model.save_pretrained(folder)
    return model


def batch(types: int, pad: int) -> dict[str, np.ndarray]:
    """Four rows of 20 tokens: full, two padded on the right, and one with a single token."""
    rng = np.random.default_rng(1)
    ids = rng.integers(4, 60, (4, 20)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, 13:], mask[2, 6:], mask[3, 1:] = 0, 0, 0
    kinds = rng.integers(0, max(types, 1), ids.shape).astype(np.int32)
    return {
        "input_ids": np.where(mask, ids, pad),
        "attention_mask": mask,
        "token_type_ids": np.where(mask, kinds, 0),
    }


def torch_outputs(model: Any, inputs: dict[str, np.ndarray]) -> Any:
    """Calls a torch model with those of the inputs that it has."""
    tensors = {name: torch.from_numpy(array).long() for name, array in inputs.items()}
    if not getattr(model.config, "type_vocab_size", 0):
        del tensors["token_type_ids"]
    with torch.no_grad():
        return model(**tensors, output_hidden_states=True)


@partial(jax.jit, static_argnums=0)
def _call(graph: Any, state: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    model = nnx.merge(graph, state)
    hidden = model.encode(**inputs)
    return hidden, model.classify(hidden, inputs["attention_mask"])


def ours(model: Any, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns our hidden states and logits in the highest precision."""
    with jax.default_matmul_precision("highest"):
        hidden, logits = _call(*nnx.split(model), inputs)
    return np.asarray(hidden), np.asarray(logits)


def difference(folder: Path, model: Any) -> float:
    """Largest difference of our logits, and of the hidden states of real tokens, from torch's."""
    loaded = load_model(folder, key=jax.random.key(0))
    assert loaded.fresh == ()
    config: Any = loaded.model.config
    inputs = batch(config.type_vocab_size, model.config.pad_token_id)
    hidden, logits = ours(loaded.model, inputs)
    outputs = torch_outputs(model, inputs)
    real = inputs["attention_mask"] != 0
    pairs = [(logits, outputs.logits.numpy())]
    pairs.append((hidden[real], outputs.hidden_states[-1].numpy()[real]))
    found = [np.abs(one - other).max() / np.abs(other).max() for one, other in pairs]
    assert all(np.abs(other).max() > 0.2 for _, other in pairs)
    return float(max(found))


def family_of(case: str) -> str:
    """The model_type of a case."""
    return getattr(transformers, CASES[case][0] + "Config").model_type


if __name__ == "__main__":
    print_table(CASES, family_of, lambda case, folder: difference(folder, write(folder, case)))
