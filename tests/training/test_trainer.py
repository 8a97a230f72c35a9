"""The loop: learns, records, keeps the best, stops early, continues, and says what went wrong."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from goat_jax.errors import RunFailed, UserError
from goat_jax.training.checkpoints.checkpoint import Checkpoints
from goat_jax.training.checkpoints.run_dir import load_run
from goat_jax.training.logging.metrics_log import MetricsLog, read_records
from goat_jax.training.trainer import fit


def with_train(config, out, **train):
    return dataclasses.replace(
        config, out=str(out), train=dataclasses.replace(config.train, **train)
    )


@pytest.mark.slow
def test_learns_a_real_task(finished):
    _, summary = finished
    assert summary.stopped == "finished" and summary.step == 60
    assert summary.before is not None and summary.before["accuracy"] < 0.8
    assert summary.after["accuracy"] > 0.9


def test_records_what_happened(finished):
    _config, summary = finished
    train = read_records(summary.folder, "train")
    assert [record["step"] for record in train] == list(range(2, 61, 2))
    assert train[-1]["loss"] < train[0]["loss"]
    assert all(r["loss"] == pytest.approx(r["task_loss"] + r["aux_loss"], rel=1e-5) for r in train)
    assert 0 <= train[0]["padding_share"] < 0.7 and train[0]["tokens_per_second"] > 0
    # Hugging Face's rate: step 1 used rate 0, and step 3 is the second third of the warm-up.
    assert train[0]["learning_rate"] == pytest.approx(1e-2 / 3)
    evals = read_records(summary.folder, "eval")
    assert [record["step"] for record in evals] == [0, 10, 20, 30, 40, 50, 60]
    load = read_records(summary.folder, "load")[-1]["modules"]
    shares = np.array(load["bert.encoder.layer.{}.intermediate.dense"])
    assert shares.shape == (2, 8)
    np.testing.assert_allclose(shares.sum(-1), 1.0, atol=1e-4)


def test_the_best_checkpoint_is_kept(finished):
    _config, summary = finished
    checkpoints = Checkpoints(summary.folder, "accuracy", read_only=True)
    scores = {r["step"]: r["accuracy"] for r in read_records(summary.folder, "eval") if r["step"]}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert checkpoints.best_step() == summary.best_step == best
    checkpoints.close()


def test_run_json_gives_the_config_back(finished):
    config, summary = finished
    assert load_run(summary.folder)[0] == config


def test_a_finished_run_is_not_trained_again(finished):
    config, summary = finished
    before = (summary.folder / "metrics.jsonl").read_bytes()
    again = fit(config, progress=False)
    assert again.step == summary.step and again.after == summary.after
    assert (summary.folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_patience_stops_the_run(light, tmp_path):
    # A rate this small changes no prediction, so no evaluation is better than the first.
    frozen = dataclasses.replace(light.optimizer, learning_rate=1e-12)
    config = with_train(
        dataclasses.replace(light, optimizer=frozen),
        tmp_path / "run",
        early_stopping_patience=2,
        eval_every=3,
    )
    summary = fit(config, progress=False)
    assert summary.step == 9 and "no better accuracy for 2 evaluations" in summary.stopped


@pytest.mark.slow
def test_a_signal_saves_and_the_run_continues(light, tmp_path, light_finished, monkeypatch):
    config = with_train(light, tmp_path / "run")
    write = MetricsLog.write

    def interrupted(records, kind, step, **values):
        if (kind, step) == ("train", 4):
            os.kill(os.getpid(), signal.SIGTERM)
        return write(records, kind, step, **values)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", interrupted)
        summary = fit(config, progress=False)
    assert summary.stopped == "SIGTERM" and summary.step == 5
    again = fit(config, progress=False)
    assert again.stopped == "finished" and again.step == 30
    assert again.after["loss"] == light_finished[1].after["loss"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(light, tmp_path):
    config = with_train(light, tmp_path / "run", save_every=4)
    config = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e30, max_grad_norm=None),
    )
    with pytest.raises(RunFailed) as failure:
        fit(config, progress=False)
    message = str(failure.value)
    assert "\n" not in message and "bert.encoder.layer." in message and "1e+30" in message
    checkpoints = Checkpoints(tmp_path / "run", "accuracy", read_only=True)
    assert checkpoints.latest_step() in (None, 4)
    checkpoints.close()


def test_another_base_model_is_refused(finished, tmp_path, tiny):
    config, _summary = finished
    from safetensors.numpy import load_file, save_file

    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((tiny / "model" / name).read_bytes())
    tensors = load_file(tiny / "model" / "model.safetensors")
    tensors["classifier.bias"] = tensors["classifier.bias"] + 1e-3
    save_file(tensors, other / "model.safetensors")
    changed = dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(other)))
    with pytest.raises(UserError, match="another base model"):
        fit(changed, progress=False)


def test_other_settings_are_refused_by_name(finished):
    config, _ = finished
    changed = dataclasses.replace(
        config, adapter=dataclasses.replace(config.adapter, total_rank=16)
    )
    with pytest.raises(UserError, match=r"adapter.total_rank = None, now 16"):
        fit(changed, progress=False)


def test_a_changed_residual_is_refused(finished):
    config, summary = finished
    path = summary.folder / "run.json"
    whole = path.read_text()
    saved = json.loads(whole)
    name = "bert.encoder.layer.{}.intermediate.dense"
    saved["residual_norms"][name][1] *= 1 + 1e-4
    path.write_text(json.dumps(saved))
    with pytest.raises(UserError, match="rebuilt frozen kernel"):
        fit(config, progress=False)
    path.write_text(whole)


def test_a_foreign_folder_is_left_alone(config, tmp_path):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(UserError, match="holds other files"):
        fit(dataclasses.replace(config, out=str(tmp_path)), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.nightly  # CI's is in test_model_dropout.py
def test_bfloat16_trains_with_float32_adapters(two_modules, tmp_path):
    config = with_train(two_modules, tmp_path / "run")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    # jax's own attention mixes dtypes when it is lowered, so the strict rule is lifted here.
    with jax.numpy_dtype_promotion("standard"):
        summary = fit(config, progress=False)
    trainable = jax.tree.leaves(summary.setup.state.trainable)
    assert {str(leaf.dtype) for leaf in trainable} == {"float32"}
    assert summary.after["accuracy"] > 0.8


@pytest.mark.slow
def test_scores_that_are_not_finite_end_the_run(light, tmp_path):
    """The only step's loss and gradient are finite; the weights that it leaves are not."""
    train = dataclasses.replace(light.train, steps=1, eval_every=1, save_every=1)
    optimizer = dataclasses.replace(light.optimizer, learning_rate=1e30, warmup_steps=0)
    broken = dataclasses.replace(light, train=train, optimizer=optimizer, out=str(tmp_path / "r"))
    with pytest.raises(RunFailed, match="step 1: held-out scores that are not finite: loss; no "):
        fit(broken, progress=False)
