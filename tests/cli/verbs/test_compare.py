"""Entries of a comparison, and the message about diverged runs; training is replaced by a stub."""

import json

import pytest

from goat_jax.analysis import run_results as results
from goat_jax.cli.main import main
from goat_jax.cli.verbs import compare
from goat_jax.training.vmapped_runs import RunResult, RunVariant


@pytest.fixture
def trained(monkeypatch):
    """Stands in for training: a run at a rate above 1 diverges."""
    calls = []

    def train(configs, runs_per_step):
        for config in configs:
            variant = RunVariant(config.train.seed, config.optimizer.learning_rate)
            calls.append((config.adapter.method, variant.seed, variant.learning_rate))
            diverged = 2 if variant.learning_rate > 1 else None
            after = {} if diverged else {"accuracy": 0.5, "f1": 0.5, "loss": 1.0}
            losses = (1.0,) if diverged else (1.0,) * config.train.steps
            yield RunResult(variant, losses, after, 10, 0.1, 1.0, 5, diverged)

    monkeypatch.setattr(results, "train_vmapped", train)
    monkeypatch.setattr(compare, "check_runs", lambda configs: None)
    return calls


@pytest.fixture
def command(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from goat_jax.config.run import *\nfrom goat_jax.data.tasks.registry import reviews\n"
        "def get_config(method='goat'):\n"
        "    return RunConfig(ModelConfig('m'), reviews(), AdapterConfig(method))\n"
    )
    return ["compare", "--config", str(file), "--out", str(tmp_path / "o"), "--methods"]


def test_a_diverged_run_is_marked(trained, command, tmp_path, capsys):
    assert main([*command, "goat,lora", "--rates", "0.1", "1e6", "--train.steps", "5"]) == 0
    rows = (tmp_path / "o" / "comparison.md").read_text().splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [cell[:2] for cell in cells] == [
        [m, r] for m in ("goat", "lora") for r in ("0.1", "1e+06")
    ]
    assert [cell[5:8] for cell in cells] == [["0.5000", "0.5000", "1.0000"], ["diverged"] * 3] * 2
    saved = json.loads((tmp_path / "o" / "goat.json").read_text(), parse_constant=pytest.fail)
    assert [run["diverged"] for run in saved["runs"]] == [None, 2]


def test_if_all_runs_diverged_it_says_so(trained, command, tmp_path, capsys):
    assert main([*command, "goat,lora", "--rates", "1e6"]) == 1
    assert "all runs diverged" in capsys.readouterr().err
    assert (tmp_path / "o" / "comparison.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["goat,goat"], "'goat' twice: give each method once"),
        (["goat", "goat:"], "'goat' twice: give each method once"),
        (["goat: ", "goat"], "twice: give each method once"),
        (["goat", "goat:rho=10"], "'goat' and 'goat:rho=10' twice"),
        (["goat:rho=5,eta=2", "goat:eta=2.0,rho=5"], "twice: give each method once"),
        (["lora:rho=3"], "no option 'rho'"),
        (["goat", "lora", "--seeds", "0", "0"], "--seeds 0 0: 0 is given twice"),
        (["goat", "--seeds", "-1"], "--seeds -1 is not valid"),
        (["goat", "--rates", "nan"], "--rates nan is not valid"),
        (["goat", "--rates", "0"], "--rates 0.0 is not valid"),
        (["goat", "--rates", "1e-3", "0.001"], "0.001 is given twice"),
        (["goat", "--runs-per-step", "-2"], "--runs-per-step -2 is not valid"),
    ],
)
def test_what_makes_no_sense_is_refused(trained, command, capsys, words, message):
    assert main([*command, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not trained


def test_a_killed_comparison_continues(trained, command, tmp_path, monkeypatch):
    seeds = ["--seeds", "0", "1", "2"]
    train = results.train_vmapped

    def killed(configs, runs_per_step):
        for number, result in enumerate(train(configs, runs_per_step)):
            if configs[0].adapter.method == "lora" and number == 1:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(results, "train_vmapped", killed)
    with pytest.raises(KeyboardInterrupt):
        main([*command, "goat,lora", *seeds])
    trained.clear()
    monkeypatch.setattr(results, "train_vmapped", train)
    assert main([*command, "goat,lora", *seeds]) == 0
    assert [(method, seed) for method, seed, _ in trained] == [("lora", 1), ("lora", 2)]


def test_a_file_of_other_settings_is_found_before_any_run(trained, command, tmp_path, capsys):
    assert main([*command, "lora"]) == 0
    trained.clear()
    assert main([*command, "goat,lora", "--train.steps", "7"]) == 2
    assert "holds runs of another config (train.steps)" in capsys.readouterr().err and not trained


def test_another_model_in_the_same_place_is_noticed(trained, command, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"one")
    words = [*command, "lora", "--model.path", str(tmp_path / "model")]
    assert main(words) == 0 == main([*words, "--train.log-every", "3"]) and len(trained) == 1
    weights.write_bytes(b"two")
    assert main(words) == 2 and len(trained) == 1
    assert "another config (files model.path" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"runs": 3}', '{"runs": [{}]}', "\x00"])
def test_a_file_that_holds_no_runs_is_said_in_one_line(trained, command, tmp_path, capsys, text):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "lora.json").write_text(text)
    assert main([*command, "lora"]) == 2 and not trained
    assert len(capsys.readouterr().err.splitlines()) == 1
