"""Names of other libraries through every door: the error names ours, as it is typed there."""

import pytest

from goat_jax import method_spec
from goat_jax.cli.main import main
from goat_jax.cli.parser import VERBS
from goat_jax.config.fields import field_kinds, with_fields
from goat_jax.config.guess import config_for
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig
from goat_jax.data.tasks.registry import reviews
from goat_jax.errors import UserError
from goat_jax.validation.other_names import OTHER_NAMES, OTHER_VERBS

CONFIG = RunConfig(ModelConfig("m"), reviews())
OPTIONS = {"model", "data", "held_out", "step", "max_new_tokens", "prompt"}

FILE = """
from goat_jax.config.run import AdapterConfig, ModelConfig, OptimizerConfig, RunConfig
from goat_jax.data.tasks.registry import reviews
def get_config(rank: int = 8):
    return RunConfig(ModelConfig("m"), reviews(), {})
"""


@pytest.fixture
def config_file(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(FILE.format("AdapterConfig(total_rank=rank)"))
    return str(file)


def error_of(capsys, *words):
    assert main(words) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_every_name_leads_to_a_field_or_option_and_is_neither_itself():
    known = {*field_kinds(CONFIG), *OPTIONS, "batch_size", "task.loss_on"}
    for name, meanings in OTHER_NAMES.items():
        assert set(meanings) <= known, name
        assert name not in known or name in meanings, name
    assert set(OTHER_VERBS.values()) <= set(VERBS) and not set(OTHER_VERBS) & set(VERBS)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("--lr 1e-4", "--optimizer.learning-rate 1e-4"),
        ("--optimizer.lr=1e-4", "--optimizer.learning-rate 1e-4"),
        ("--learning_rate 1e-4", "--optimizer.learning-rate 1e-4"),
        ("--r 16", "--adapter.total-rank 16"),
        ("--adapter.rank 16", "--adapter.total-rank 16"),
        ("--adapter.lora-alpha 32", "--adapter.alpha 32"),
        ("--adapter.lora_dropout 0.1", "--adapter.dropout 0.1"),
        ("--lora-target-modules query value", "--adapter.target-modules query value"),
        ("--batch-size 8", "--train.batch-size 8"),
        ("--per_device_train_batch_size 8", "--train.batch-size 8"),
        ("--gradient_accumulation_steps 4", "--train.grad-accum-steps 4"),
        ("--max_seq_length 512", "--train.max-length 512"),
        ("--seed 3", "--train.seed 3"),
        ("--output_dir runs/x", "--out runs/x"),
        ("--num_train_epochs 3", "--train.epochs 3"),
        ("--epochs 3", "--train.epochs 3"),
        ("--use_rslora true", "--adapter.method? It takes a text"),
        ("--bf16", "--model.dtype? It takes one of float32, bfloat16"),
        ("--trian.steps 5", "--train.steps 5"),
        ("--optimizer.batch_size 4", "--train.batch-size 4"),
        ("--quite", "--quiet"),
    ],
)
def test_the_command_line_names_the_flag_with_the_value(words, meant, config_file, capsys):
    line = error_of(capsys, "train", "--config", config_file, *words.split())
    assert f"{words.replace('=', ' ').split()[0]} is not a field (did you mean {meant}" in line


def test_a_name_like_no_other_is_only_refused(config_file, capsys):
    line = error_of(capsys, "train", "--config", config_file, "--xyzzy", "3")
    assert "--xyzzy is not a field: goat-jax train --config FILE --help-fields lists them" in line


def test_without_a_config_epochs_are_meant(tmp_path, capsys):
    table = tmp_path / "a.csv"
    table.write_text("text,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(40)))
    words = ["train", "--model", "roberta-base", "--data", str(table)]
    line = error_of(capsys, *words, "--num_train_epochs", "2")
    assert "--num_train_epochs is not a field (did you mean --train.epochs 2?)" in line
    for name, value, meant in [
        ("lr", 1e-4, '**{"optimizer.learning_rate": 0.0001}'),
        ("num_train_epochs", 2, '**{"train.epochs": 2}'),
        ("steps", 5, '**{"train.steps": 5}'),
    ]:
        with pytest.raises(UserError) as error:
            config_for("roberta-base", table, **{name: value})
        assert str(error.value) == f"there is no argument {name!r} (did you mean {meant}?)"


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ("AdapterConfig(r=8)", "(r is adapter.total_rank here)"),
        ("AdapterConfig(lora_alpha=8)", "(lora_alpha is adapter.alpha here)"),
        ("AdapterConfig(), OptimizerConfig(lr=1)", "(lr is optimizer.learning_rate here)"),
        ("AdapterConfig(), output_dir='x'", "(output_dir is out here)"),
    ],
)
def test_a_config_file_names_ours(call, line, tmp_path, capsys):
    file = tmp_path / "config.py"
    file.write_text(FILE.format(call))
    assert line in error_of(capsys, "train", "--config", str(file))


@pytest.mark.parametrize(
    ("option", "hint"),
    [("lora_r=8", "did you mean 'rank'?"), ("lr=1", "lr is optimizer.learning_rate here")],
)
def test_an_option_of_a_config_file_names_ours(option, hint, config_file, capsys):
    assert hint in error_of(capsys, "train", "--config", f"{config_file}:{option}")


@pytest.mark.parametrize(
    "make",
    [
        lambda: method_spec("goat", r=8),
        lambda: AdapterConfig(options={"r": 8}),
        lambda: with_fields(CONFIG, {"adapter.r": 8}),
    ],
    ids=["spec", "options", "sweep"],
)
def test_python_names_ours(make):
    with pytest.raises(UserError, match=r"did you mean '(adapter\.)?total_rank'"):
        make()


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("trian", "did you mean 'goat-jax train'?"),
        ("finetune --model x", "did you mean 'goat-jax train'?"),
        ("eval runs/a", "did you mean 'goat-jax evaluate'?"),
        ("merge runs/a", "did you mean 'goat-jax export'?"),
        ("xyzzy", "there is no verb 'xyzzy': goat-jax --help lists them"),
        ("predict runs/a --output b.csv", "did you mean --out b.csv?"),
        ("predict runs/a --per_device_eval_batch_size 8", "did you mean --batch-size 8?"),
        ("generate runs/a --max-tokens 8", "did you mean --max-new-tokens 8?"),
        ("plot runs/a --checkpoint=3", "did you mean --step 3?"),
    ],
)
def test_verbs_and_their_options(words, meant, capsys):
    assert meant in error_of(capsys, *words.split())
