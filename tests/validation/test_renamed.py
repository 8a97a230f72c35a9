"""Former names of fields, through every door: an error names the new one, old files are read."""

import dataclasses
import json

import pytest

from goat_jax.adapters.methods import method_spec
from goat_jax.analysis.result_files import Key
from goat_jax.cli.arguments.config import override
from goat_jax.cli.main import main
from goat_jax.config.fields import (
    config_from_json,
    field_kinds,
    flatten,
    method_options,
    with_fields,
)
from goat_jax.config.files import load_config
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig
from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.data.tasks.registry import make_task
from goat_jax.errors import UserError
from goat_jax.interop.reference_code import read_published
from goat_jax.validation.renamed import RENAMED

QUESTIONS = {"sums": "a.jsonl"}
TASK = EvalTask("sums", "a.jsonl", "a.jsonl", eval="number", questions=QUESTIONS, loss_on="all")
CONFIG = RunConfig(ModelConfig("m"), TASK, AdapterConfig(options={"segments": "minor"}))

FIELDS = [name for name in RENAMED if "." in name] + ["watch.wandb", "watch.profile"]
OPTIONS = ["choice", "published", "base_edit", "course", "switch_after"]
NEW = {name: RENAMED.get(name) or name.replace("watch", "logging") for name in FIELDS}

each_field = pytest.mark.parametrize("name", FIELDS)
each_option = pytest.mark.parametrize("name", OPTIONS)


def now_called(name):
    return f"^{name} is now called {NEW[name]}$"


def test_new_names_exist_and_former_ones_do_not():
    known = {*field_kinds(CONFIG), *(f"adapter.{option}" for option in method_options())}
    assert known >= set(NEW.values()) and not known & set(NEW)
    assert {f"adapter.{name}" for name in OPTIONS} <= set(RENAMED)


@each_field
def test_a_flag_names_the_new_one(name):
    for words in ([f"--{name}", "x"], [f"--{name.replace('_', '-')}=x"]):
        with pytest.raises(UserError, match=now_called(name)):
            override(CONFIG, words, "goat-jax train")
    with pytest.raises(UserError, match=now_called(name)):
        with_fields(CONFIG, {name: 1})  # as a sweep does


def test_a_flag_without_a_value_names_the_new_one():
    message = "^watch.no_utilization is now called logging.no_utilization$"
    with pytest.raises(UserError, match=message):
        override(CONFIG, ["--watch.no-utilization"], "goat-jax train")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "runs/a", "--how", "loss"], "how is now called scoring"),
        (["sweep", "--config", "FILE", "--over", "out=a", "--at-once", "2"], "runs_per_step"),
    ],
)
def test_a_former_option_of_a_verb_names_the_new_one(words, message, tmp_path, capsys):
    file = tmp_path / "config.py"
    file.write_text(
        "from goat_jax.config.run import ModelConfig, RunConfig\n"
        "from goat_jax.data.tasks.registry import reviews\n"
        "def get_config():\n    return RunConfig(ModelConfig('m'), reviews())\n"
    )
    if words[0] == "sweep":
        words = [str(file) if word == "FILE" else word for word in words]
        words[words.index("out=a")] = "train.steps=1,2"
    assert main(words) == 2
    assert message in capsys.readouterr().err


@each_option
def test_a_method_option_names_the_new_one(name):
    for make in (
        lambda: method_spec("goat", **{name: 1}),
        lambda: AdapterConfig(options={name: 1}),
        lambda: AdapterConfig(defaults={name: 1}),
    ):
        with pytest.raises(UserError, match=now_called(f"adapter.{name}")):
            make()


CLASSES = {
    "adapter": "AdapterConfig",
    "optimizer": "OptimizerConfig",
    "train": "TrainConfig",
    "task": "EvalTask",
}


@pytest.mark.parametrize("name", [n for n in FIELDS if n.partition(".")[0] in CLASSES])
def test_a_config_file_that_makes_or_reads_the_field_names_the_new_one(name, tmp_path):
    group, _, field = name.partition(".")
    new = NEW[name].partition(".")[2]
    kind, file = CLASSES[group], tmp_path / "old.py"
    imports = (
        "from goat_jax.config.run import *\n"
        "from goat_jax.config.run import AdapterConfig, OptimizerConfig, TrainConfig\n"
        "from goat_jax.data.tasks.evaluation import EvalTask\n"
        "def get_config():\n"
    )
    for line in (f"{kind}({field}=1)", f"{kind}('a', 'b', 'c').{field}"):
        if line.endswith(")") or group == "task":
            file.write_text(f"{imports}    return {line}\n")
            with pytest.raises(UserError) as error:
                load_config(str(file))
            assert f"({field} is now called {new})" in str(error.value)
            assert "line 5" in str(error.value) and "\n" not in str(error.value)


def test_options_of_a_config_file_and_of_a_task_name_the_new_one(tmp_path):
    file = tmp_path / "config.py"
    file.write_text("def get_config(grad_accum_steps: int = 1):\n    return None\n")
    with pytest.raises(UserError, match="accumulate is now called grad_accum_steps"):
        load_config(f"{file}:accumulate=2")
    with pytest.raises(UserError, match="learn is now called loss_on"):
        make_task("language_files", train="a", evaluation="b", learn="all")


def old(values):
    """Values by dotted names, as versions before the renaming wrote them."""
    former = {new: name for name, new in NEW.items()} | {"logging.utilization": "watch.utilization"}
    found = {former.get(name, name): value for name, value in values.items()}
    return found | {"task.kind": "exam"}


def test_run_json_of_an_earlier_version_is_read_as_it_was_meant():
    config = dataclasses.replace(
        CONFIG, adapter=AdapterConfig(target_modules=("up",), options={"segments": "minor"})
    )
    written = json.loads(json.dumps(old(flatten(config))))
    written["adapter.options"] = {"choice": "minor"}
    assert "adapter.targets" in written and "watch.wandb" in written and "task.way" in written
    assert config_from_json(written) == config


def test_a_result_of_an_earlier_version_has_the_same_settings():
    key = Key.of(CONFIG)
    saved = dataclasses.asdict(key) | {"config": old(dict(key.config))}
    assert saved["config"] != key.config and key.changed(saved) == []


def test_an_exported_adapter_of_an_earlier_version_is_read(tmp_path, monkeypatch):
    import numpy as np

    from goat_jax.interop import reference_code

    tensors = {
        "up.lora_A.0.weight": np.zeros((2, 4)),
        "up.lora_B.0.weight": np.zeros((3, 2)),
        "up.lora_gating.weight": np.zeros((1, 4)),
    }
    monkeypatch.setattr(reference_code, "read_tensors", lambda source: tensors)
    settings = {"method": "goat", "choice": "minor", "published": True, "options": {"course": "x"}}
    found = read_published(tmp_path, {"settings": settings}, None).options
    assert (found["segments"], found["reference_code"]) == ("minor", True)
    assert found["options"] == {"phases": "x"} and found["target_modules"] == ("up",)
