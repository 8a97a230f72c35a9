"""The model's own dropout in a run: in training only, by the key, however the step is cut."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goat_jax.adapters.methods import method_spec
from goat_jax.cli.arguments.config import override
from goat_jax.config.fields import config_from_json, flatten
from goat_jax.config.files import load_config
from goat_jax.config.run import ModelConfig, RunConfig
from goat_jax.data.tasks.registry import reviews
from goat_jax.errors import UserError
from goat_jax.injection.inject import inject
from goat_jax.models.encoder.model import Encoder
from goat_jax.models.load import random_model
from goat_jax.nn.dense import split_model
from goat_jax.training.checks import model_options
from goat_jax.training.losses import CLASSIFICATION
from goat_jax.training.state import RunState
from goat_jax.training.step import make_eval_step, make_train_step
from kinds import expect

HF = {
    "model_type": "roberta",
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
}
IDS = np.random.default_rng(0).integers(2, 20, (8, 6)).astype(np.int32)
BATCH = {
    "input_ids": IDS,
    "attention_mask": np.ones_like(IDS),
    "token_type_ids": np.zeros_like(IDS),
    "labels": (IDS[:, 0] % 2).astype(np.int32),
    "weights": np.ones(8, np.float32),
}
SPEC = method_spec("lora", total_rank=2)


def built(rate, remat="none", dtype=jnp.float32):
    """A model with LoRA, split; and a state at step 0."""
    model = expect(
        Encoder, random_model(HF, key=jax.random.key(0), dtype=dtype, dropout=rate).model
    )
    model.layers.remat = remat
    inject(model, SPEC, ["query"], key=jax.random.key(1), modules_to_save=["classifier.out_proj"])
    graph, trainable, base = split_model(model)
    return graph, RunState.create(trainable, optax.sgd(0.1), jax.random.key(2)), base


@functools.cache
def trainer(rate, remat="none", grad_accum_steps=1, dtype=jnp.float32):
    """A function that trains two steps and gives their losses."""
    graph, start, base = built(rate, remat, dtype)
    step = make_train_step(
        graph, CLASSIFICATION, optax.sgd(0.1), aux_weight=0.0, grad_accum_steps=grad_accum_steps
    )

    def losses():
        state, found = jax.tree.map(jnp.copy, start), []
        for _ in range(2):
            state, metrics = step(state, base, BATCH)
            found.append(float(metrics["task_loss"]))
            assert 0 < float(metrics["grad_norm"]) < 100
        return found

    return losses


@pytest.mark.slow
def test_training_changes_and_evaluation_does_not():
    sums = []
    for rate in (0.0, 0.3):
        graph, state, base = built(rate)
        step = make_eval_step(graph, CLASSIFICATION)
        sums.append(float(step(state.trainable, base, BATCH)[0]["loss"]))
    assert sums[0] == sums[1]
    plain = trainer(0.0)()
    assert plain[0] == pytest.approx(sums[0] / 8, abs=1e-6)
    assert abs(trainer(0.3)()[0] - plain[0]) > 1e-3


@pytest.mark.slow
def test_one_key_gives_one_loss_recomputed_or_not():
    found = trainer(0.3)()
    assert trainer(0.3)() == found
    assert trainer(0.3, remat="full")() == pytest.approx(found, rel=1e-5)


@pytest.mark.slow
def test_bfloat16_trains():
    assert trainer(0.3, dtype=jnp.bfloat16)() == pytest.approx(trainer(0.3)(), abs=0.05)


@pytest.mark.nightly  # that their keys differ is in test_micro_batches.py
def test_micro_batches_train():
    found, parts = trainer(0.3)(), trainer(0.3, grad_accum_steps=2)()
    assert found != parts == pytest.approx(found, abs=0.5)  # other masks


def test_it_is_a_field_of_the_model():
    config = RunConfig(ModelConfig("m", options={"pooling": "mean"}), reviews())
    assert "dropout" not in model_options(config)
    assert override(config, ["--model.dropout", "0.1"], "test").model.dropout == 0.1
    chosen = override(config, ["--model.dropout", "checkpoint"], "test")
    assert model_options(chosen) == model_options(config) | {"dropout": "checkpoint"}
    assert config_from_json(flatten(chosen)) == chosen
    older = flatten(config)
    del older["model.dropout"]
    assert config_from_json(older).model.dropout == 0.0


def test_the_papers_glue_has_robertas_own():
    config = load_config(str(Path(__file__).parents[2] / "configs" / "glue.py"))
    assert config.model.dropout == "checkpoint"


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan"), "half"])
def test_other_rates_are_refused_at_once(rate):
    with pytest.raises(UserError, match=rf"model.dropout {rate!r} is not valid"):
        ModelConfig("m", dropout=rate)


def test_it_is_no_option():
    with pytest.raises(UserError, match=r"give it as model.dropout"):
        ModelConfig("m", options={"dropout": 0.1})
