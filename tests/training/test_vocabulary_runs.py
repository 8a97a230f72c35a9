"""Runs that add tokens or adapt the vocabulary: continued to the bit, and the same on a mesh."""

import dataclasses
import json

import chex
import numpy as np
import pytest

from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import language_files
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.sharding.config import MeshConfig
from goat_jax.training.checkpoints.restore import restore_run
from goat_jax.training.logging.metrics_log import read_records
from goat_jax.training.trainer import fit
from tiny_language import COLOURS, WORDS, write_model

pytestmark = pytest.mark.slow

TOKENS = ("<think>,</think>",)
ADAPTERS = {
    "tokens": {"target_modules": ("q_proj",), "trainable_token_indices": (2,)},
    "adapters": {"target_modules": ("embed_tokens", "lm_head", "q_proj")},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Six steps of rows with two tokens that the model does not know."""
    root = tmp_path_factory.mktemp("vocabulary")
    write_model(root / "model")
    pairs = [
        {"prompt": f"the {thing} is <think>", "completion": f"{colour} </think>"}
        for thing, colour in COLOURS.items()
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs * 8))
    rows = str(root / "rows.jsonl")
    return RunConfig(
        ModelConfig(str(root / "model")),
        language_files(rows, rows),
        AdapterConfig("lora", modules_to_save=(), total_rank=2, dropout=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=0),
        train=TrainConfig(
            steps=6, batch_size=8, max_length=12, num_buckets=1, eval_batch_size=8, log_every=1
        ),
        out=str(root),
    )


def run(config, kind, out, *, steps=6, mesh=(1, 1, 1)):
    """Trains, or continues, a run of one of `ADAPTERS`."""
    words = TOKENS if kind == "tokens" else ()
    return fit(
        dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, add_tokens=words),
            adapter=dataclasses.replace(config.adapter, **ADAPTERS[kind]),
            train=dataclasses.replace(config.train, steps=steps),
            mesh=MeshConfig(*mesh),
            out=str(out),
        ),
        progress=False,
    )


def losses(folder):
    return [record["loss"] for record in read_records(folder, "train")]


def test_new_tokens_are_continued_to_the_bit(config, tmp_path):
    run(config, "tokens", tmp_path / "whole")
    run(config, "tokens", tmp_path / "parts", steps=3)
    run(config, "tokens", tmp_path / "parts")
    one, other = (restore_run(tmp_path / name, None).state for name in ("whole", "parts"))
    chex.assert_trees_all_equal(one.trainable, other.trainable)
    chex.assert_trees_all_equal(one.opt_state, other.opt_state)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    rows = np.asarray(one.trainable["head"]["embeddings"]["rows"]["values"])
    assert rows.shape == (3, 32)  # and both of the new ones have moved apart from their mean
    assert np.abs(rows[1] - rows[2]).max() > 1e-3 and len(WORDS) == 18


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        ("tokens", (2, 2, 2)),
        pytest.param("adapters", (2, 2, 2), marks=pytest.mark.nightly),
        pytest.param("tokens", (1, 8, 1), marks=pytest.mark.nightly),
        pytest.param("adapters", (1, 1, 8), marks=pytest.mark.nightly),
    ],
)
def test_a_mesh_changes_no_loss(config, kind, mesh, tmp_path):
    run(config, kind, tmp_path / "one")
    run(config, kind, tmp_path / "mesh", mesh=mesh)
    alone = losses(tmp_path / "one")
    assert len(set(alone)) == 6
    np.testing.assert_allclose(losses(tmp_path / "mesh"), alone, rtol=1e-5)
