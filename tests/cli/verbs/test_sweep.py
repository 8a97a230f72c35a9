"""The points of a sweep, and their runs and results; training is replaced by a stub."""

import dataclasses
import json

import pytest

from goat_jax.analysis import run_results as results
from goat_jax.cli.main import main
from goat_jax.cli.verbs import sweep
from goat_jax.cli.verbs.sweep import config_at, grid, random_points, read_axis
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig
from goat_jax.data.tasks.registry import reviews
from goat_jax.errors import UserError
from goat_jax.training.vmapped_runs import RunResult, RunVariant

BASE = RunConfig(ModelConfig("m"), reviews(), AdapterConfig("goat"))


@pytest.fixture
def trained(monkeypatch):
    """Stands in for training: accuracy is best at rho 5 and the larger rate."""
    calls = []

    def train(configs, runs_per_step):
        for config in configs:
            rho, rate, seed = config.adapter.rho, config.optimizer.learning_rate, config.train.seed
            calls.append((rho, rate, runs_per_step))
            score = 0.9 - 0.1 * (rho != 5) + 10 * rate
            after = {"accuracy": score + 0.001 * seed, "f1": 0.5, "loss": 1.0}
            diverged = 1 if rate > 1 or seed == 13 else None
            after, losses = ({}, ()) if diverged else (after, (1.0,))
            yield RunResult(RunVariant(seed, rate), losses, after, 10, 0.1, 1.0, 5, diverged)

    monkeypatch.setattr(results, "train_vmapped", train)
    return calls


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from goat_jax.config.run import *\nfrom goat_jax.data.tasks.registry import reviews\n"
        "def get_config():\n"
        "    return RunConfig(ModelConfig('m'), reviews(), AdapterConfig('goat'))\n"
    )
    return str(file)


def test_a_grid_is_trained_once_and_told_best_first(trained, source, tmp_path, capsys):
    axes = ["adapter.rho=1,5", "optimizer.learning-rate=0.001,0.004"]
    out = ["--out", str(tmp_path / "out"), "--seeds", "0", "1", "--runs-per-step", "4"]
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


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_a_diverged_point_is_last_and_never_best(trained, source, tmp_path, capsys, metric):
    axes = ["optimizer.learning-rate=0.001,1e30,0.004,1e6"]
    command = ["sweep", "--config", source, "--over", *axes, "--out", str(tmp_path / "o")]
    assert main([*command, "--train.best-by", metric]) == 0
    rows = (tmp_path / "o" / "sweep.md").read_text().splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:4]] for row in rows]
    best = ["0.004", "0.001"] if metric == "accuracy" else ["0.001", "0.004"]  # a tie of losses
    assert [cell[0] for cell in cells] == [*best, "1e+30", "1000000.0"]
    assert [cell[1] for cell in cells[2:]] == ["diverged", "diverged"]
    assert f"best: optimizer.learning_rate={best[0]}\n" in capsys.readouterr().out
    saved = json.loads((tmp_path / "o" / "point.json").read_text(), parse_constant=pytest.fail)
    assert [run["diverged"] for run in saved["runs"]] == [None, 1, None, 1]


def test_a_point_with_some_diverged_runs_is_below_all_others(trained, source, tmp_path, capsys):
    command = ["sweep", "--config", source, "--over", "adapter.rho=1,5"]
    assert main([*command, "--seeds", "0", "13", "--out", str(tmp_path / "o")]) == 0
    said = capsys.readouterr().out
    assert "best:" not in said and "some runs diverged at every point" in said
    assert said.count("(1 of 2 diverged)") == 3 * 2  # accuracy, f1 and loss of two points


def test_if_all_runs_diverged_it_says_so(trained, source, tmp_path, capsys):
    command = ["sweep", "--config", source, "--over", "optimizer.learning-rate=1e6,1e30"]
    assert main([*command, "--out", str(tmp_path / "o")]) == 1
    printed = capsys.readouterr()
    assert "all runs diverged" in printed.err and "best:" not in printed.out
    assert (tmp_path / "o" / "sweep.md").is_file()


def test_a_killed_sweep_continues(trained, source, tmp_path, monkeypatch):
    command = ["sweep", "--config", source, "--over", "adapter.rho=1,5,10", "--seeds", "0", "1"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    whole, train = list(trained), results.train_vmapped
    trained.clear()

    def killed(configs, runs_per_step):
        for number, result in enumerate(train(configs, runs_per_step)):
            if number == 3:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(results, "train_vmapped", killed)
    with pytest.raises(KeyboardInterrupt):
        main([*command, "--out", str(tmp_path / "killed")])
    assert len(trained) == 4  # the fourth is lost
    monkeypatch.setattr(results, "train_vmapped", train)
    assert main([*command, "--out", str(tmp_path / "killed")]) == 0
    assert trained[4:] == whole[3:]
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_names_of_files_are_bounded(trained, source, tmp_path):
    fields = ["rho", "eta", "alpha", "dropout", "aux_weight"]
    axes = [f"adapter.{field}=0.1234567890123" for field in fields]
    axes += [f"train.{field}=7" for field in ["steps", "eval_every", "save_every", "log_every"]]
    axes += [f"optimizer.{field}=0.5" for field in ["beta1", "beta2", "epsilon", "weight_decay"]]
    assert len(axes) == 13
    assert main(["sweep", "--config", source, "--over", *axes, "--out", str(tmp_path / "o")]) == 0
    (path,) = (tmp_path / "o").glob("*.json")
    assert len(path.name) <= 130


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


def test_a_trace_of_no_step_is_refused():
    with pytest.raises(UserError, match="'100:200' traces no step: the run has 12 steps"):
        config_at(BASE, (("train.steps", 12), ("logging.profile", "100:200")))
    assert config_at(BASE, (("train.steps", 12), ("logging.profile", "12:200"))).train.steps == 12


def test_fields_of_all_kinds_are_set():
    point = (("adapter.rho", 5.0), ("train.steps", 7), ("optimizer.learning_rate", 1))
    found = config_at(BASE, point)
    assert (found.adapter.rho, found.train.steps, found.optimizer.learning_rate) == (5.0, 7, 1.0)
    assert dataclasses.replace(found.train, steps=BASE.train.steps) == BASE.train


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (("train.stepz", 7), "no field 'train.stepz' .did you mean 'train.steps'"),
        (("train.steps", "many"), "train.steps 'many' is not valid: give a whole number"),
        (("train.steps", True), "train.steps True is not valid: give a whole number"),
        (("train", 7), "train is a group of fields: give one of them by name"),
        (("adapter.rhoo", 7), "rhoo"),
        (("adapter.rho", "a"), "adapter.rho 'a' is not valid: give a number"),
        (("adapter.total_rank", 8.5), "is not valid: give a whole number"),
        (("adapter.scale", 3), "is not valid: give a text"),
        (("adapter.target_modules", True), "is not valid: give a text"),
        (("train.early_stopping_patience", "a"), "is not valid: give a whole number"),
        (("train", None), "train is a group of fields"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(point, message):
    with pytest.raises(UserError, match=message):
        config_at(BASE, (point,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adapter.rho", "not of the form FIELD=V"),
        ("adapter.rho=1,1", "a value is given twice"),
        ("adapter.rho=1,1.0", "a value is given twice"),
        ("adapter.rho=1,,5", "a value is empty"),
        ("adapter.rho=1, ", "a value is empty"),
        ("adapter.rho=NaN", "nan is not valid"),
        ("adapter.rho=1,1e999", "inf is not valid"),
        ("adapter.rho=[1]", "is not a single value"),
        ("adapter.rho=1..1e999", "inf is not valid"),
        ("adapter.rho=1..5:lag", "'lag' is not valid: give log"),
        (f"adapter.rho=1..{10**30}", "is not valid: give a number"),
        ("train.seed=1,2", "cannot be swept with --over: use --seeds"),
        ("adapter.rho=5..1", "a range takes two numbers, the smaller first"),
        ("adapter.rho=0..1:log", "above 0 with :log"),
        ("adapter.rho=a..b", "a range takes two numbers"),
    ],
)
def test_an_axis_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        read_axis(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--random", "0"], "--random 0 is not valid: give a whole number of at least 1"),
        (["--random", "-3"], "--random -3 is not valid"),
        (["--random", "2", "--draw", "-1"], "--draw -1 is not valid"),
        (["--seeds", "0", "0"], "--seeds 0 0: 0 is given twice"),
        (["--seeds", "-1"], "--seeds -1 is not valid"),
        (["--runs-per-step", "0"], "--runs-per-step 0 is not valid"),
        (["adapter.rho=2"], "--over has adapter.rho twice"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(trained, source, tmp_path, capsys, words, message):
    command = ["sweep", "--config", source, "--out", str(tmp_path / "o"), "--over", "adapter.rho=1"]
    assert main([*command, *words]) == 2
    assert message in capsys.readouterr().err
    assert not trained and not (tmp_path / "o").exists()


def test_whole_numbers_are_drawn_by_their_logarithm_too():
    found = [dict(point)["a"] for point in random_points([read_axis("a=1..1024:log")], 99, seed=0)]
    assert all(isinstance(value, int) and 1 <= value <= 1024 for value in found)
    assert sum(value <= 32 for value in found) > 20  # of 1024, by the number itself: 3


def test_a_grid_cannot_fill_a_range():
    with pytest.raises(UserError, match="list values, or add --random N"):
        grid([read_axis("adapter.rho=1..5")])


def test_random_points_are_inside_and_go_on_as_they_began():
    axes = [read_axis("a=1..3"), read_axis("b=1e-5..1e-1:log"), read_axis("c=x,y")]
    few, many = random_points(axes, 5, seed=3), random_points(axes, 200, seed=3)
    assert many[:5] == few and len(set(many)) == 200
    a, b, c = zip(*([value for _, value in point] for point in many), strict=True)
    assert set(a) == {1, 2, 3} and set(c) == {"x", "y"}
    assert min(b) >= 1e-5 and max(b) <= 1e-1
    assert 0.35 < sum(value < 1e-3 for value in b) / 200 < 0.65  # the middle, by the logarithm
