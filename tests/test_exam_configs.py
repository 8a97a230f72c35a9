"""The paper's runs of its language tables: every method's config is made, and some are traced."""

import json
from pathlib import Path

import pytest

from goat_jax.adapters.methods import METHODS
from goat_jax.config import load_config
from goat_jax.data.commonsense import FOLDERS
from goat_jax.data.exams import ExamTask

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
ROW = {
    "instruction": "Hot?\n\nAnswer format: true/false",
    "output": "the correct answer is true",
    "answer": "true",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files under the names of their publishers."""
    root = tmp_path_factory.mktemp("files")
    for parts in FOLDERS.values():
        (root / parts[0]).mkdir()
        (root / parts[0] / "test.json").write_text(json.dumps([ROW]))
    for name in ("commonsense_170k", "MetaMathQA-395K", "WizardLM_evol_instruct_70k", "question"):
        (root / f"{name}.json").write_text("[]")
    for name in ("CodeFeedback-Filtered-Instruction", "test"):
        (root / f"{name}.jsonl").write_text("")
    return root


def config_of(family, folder, **options):
    given = {"folder": folder} | options
    if family != "commonsense":
        given["questions"] = folder
    rest = ",".join(f"{name}={value}" for name, value in given.items())
    return load_config(f"{CONFIGS / family}.py:{rest}")


FAMILIES = ("commonsense", "math", "code", "chat")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_has_a_config(family, folder):
    for method in sorted(set(METHODS) - {"moelora"}):
        config = config_of(family, folder, method=method)
        config.adapter.spec()
        assert isinstance(config.task, ExamTask) and config.train.steps > 0


@pytest.mark.parametrize("task", FOLDERS)
def test_every_set_can_be_learnt_alone(task, folder):
    config = config_of("commonsense", folder, task=task)
    assert config.task.name == task and config.task.evaluation.endswith("test.json")


def test_sizes_are_the_papers(folder):
    expected = {
        "commonsense": (32, 64.0, 16, 3 * (170300 // 16), 1e-4, 0.1),
        "math": (8, 16.0, 32, 5 * (100_000 // 32), 2e-5, 1.0),
        "code": (8, 16.0, 32, 5 * (100_000 // 32), 2e-5, 1.0),
        "chat": (8, 16.0, 32, 5 * (52_000 // 32), 2e-5, 1.0),
    }
    for family, (rank, alpha, batch, steps, rate, eta) in expected.items():
        config = config_of(family, folder)
        spec = config.adapter.spec()
        assert (spec.total_rank, spec.alpha, spec.num_experts) == (rank, alpha, 8)
        assert (config.train.batch_size, config.train.steps) == (batch, steps)
        assert (config.optimizer.learning_rate, config.optimizer.warmup_steps) == (rate, 100)
        assert config.adapter.eta == eta and config.adapter.dropout == 0.05
        assert not config.task.packing  # a batch is so many rows of the set
    assert config_of("math", folder, learning_rate=1e-4).adapter.eta == 0.1
