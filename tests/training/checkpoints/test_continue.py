"""A continued run is the same run: its rows are compared, and it may become longer."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from goat_jax.data.pipeline.fingerprint import fingerprint
from goat_jax.data.pipeline.tokenize import Encoded
from goat_jax.errors import UserError
from goat_jax.training.checkpoints.run_dir import _check_length
from goat_jax.training.logging.metrics_log import read_records
from goat_jax.training.trainer import fit


def changed(config, **parts):
    """The config with fields of its parts: changed(config, train={"steps": 4})."""
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **fields)
            for name, fields in parts.items()
        },
    )


@pytest.fixture(scope="module")
def short(config, tmp_path_factory):
    """A run of 6 steps at a constant rate on rows of its own: config and folder."""
    root = tmp_path_factory.mktemp("short")
    rows = shutil.copy(config.task.train, root / "train.jsonl")
    config = changed(
        dataclasses.replace(config, out=str(root / "run")),
        task={"train": str(rows)},
        adapter={"method": "lora", "target_modules": r"bert\.encoder\..*query"},
        optimizer={"schedule": "constant", "warmup_steps": 2},
        train={"steps": 6, "eval_every": 100, "log_every": 1},
    )
    fit(config, progress=False)
    return config


@pytest.fixture
def again(short, tmp_path):
    """A copy of the run, and of its rows under their own name."""
    shutil.copytree(short.out, tmp_path / "run")
    return dataclasses.replace(short, out=str(tmp_path / "run"))


def run_json(config):
    return json.loads((Path(config.out) / "run.json").read_text())


def losses(config):
    return [(r["step"], r["loss"]) for r in read_records(config.out, "train")]


@pytest.mark.slow
def test_a_finished_run_becomes_longer(short, again, tmp_path):
    longer = changed(again, train={"steps": 9})
    summary = fit(longer, progress=False)
    assert (summary.step, summary.stopped) == (9, "finished")
    at_once = dataclasses.replace(longer, out=str(tmp_path / "at_once"))
    assert fit(at_once, progress=False).after == summary.after
    assert losses(longer) == losses(at_once)
    assert run_json(longer)["config"]["train.steps"] == 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"optimizer": {"schedule": "cosine"}}, "the cosine schedule depends on it"),
        ({"optimizer": {"schedule": "linear"}}, "the linear schedule depends on it"),
        ({"adapter": {"method": "adalora"}}, "the method's schedule depends on train.steps"),
    ],
    ids=["cosine", "linear", "planned-ranks"],
)
def test_where_the_length_matters_it_stays(short, tmp_path, parts, said):
    before = changed(short, **parts)
    _check_length(tmp_path, before, before)
    with pytest.raises(UserError) as refused:
        _check_length(tmp_path, before, changed(before, train={"steps": 9}))
    assert "train.steps = 6, now 9" in str(refused.value) and said in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("length", [{"steps": 3}, {"steps": None, "epochs": 0.3}], ids=str)
def test_a_run_does_not_become_shorter_than_it_is(short, length):
    with pytest.raises(UserError, match=r"train.steps = 6, now 3 \(6 steps are done\)"):
        fit(changed(short, train=length), progress=False)


@pytest.mark.slow
def test_epochs_continue_as_the_steps_that_run_json_keeps(short, again):
    by_epochs = changed(again, train={"steps": None, "epochs": 0.6})  # ten batches an epoch
    assert fit(by_epochs, progress=False).step == 6
    assert losses(again) == losses(short) and run_json(again) == run_json(short)
    longer = changed(by_epochs, train={"epochs": 0.8})
    assert fit(longer, progress=False).step == 8
    saved = run_json(longer)["config"]
    assert (saved["train.steps"], saved["train.epochs"]) == (8, None)


@pytest.mark.slow
def test_other_rows_stop_a_run_unless_they_are_meant(short, again):
    path = Path(short.task.train)
    whole = path.read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    rows[7]["label"] = 1 - rows[7]["label"]
    longer = changed(again, train={"steps": 7})
    try:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(UserError) as refused:
            fit(longer, progress=False)
        fit(changed(longer, train={"changed_rows": "accept"}), progress=False)
        fit(longer, progress=False)  # the rows are known by now
    finally:
        path.write_text(whole)
    message = str(refused.value)
    assert "the training rows of" in message and "160 rows then, 160 now" in message
    assert "--train.changed-rows accept" in message and "\n" not in message
    saved = run_json(again)
    assert saved["earlier_rows"][0]["until_step"] == 6
    assert saved["earlier_rows"][0]["training"] != saved["rows"]["training"]
    assert saved["earlier_rows"][0]["held-out"] == saved["rows"]["held-out"]


@pytest.mark.slow
def test_a_run_that_an_older_version_began_goes_on(again):
    saved = run_json(again)
    del saved["rows"]
    (Path(again.out) / "run.json").write_text(json.dumps(saved))
    assert fit(again, progress=False).step == 6
    assert "sha256" in run_json(again)["rows"]["training"]


def encoded(ids, **fields):
    rows = [np.array(each, np.int32) for each in ids]
    lengths = np.array([len(each) for each in rows], np.int32)
    return Encoded(rows, None, lengths, **{"labels": np.arange(len(rows)), **fields})


def test_a_fingerprint_sees_order_borders_labels_and_parts():
    kinds = [
        encoded([[4, 5], [6]]),
        encoded([[4], [5, 6]]),
        encoded([[6], [4, 5]]),
        encoded([[4, 5], [6]], labels=np.array([1, 0])),
        encoded([[4, 5], [6]], parts={"a": np.ones(2, np.float32)}),
        encoded([[4, 5], [6]], tasks={"task_ids": np.ones(2, np.int32)}),
        encoded([[4, 5]]),
    ]
    assert len({fingerprint(rows) for rows in kinds}) == len(kinds)
    assert fingerprint(kinds[0]) == fingerprint(encoded([[4, 5], [6]]))
