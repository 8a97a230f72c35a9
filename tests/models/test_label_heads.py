"""Heads for labels on decoders and encoders: transformers' logits and losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from goat_jax.adapters.context import EVAL
from goat_jax.models.decoder.families import FAMILIES
from goat_jax.models.load import load_model
from goat_jax.training.losses import CLASSIFICATION, MULTI_LABEL, REGRESSION, TAGGING
from random_torch import randomized
from tiny_torch_decoders import SETTINGS

TEXTS = transformers.AutoModelForSequenceClassification
TAGS = transformers.AutoModelForTokenClassification
SIZES = dict(
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
)
DECODER = SIZES | {"num_key_value_heads": 2}
ENCODERS = {
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 1, "n_heads": 4},
    "xlm-roberta": {},
    "camembert": {},
    "electra": {"embedding_size": 12},
    "mpnet": {},
    "albert": {"embedding_size": 12},
    "modernbert": {"classifier_bias": True, "norm_bias": True, "local_attention": 4},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 6,
    }
    | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0},
}
"""model_type -> settings of an encoder beside `SIZES`."""
SCORED = [name for name in FAMILIES if FAMILIES[name].class_with("ForSequenceClassification")]
CASES = {
    **{f"{name}, texts": (name, TEXTS, "sequence") for name in SCORED},
    "llama, tags": ("llama", TAGS, "tokens"),
    "stablelm, tags": ("stablelm", TAGS, "tokens"),
    "bert, tags": ("bert", TAGS, "tokens"),
    "roberta, tags": ("roberta", TAGS, "tokens"),
    **{f"{name}, tags": (name, TAGS, "tokens") for name in ENCODERS},
}
FIRST = ("llama, texts", "gemma3_text, texts", "stablelm, tags", "roberta, tags")
MULTI = "multi_label_classification"


def saved(folder, model_type, auto, **settings):
    decoder = DECODER | SETTINGS.get(model_type, {})
    sizes = decoder if model_type in SETTINGS else SIZES | ENCODERS.get(model_type, {})
    config = transformers.AutoConfig.for_model(model_type, **{"num_labels": 3} | sizes | settings)
    model = randomized(lambda: auto.from_config(config))
    model.save_pretrained(folder)
    return model


def batch_of(labels, dtype):
    """Rows with padding, one of them with a padding token at the end of its text."""
    ids = np.random.default_rng(0).integers(2, 50, (3, 7)).astype(np.int32)
    mask = np.ones_like(ids)
    ids[0, 4:] = mask[0, 4:] = ids[1, 6] = 0
    labels = np.asarray(labels, dtype)
    types = np.zeros_like(ids)
    return dict(input_ids=ids, attention_mask=mask, token_type_ids=types, labels=labels) | {
        "weights": np.ones(3, np.float32)
    }


def compared(folder, model_type, auto, head, loss_fn, labels, dtype: type = np.int32, **settings):
    theirs = saved(folder, model_type, auto, **settings)
    loaded = load_model(folder, key=jax.random.key(0), head=head)
    assert not loaded.fresh and not loaded.notes
    batch = batch_of(labels, dtype)
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(batch["input_ids"]),
            attention_mask=torch.tensor(batch["attention_mask"]),
            labels=torch.tensor(batch["labels"]).long()
            if dtype == np.int32
            else torch.tensor(batch["labels"]),
        )
    arrays = {name: jnp.asarray(value) for name, value in batch.items()}
    total, _, logits = loss_fn.loss(loaded.model, arrays, EVAL)
    real = batch["attention_mask"] > 0 if head == "tokens" else slice(None)
    close = 1e-5 * np.abs(out.logits.numpy()).max()
    np.testing.assert_allclose(np.asarray(logits)[real], out.logits.numpy()[real], atol=close)
    assert float(total / loss_fn.count(arrays)) == pytest.approx(float(out.loss), rel=1e-5)


@pytest.mark.slow
# CI runs one of each way to find the head, the night every family.
@pytest.mark.parametrize(
    "name",
    [name if name in FIRST else pytest.param(name, marks=pytest.mark.nightly) for name in CASES],
)
def test_logits_and_loss_of_classes(name, tmp_path):
    model_type, auto, head = CASES[name]
    labels = [1, 2, 0]
    if head == "tokens":
        labels = np.random.default_rng(1).integers(0, 3, (3, 7))
        labels[:, ::3] = -100
        labels[0, 4:] = -100
    loss_fn = TAGGING if head == "tokens" else CLASSIFICATION
    compared(tmp_path, model_type, auto, head, loss_fn, labels)


@pytest.mark.slow
def test_logits_and_loss_of_several_labels_a_row(tmp_path):
    labels = [[1, 0, 1], [0, 0, 0], [1, 1, 0]]
    options = {"problem_type": MULTI}
    compared(tmp_path, "llama", TEXTS, "sequence", MULTI_LABEL, labels, np.float32, **options)


@pytest.mark.slow
def test_a_reward_model_has_one_output(tmp_path):
    labels = [0.5, -1.0, 2.0]
    compared(tmp_path, "llama", TEXTS, "sequence", REGRESSION, labels, np.float32, num_labels=1)


def test_another_task_s_head_is_left_out_of_a_decoder(tmp_path):
    saved(tmp_path, "llama", TAGS)
    loaded = load_model(tmp_path, key=jax.random.key(0), head="sequence", num_labels=3)
    assert loaded.fresh == ("score.weight",)
    (note,) = loaded.notes
    assert "score.bias" in note and note.endswith("; newly initialized: score")
