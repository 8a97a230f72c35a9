"""The whole path of every task of the two tables, on tiny random models: rows, steps, scores."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

import official
from goat_jax.cli.arguments.config import read_config
from goat_jax.cli.verbs.evaluate import evaluate_run
from goat_jax.data.prepare.prepare import prepare
from goat_jax.data.tasks.benchmarks.vision import VISION
from goat_jax.data.tasks.image import ImageTask
from goat_jax.training.data import load_data
from goat_jax.training.trainer import fit
from kinds import expect
from paper_models import image_folder
from reproduction.sweep import run_experiment
from tiers import first_of_each

ROOT = Path(__file__).resolve().parents[2]


def trained(family, options, model, out, *overrides):
    """A short run of a config of the paper on a tiny model."""
    fixed = ["--model.path", str(model), "--model.dtype", "float32", "--train.steps", "2"]
    fixed += ["--train.batch-size", "2", "--train.eval-batch-size", "4", "--out", str(out)]
    fixed += ["--optimizer.warmup-steps", "0"]
    config = read_config(f"{ROOT}/configs/{family}.py:{options}", [*fixed, *overrides], "test")
    return config, fit(config, progress=False)


METHOD = {"rte": "goat", "dtd": "goat"}
"""A path does not depend on the method: one of each table is run with GOAT, others with LoRA."""

TEXT = (
    "--train.max-length",
    "32",
    "--train.num-buckets",
    "1",
    "--adapter.target-modules",
    ".*query",
)
GLUE_TASKS = [*official.GLUE_FILES, "mrpc"]


# Every archive is read in tests/data/prepare, and runs on real rows are below.
@pytest.mark.nightly
@pytest.mark.parametrize("task", GLUE_TASKS)
def test_glue_tasks_from_archives_to_scores(task, roberta, tmp_path, monkeypatch):
    official.unpinned(monkeypatch, task)
    archives = tmp_path / "archives"
    archives.mkdir()
    official.glue(archives, task)
    prepare(task, tmp_path / "sets", archives)
    options = f"task={task},method={METHOD.get(task, 'lora')},data_dir={tmp_path / 'sets'}"
    config, summary = trained("glue", options, roberta, tmp_path / "run", *TEXT)
    assert summary.step == 2
    assert set(summary.after) == {"loss", *config.task.metrics}
    assert 0 <= summary.after["accuracy"] <= 1
    if task == "mnli":
        both = [summary.after[f"accuracy_{part}"] for part in ("matched", "mismatched")]
        assert summary.after["accuracy"] == pytest.approx(sum(both) / 2)  # of equal numbers
        scores, _ = evaluate_run(tmp_path / "run", 2, None)
        assert scores == pytest.approx(summary.after)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize(("task", "metric"), [("cola", "matthews"), ("rte", ""), ("sst2", "")])
def test_glue_tasks_on_their_real_rows(task, metric, shared, roberta, tmp_path):
    options = f"task={task},method=lora,folder={shared / 'data' / 'glue'}"
    limits = ("--task.evaluation-limit", "64")
    config, summary = trained("glue", options, roberta, tmp_path / "run", *TEXT, *limits)
    assert metric in ("", config.task.metrics[0])
    rows = {"cola": "8,551", "rte": "2,490", "sst2": "6,920"}[task]
    assert summary.notes[0].startswith(f"{rows} training rows")


FOLDERS = ("eurosat", "resisc45")
"""Tasks whose splits are cut at numbers that tiny archives lack."""


# Every archive is read in tests/data/prepare; CI trains the one that is tested with GOAT.
@pytest.mark.slow
@pytest.mark.parametrize("task", first_of_each(VISION, lambda _: (), first=["dtd"]))
def test_image_tasks_from_archives_to_scores(task, clip, tmp_path, monkeypatch):
    if task in FOLDERS:
        data = f"folder={image_folder(tmp_path / 'images', task)}"
    else:
        official.unpinned(monkeypatch, task)
        archives = tmp_path / "archives"
        archives.mkdir()
        official.IMAGES[task](archives)
        prepare(task, tmp_path / "sets", archives)
        data = f"data_dir={tmp_path / 'sets'}"
    config, summary = trained(
        "vision", f"task={task},method={METHOD.get(task, 'lora')},{data}", clip, tmp_path / "run",
        "--task.image-size", "16", "--adapter.target-modules", ".*q_proj",
    )  # fmt: skip
    assert summary.step == 2 and 0 <= summary.after["accuracy"] <= 1
    assert summary.setup.inject_report.head_parameters == 0
    head = summary.setup.base["head"]["classifier"]["kernel"]
    assert head.shape[1] == len(expect(ImageTask, config.task).labels)
    norms = np.linalg.norm(np.asarray(head), axis=0)
    np.testing.assert_allclose(norms, 1, atol=1e-5)  # of class names, not of chance


def rows_file(path, rows):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def rte(tmp_path_factory):
    """A folder with six rows of RTE, two of them in both splits."""
    root = tmp_path_factory.mktemp("glue")
    (root / "rte").mkdir()
    rows = [{"sentence1": f"A{i}.", "sentence2": "B.", "label": i % 2} for i in range(6)]
    rows_file(root / "rte" / "train.jsonl.gz", rows[:4])
    rows_file(root / "rte" / "validation.jsonl.gz", rows[2:])
    return root


@pytest.mark.nightly  # compare's own is in test_vmapped_runs.py
def test_a_table_is_trained_once_and_goes_on(rte, roberta, tmp_path, capsys):
    arguments = ["--tasks", "rte", "--methods", "lora", "--seeds", "0", "1", "--quiet"]
    arguments += ["--out", str(tmp_path), "--options", f"folder={rte}"]
    arguments += ["--model.path", str(roberta), "--model.dtype", "float32", *TEXT]
    arguments += ["--train.steps", "2", "--train.batch-size", "2", "--task.evaluation-limit", "16"]
    arguments += ["--optimizer.warmup-steps", "0"]
    assert run_experiment("table4", arguments) == 0
    printed = capsys.readouterr().out
    assert "| lora" in printed and "±" in printed and "(84.47, " in printed
    assert not list(tmp_path.glob("**/figure*.png"))  # of one method there is nothing to compare
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*") if path.is_file()}
    assert run_experiment("table4", arguments) == 0
    assert capsys.readouterr().out == printed
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*") if path.is_file()}
    assert before == after


def test_rows_of_both_splits_are_noted(rte, roberta):
    options = f"task=rte,method=lora,folder={rte}"
    config = read_config(
        f"{ROOT}/configs/glue.py:{options}", ["--model.path", str(roberta), *TEXT], "test"
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=2))
    assert load_data(config).notes[-1] == "2 of 4 held-out rows are also in the training rows"
