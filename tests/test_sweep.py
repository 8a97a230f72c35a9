"""The points of a sweep and what is done with them; training is stood in for."""

import dataclasses
import json

import pytest

from goat_jax.cli import main
from goat_jax.commands import compare, sweep
from goat_jax.commands.sweep import config_at, grid, random_points, read_axis
from goat_jax.config import AdapterConfig, ModelConfig, RunConfig
from goat_jax.data.tasks import reviews
from goat_jax.errors import UserError
from goat_jax.run.together import Member, Outcome

BASE = RunConfig(ModelConfig("m"), reviews(), AdapterConfig("goat"))


@pytest.fixture
def trained(monkeypatch):
    """Stands in for training: accuracy is best at rho 5 and the larger rate."""
    calls = []

    def train(configs, at_once):
        for config in configs:
            rho, rate, seed = config.adapter.rho, config.optimizer.learning_rate, config.train.seed
            calls.append((rho, rate, at_once))
            score = 0.9 - 0.1 * (rho != 5) + 10 * rate
            after = {"accuracy": score + 0.001 * seed, "f1": 0.5, "loss": 1.0}
            yield Outcome(Member(seed, rate), (1.0,), {}, after, 10, 0.1, 1.0, 5)

    monkeypatch.setattr(compare, "train_together", train)
    return calls


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from goat_jax.config import *\nfrom goat_jax.data.tasks import reviews\n"
        "def get_config():\n"
        "    return RunConfig(ModelConfig('m'), reviews(), AdapterConfig('goat'))\n"
    )
    return str(file)


def test_a_grid_is_trained_once_and_told_best_first(trained, source, tmp_path, capsys):
    axes = ["adapter.rho=1,5", "optimizer.learning-rate=0.001,0.004"]
    out = ["--out", str(tmp_path / "out"), "--seeds", "0", "1", "--at-once", "4"]
    assert main(["sweep", "--config", source, "--over", *axes, *out]) == 0
    rates = [0.001, 0.001, 0.004, 0.004]
    assert trained == [(rho, rate, 4) for rho in (1, 5) for rate in rates]
    said = capsys.readouterr().out
    assert "best: adapter.rho=5 optimizer.learning_rate=0.004" in said
    rows = (tmp_path / "out" / "sweep.md").read_text().splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:4]] for row in rows]
    assert [cell[:2] for cell in cells] == [
        ["5", "0.004"],
        ["5", "0.001"],
        ["1", "0.004"],
        ["1", "0.001"],
    ]
    assert cells[0][2] == "0.9405 ± 0.0007"
    assert (tmp_path / "out" / "sweep.png").is_file()
    wider = ["adapter.rho=1,5,10", axes[1]]
    assert main(["sweep", "--config", source, "--over", *wider, *out]) == 0
    assert [call[0] for call in trained[8:]] == [10] * 4
    files = sorted(path.name for path in (tmp_path / "out").glob("*.json"))
    assert files == ["adapter.rho-1.json", "adapter.rho-10.json", "adapter.rho-5.json"]
    assert len(json.loads((tmp_path / "out" / files[0]).read_text())["runs"]) == 4


def test_points_that_share_a_step_are_trained_side_by_side(trained, source, tmp_path):
    axes = ["adapter.rho=1,5", "adapter.total-rank=8,16"]
    assert main(["sweep", "--config", source, "--over", *axes, "--out", str(tmp_path / "o")]) == 0
    assert [call[0] for call in trained] == [1, 5, 1, 5]  # of rank 8, then of rank 16


def test_other_settings_are_refused(trained, source, tmp_path, capsys):
    command = ["sweep", "--config", source, "--over", "adapter.rho=1", "--out", str(tmp_path / "o")]
    assert main(command) == 0
    assert main([*command, "--train.steps", "7"]) == 2
    assert "holds runs of another config (train.steps)" in capsys.readouterr().err


def test_every_point_is_checked_before_any_is_trained(trained, source, tmp_path):
    with pytest.raises(UserError, match="total rank 9 is not divisible"):
        sweep.sweep(source, ["adapter.total-rank=8,9"], out=tmp_path / "o")
    assert not trained


def test_fields_of_all_kinds_are_set():
    point = (("adapter.rho", 5.0), ("train.steps", 7), ("optimizer.learning_rate", 1))
    found = config_at(BASE, point)
    assert (found.adapter.rho, found.train.steps, found.optimizer.learning_rate) == (5.0, 7, 1.0)
    assert dataclasses.replace(found.train, steps=BASE.train.steps) == BASE.train


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (("train.stepz", 7), "no field 'train.stepz' .did you mean 'steps'"),
        (("train.steps", "many"), "train.steps='many' is not a int like"),
        (("train.steps", True), "train.steps=True is not a int like"),
        (("train", 7), "'train' is no field of the config with a value of its own"),
        (("adapter.rhoo", 7), "rhoo"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(point, message):
    with pytest.raises(UserError, match=message):
        config_at(BASE, (point,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adapter.rho", "not of the form FIELD=V"),
        ("adapter.rho=1,1", "a value is there twice"),
        ("train.seed=1,2", "no field to sweep over: --seeds gives it"),
        ("adapter.rho=5..1", "a range has two numbers, the smaller first"),
        ("adapter.rho=0..1:log", "above 0 if :log"),
        ("adapter.rho=a..b", "a range has two numbers"),
    ],
)
def test_an_axis_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        read_axis(text)


def test_a_grid_cannot_fill_a_range():
    with pytest.raises(UserError, match="give values, or --random N"):
        grid([read_axis("adapter.rho=1..5")])


def test_random_points_are_inside_and_go_on_as_they_began():
    axes = [read_axis("a=1..3"), read_axis("b=1e-5..1e-1:log"), read_axis("c=x,y")]
    few, many = random_points(axes, 5, seed=3), random_points(axes, 200, seed=3)
    assert many[:5] == few and len(set(many)) == 200
    a, b, c = zip(*([value for _, value in point] for point in many), strict=True)
    assert set(a) == {1, 2, 3} and set(c) == {"x", "y"}
    assert min(b) >= 1e-5 and max(b) <= 1e-1
    assert 0.35 < sum(value < 1e-3 for value in b) / 200 < 0.65  # the middle, by the logarithm
