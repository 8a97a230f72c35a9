"""Cheap checks come before costly ones: rows and names before weights and tokenizers."""

import dataclasses
import json
import types
from types import SimpleNamespace
from typing import Any

import pytest

from goat_jax.data.pipeline.tokenize import LateTokenizer
from goat_jax.errors import UserError
from goat_jax.training import checks, setup
from goat_jax.training import data as data_module
from goat_jax.training import task_types as problems
from goat_jax.training.data import load_data, load_rows
from goat_jax.training.setup import build
from goat_jax.training.trainer import fit


@pytest.fixture
def no_model(monkeypatch):
    """Fails if a model is looked for or loaded."""
    used = {
        "find_model": (checks, data_module, setup),
        "load_model": (setup,),
        "load_tokenizer": (data_module,),
    }
    for name, modules in used.items():
        for module in modules:
            monkeypatch.setattr(
                module, name, lambda *_, name=name, **__: pytest.fail(f"{name} ran")
            )


@pytest.fixture
def no_weights(monkeypatch):
    """Fails if weights are loaded."""
    monkeypatch.setattr(setup, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))


def replaced(config, part, **changes):
    return dataclasses.replace(
        config, **{part: dataclasses.replace(getattr(config, part), **changes)}
    )


@pytest.mark.parametrize("column", ["text", "label"])
@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_a_misspelt_column_is_found_before_a_model_is_looked_for(
    config, tmp_path, no_model, column, split
):
    task = config.task
    good, bad = {"sentence": "fine", "label": 1}, {"sentence": "fine", "label": 1}
    bad["lable" if column == "label" else "sentense"] = bad.pop(
        "label" if column == "label" else "sentence"
    )
    sources = {}
    for name in ("train", "evaluation"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(bad if name == split else good) + "\n")
        sources[name] = str(path)
    run = replaced(config, "task", **sources)
    assert task.label == "label"
    with pytest.raises(UserError, match=rf"{split}\.jsonl: row 1: no value in column"):
        fit(dataclasses.replace(run, out=str(tmp_path / "run")), progress=False)
    assert not (tmp_path / "run" / "run.json").exists()


WRONG = {
    "target": (
        "adapter",
        {"target_modules": ["querry"]},
        "target 'querry' matches no linear layer",
    ),
    "module to train": (
        "adapter",
        {"modules_to_save": ("poler",)},
        "module to train 'poler' matches no",
    ),
    "rank": (
        "adapter",
        {"target_modules": r".*query", "total_rank": 72},
        "no module could be adapted: .*total rank 72 is above its smaller side",
    ),
    "model option": ("model", {"options": {"poolin": "mean"}}, "poolin"),
    "length": ("train", {"max_length": 41}, "max_length 41 does not fit this tokenizer"),
    "mesh": ("train", {"grad_accum_steps": 3}, "grad_accum_steps"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_config_s_names_mean_is_found_before_weights_are_loaded(
    config, tmp_path, no_weights, what
):
    part, changes, message = WRONG[what]
    with pytest.raises(UserError, match=message):
        fit(replaced(dataclasses.replace(config, out=str(tmp_path)), part, **changes))


def test_tokens_are_checked_before_weights_are_loaded(config, tmp_path, no_weights, monkeypatch):
    load_rows(config, "evaluation")
    monkeypatch.setattr(data_module, "check", lambda config: SimpleNamespace(vocab_size=5))
    with pytest.raises(UserError, match="but the model has 5"):
        load_rows(config, "evaluation")


def test_rows_are_read_once_for_data_and_for_a_start_from_gradients(
    config, monkeypatch, no_weights
):
    reads = []
    load = problems.load_examples

    def counted(task, split):
        reads.append(split)
        return load(task, split)

    monkeypatch.setattr(problems, "load_examples", counted)
    config = replaced(config, "adapter", method="lora_ga")
    data = load_data(config)

    class Stop(Exception):
        """Ends the start where the gradients would be computed."""

    def gradients(model, loss_fn, batches, target_modules):
        assert next(batches)["input_ids"].shape == next(data.train)["input_ids"].shape
        raise Stop

    monkeypatch.setattr(setup, "kernel_gradients", gradients)
    loaded: Any = types.SimpleNamespace(model=None)
    monkeypatch.setattr(setup, "set_computation", lambda *_: None)
    with pytest.raises(Stop):
        setup._gradients(config, config.adapter.spec(), loaded, data)
    assert reads == ["train", "evaluation"]


def test_a_late_tokenizer_is_loaded_once():
    loads = []

    def load() -> Any:
        loads.append(1)
        return {"a": 1}

    tokenizer = LateTokenizer(load)
    assert not loads
    assert list(tokenizer.keys()) == ["a"] and tokenizer.get("a") == 1 and loads == [1]


def test_a_start_without_data_checks_for_itself(config, no_weights):
    with pytest.raises(UserError, match="matches no linear layer"):
        build(replaced(config, "adapter", target_modules=["querry"]))
