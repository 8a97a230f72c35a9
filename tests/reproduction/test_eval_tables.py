"""The programs of the language tables: what is done is not done again, and the table says so."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from goat_jax.adapters.parts.scales import AlphaOverRank
from goat_jax.data.tasks.benchmarks.commonsense import FOLDERS
from goat_jax.errors import RunFailed, UserError
from goat_jax.evaluation import code as coding
from goat_jax.evaluation.types import EvalResult
from programs import load_program
from reproduction import measures as module


def main(table, arguments):
    return load_program("paper").main([table, *arguments])


SCORES = {
    "commonsense170k": {f"accuracy/{name}": 0.5 + n / 100 for n, name in enumerate(FOLDERS)},
    "metamath": {"accuracy": 0.7, "accuracy_strict": 0.6},
    "codefeedback": {"pass@1": 0.25},
    "boolq": {"accuracy": 0.7},
    "wizardlm": {"score/turn_1": 6.0, "score/turn_2": 5.0},
}


class Runner:
    """Stands in for training and examining: keeps count, fails where it is told to."""

    def __init__(self):
        self.trained, self.asked, self.failing, self.stopping = [], [], {}, None
        self.configs = []

    def fit(self, config, progress):
        folder = Path(config.out)
        self.trained.append(folder.name)
        self.configs.append(config)
        if folder.name in self.failing:
            raise self.failing[folder.name]
        folder.mkdir(parents=True, exist_ok=True)
        stopped = "SIGTERM" if folder.name == self.stopping else "finished"
        return SimpleNamespace(stopped=stopped, folder=folder, step=3, notes=("a note",))

    def open(self, folder, step):
        return SimpleNamespace(name=Path(folder).name, step=step)

    def evaluate_task(self, model, task, scoring, options, folder):
        assert folder.name == "evaluation"
        assert model.step == 3  # the last one, as in the paper, not the best
        self.asked.append((model.name, task.name, scoring))
        shift = 0.1 * int(model.name[-1])
        scores = {name: value + shift for name, value in SCORES[task.name].items()}
        return EvalResult(scores, {"predictions": [{"id": "1", "correct": True}]})


@pytest.fixture
def runner(monkeypatch):
    own = Runner()
    monkeypatch.setattr(module, "fit", own.fit)
    monkeypatch.setattr(module, "load_eval_model", own.open)
    monkeypatch.setattr(module, "check_needs", lambda *given: None)  # no judge is there to be asked
    monkeypatch.setattr(module, "evaluate_task", own.evaluate_task)
    monkeypatch.setattr(module, "draw", lambda folder: None)
    monkeypatch.setattr(coding, "check_sandbox", lambda: None)
    return own


@pytest.fixture
def folder(tmp_path):
    """Files under the names of their publishers, with nothing in them yet."""
    root = tmp_path / "data"
    for parts in FOLDERS.values():
        (root / parts[0]).mkdir(parents=True)
        (root / parts[0] / "test.json").write_text("[]")
    for name in ("commonsense_170k", "MetaMathQA-395K", "WizardLM_evol_instruct_70k", "question"):
        (root / f"{name}.json").write_text("[]")
    for name in ("CodeFeedback-Filtered-Instruction", "test"):
        (root / f"{name}.jsonl").write_text("")
    return root


def given(tmp_path, folder, *more, questions=False):
    asked = f",questions={folder}" if questions else ""
    own = ["--out", str(tmp_path / "out"), "--quiet", "--options", f"folder={folder}{asked}"]
    return [*own, *more]


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.mark.slow
def test_one_run_fills_the_eight_columns(runner, folder, tmp_path, capsys):
    sweep, arguments = (
        "table3",
        ["--methods", "lora", "goat", "--seeds", "0", "1"],
    )
    assert main(sweep, given(tmp_path, folder, *arguments)) == 0
    names = [f"commonsense-{m}-seed{s}" for s in (0, 1) for m in ("lora", "goat")]
    assert runner.trained == names == [name for name, *_ in runner.asked]
    head, _, lora, goat = capsys.readouterr().out.splitlines()
    assert cells(head) == ["method", *FOLDERS, "average"]
    assert cells(lora)[1] == "55.00 ± 7.07 (69.80, -14.80)"
    assert cells(goat)[-1] == "58.50 (82.73, -24.23)"
    table = (tmp_path / "out" / "table3.md").read_text().splitlines()
    assert table == [head, table[1], lora, goat]


@pytest.mark.slow
def test_what_is_done_is_not_done_again(runner, folder, tmp_path, capsys):
    sweep, arguments = (
        "table3",
        given(tmp_path, folder, "--methods", "goat"),
    )
    assert main(sweep, arguments) == 0
    first = capsys.readouterr().out
    assert main(sweep, arguments) == 0
    assert capsys.readouterr().out == first and len(runner.trained) == len(runner.asked) == 1
    assert main(sweep, [*arguments, "--seeds", "0", "1"]) == 0
    assert runner.trained[1:] == ["commonsense-goat-seed1"]
    own = tmp_path / "out" / "commonsense-goat-seed0"
    assert json.loads((own / "result.json").read_text())["notes"] == ["a note"]
    written = {path.name for path in (own / "evaluation").iterdir()}
    stem = "commonsense170k-generate"
    assert written == {f"{stem}-predictions.jsonl", f"{stem}-scores.json"}


def test_a_result_of_other_settings_is_not_taken(runner, folder, tmp_path, capsys):
    sweep, arguments = (
        "table3",
        given(tmp_path, folder, "--methods", "goat"),
    )
    main(sweep, arguments)
    assert main(sweep, [*arguments, "--train.steps", "7"]) == 1
    assert "has a result with other settings" in capsys.readouterr().err and len(runner.asked) == 1


def test_a_stopped_program_goes_on(runner, folder, tmp_path, capsys):
    sweep, arguments = (
        "table3",
        given(tmp_path, folder, "--methods", "lora", "goat"),
    )
    runner.stopping = "commonsense-goat-seed0"
    assert main(sweep, arguments) == 143
    assert "the same command continues" in capsys.readouterr().err and len(runner.asked) == 1
    runner.stopping = None
    assert main(sweep, arguments) == 0
    assert [name.split("-")[1] for name in runner.trained] == ["lora", "goat", "goat"]
    assert [name.split("-")[1] for name, *_ in runner.asked] == ["lora", "goat"]


@pytest.mark.parametrize("error", [UserError("no such folder"), RunFailed("the loss is nan")])
def test_a_run_that_fails_does_not_stop_the_others(error, runner, folder, tmp_path, capsys):
    runner.failing["commonsense-lora-seed0"] = error
    assert main("table3", given(tmp_path, folder, "--methods", "lora", "goat")) == 1
    printed = capsys.readouterr()
    assert f"not done: commonsense-lora-seed0: {error}" in printed.err
    lora, goat = (cells(line) for line in printed.out.splitlines()[2:])
    assert lora[1] == "- (69.80)" and goat[1] == "50.00 (73.60, -23.60)"


def test_cut_answers_and_problems_are_said(folder, runner, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SCORES, "codefeedback", {"pass@1": 0.25, "cut_answers": 0.5})
    own = ["--methods", "goat", "--tasks", "code", "--run-programs"]
    arguments = given(tmp_path, folder, *own, questions=True)
    assert main("table2", arguments) == 0
    assert "50.0% of the answers were cut at --max-new-tokens" in capsys.readouterr().err
    problem = EvalResult({"unscored": 2.0}, {}, "the judge graded none of 2 turns: no grade")
    monkeypatch.setattr(module, "evaluate_task", lambda *given, folder: problem)
    arguments = given(tmp_path, folder, "--methods", "goat", "--tasks", "chat", questions=True)
    assert main("table2", arguments) == 1
    assert "the judge graded none of 2 turns" in capsys.readouterr().err


def test_three_runs_fill_the_table_of_generation(runner, folder, tmp_path, capsys):
    arguments = given(tmp_path, folder, "--methods", "goat", "lora_pro", questions=True)
    arguments.append("--run-programs")
    assert main("table2", arguments) == 0
    tasks = [(task, scoring) for name, task, scoring in runner.asked if "goat" in name]
    assert tasks == [("wizardlm", "judge"), ("metamath", "generate"), ("codefeedback", "code")]
    head, _, goat, other = (cells(line) for line in capsys.readouterr().out.splitlines())
    assert head == ["method", "chat", "math", "code", "average"]
    assert goat[1:4] == ["6.00 (6.01, -0.01)", "60.00 (60.20, -0.20)", "25.00 (25.61, -0.61)"]
    assert other[1:4] == ["6.00", "60.00", "25.00"]  # a method that the paper does not have


def test_methods_have_ranks_and_options_and_runs_have_folders_of_their_own(
    runner, folder, tmp_path, capsys
):
    goat = "goat@16:scale=alpha_over_rank,rho=5"
    data = folder.parent / "elsewhere"
    shutil.copytree(folder, data)
    options = ["--options", f"folder={folder}", f"questions={folder}", f"code:folder={data}"]
    arguments = ["--out", str(tmp_path / "out"), "--quiet", *options, "--tasks", "math", "code"]
    arguments += ["--run-programs", "--methods", "lora", goat]
    assert main("table2", arguments) == 0
    name = "goat-rank16-scale-alpha_over_rank-rho-5"
    assert runner.trained[1] == f"math-{name}-seed0"
    math, code = runner.configs[1], runner.configs[3]
    spec = math.adapter.spec()
    assert (spec.total_rank, spec.alpha, spec.initializer.rho) == (16, 32.0, 5)
    assert spec.scale == AlphaOverRank() and spec == code.adapter.spec()
    assert math.task.train.startswith(str(folder)) and code.task.train.startswith(str(data))
    rows = [cells(line) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["lora", goat] and rows[1][1] == "60.00"
    saved = json.loads((tmp_path / "out" / f"math-{name}-seed0" / "result.json").read_text())
    adapter = {name: saved["key"]["config"][f"adapter.{name}"] for name in ("scale", "rho")}
    assert adapter == {"scale": "alpha_over_rank", "rho": 5}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--methods", "goat@x"], "rank 'x' is not a whole number above 0"),
        (["--methods", "goat@0"], "rank '0' is not a whole number above 0"),
        (["--methods", "goat@"], "rank '' is not a whole number above 0"),
        (["--methods", "gaot"], "unknown method 'gaot' (did you mean 'goat'?)"),
        (["--methods", "goat:rho"], "option 'rho' is not of the form name=value"),
        (["--options", "maths:folder=x"], "no part 'maths' (did you mean 'math'?)"),
        (["--options", "folder"], "option 'folder' is not of the form name=value"),
        (["--options", "rank=1,rank=2"], "option rank is given twice"),
    ],
)
def test_what_cannot_be_read_ends_the_program_in_one_line(arguments, line, capsys):
    assert main("table2", arguments) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said


def test_a_grade_that_nobody_gave_is_no_score(runner, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SCORES, "wizardlm", {"unscored": 80.0})
    arguments = given(tmp_path, folder, "--methods", "goat", "--tasks", "chat", questions=True)
    assert main("table2", arguments) == 0
    head, _, goat = (cells(line) for line in capsys.readouterr().out.splitlines())
    assert head == ["method", "chat"] and goat[1] == "- (6.01)"


JUDGE = ["--judge", "http://localhost/v1", "--judge-model", "one"]


@pytest.mark.parametrize(
    ("run", "first", "second"),
    [
        ("math", [], ["--temperature", "0.5"]),
        ("math", [], ["--seed", "1"]),
        ("math", ["--max-new-tokens", "9"], ["--max-new-tokens", "10"]),
        ("code", ["--run-programs"], ["--run-programs", "--samples", "2"]),
        ("code", ["--run-programs"], ["--run-programs", "--samples", "2", "--k", "2"]),
        ("code", ["--run-programs"], ["--run-programs", "--seconds", "3"]),
        ("chat", JUDGE, [*JUDGE[:3], "other"]),
        ("chat", JUDGE, ["--judge", "http://localhost/v2", *JUDGE[2:]]),
        ("chat", [], JUDGE),
    ],
)
def test_another_evaluation_is_not_answered_from_the_last(
    runner, folder, tmp_path, capsys, run, first, second
):
    sweep = "table2"
    common = given(tmp_path, folder, "--methods", "goat", "--tasks", run, questions=True)
    for words, asked in ((first, 1), ([*first, "--workers", "2"], 1), (second, 2), (second, 2)):
        assert main(sweep, [*common, *words]) == 0
        assert len(runner.asked) == asked
    assert "changed: evaluated again" in capsys.readouterr().err


def test_what_else_a_result_depends_on(runner, folder, tmp_path):
    sweep = "table3"
    arguments = given(tmp_path, folder, "--methods", "goat")
    assert main(sweep, arguments) == 0
    (folder / "boolq" / "test.json").write_text("[1]")  # other questions in the same place
    assert main(sweep, arguments) == 0 and len(runner.asked) == 2
    path = tmp_path / "out" / "commonsense-goat-seed0" / "result.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "key": {**saved["key"], "version": "0.0.0"}}))
    assert main(sweep, arguments) == 0 and len(runner.asked) == 3
    path.write_text(json.dumps({**saved, "key": None}))  # of a release that kept less
    assert main(sweep, arguments) == 0 and len(runner.asked) == 4
    path.write_text("{")
    assert main(sweep, arguments) == 1 and len(runner.asked) == 4


def test_a_single_set_fills_its_own_column(runner, folder, tmp_path, capsys):
    arguments = given(tmp_path, folder, "--methods", "goat")
    arguments[4] += ",task=boolq"
    (folder / "boolq" / "train.json").write_text("[]")
    assert main("table3", arguments) == 0
    _head, _, goat = (cells(line) for line in capsys.readouterr().out.splitlines())
    assert goat[1].startswith("70.00") and all(cell.startswith("- (") for cell in goat[2:-1])


def test_programs_that_may_not_run_are_found_before_training(runner, folder, tmp_path, capsys):
    arguments = given(tmp_path, folder, "--methods", "goat", "lora", questions=True)
    sweep = "table2"
    assert main(sweep, [*arguments, "--tasks", "code"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "allow this with --run-programs" in line and not runner.trained
    assert main(sweep, [*arguments, "--tasks", "code", "math"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "(2 runs: code-goat-seed0, code-lora-seed0)" in line
    assert runner.trained == ["math-goat-seed0", "math-lora-seed0"]


@pytest.mark.parametrize(
    "words", [["--options", "nosuch=1"], ["--methods", "gaot"], ["--seeds", "0", "0"], ["--k", "0"]]
)
def test_an_error_of_all_runs_is_said_once(runner, tmp_path, capsys, words):
    sweep = "table3"
    assert main(sweep, ["--out", str(tmp_path / "out"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("paper: error: ") and not runner.trained
    assert not (tmp_path / "out").exists()


def test_a_score_that_is_not_finite_is_no_result(runner, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SCORES, "metamath", {"accuracy": float("nan")})
    arguments = given(tmp_path, folder, "--methods", "goat", "--tasks", "math")
    assert main("table2", arguments) == 1
    printed = capsys.readouterr()
    assert "the run diverged: accuracy is not finite" in printed.err and "- (60.20)" in printed.out
