"""The bookkeeping of a table's runs; that they train is tested in test_paper_paths.py."""

import json
from types import SimpleNamespace

import pytest

from goat_jax.errors import RunFailed, UserError
from reproduction import measures as module
from reproduction import sweep
from reproduction.experiments import Experiment, PaperTask
from reproduction.sweep import PaperRun, run_experiment
from reproduction.table import render

PAPER = {
    "lora": {"rte": 84.47, "cola": 83.41},
    "lora@16": {"rte": 85.0, "cola": 84.0},
    "goat": {"rte": 85.56, "cola": 86.86},
}


class Trainer:
    """Stands in for `fit`: counts its calls, gives scores, fails where it is told to."""

    def __init__(self):
        self.calls, self.failing, self.stopping = [], {}, None

    def __call__(self, config, progress):
        name = config.out.rsplit("/", 1)[-1]
        self.calls.append(name)
        if name in self.failing:
            raise self.failing[name]
        folder = module.Path(config.out)
        folder.mkdir(parents=True, exist_ok=True)
        stopped = "SIGTERM" if name == self.stopping else "finished"
        after = {"loss": 1.0, "accuracy": 0.5 + 0.01 * config.train.seed}
        return SimpleNamespace(stopped=stopped, folder=folder, step=3, after=after, notes=("n",))


@pytest.fixture
def trainer(monkeypatch):
    own = Trainer()
    monkeypatch.setattr(module, "fit", own)
    monkeypatch.setattr(module, "draw", lambda folder: None)
    return own


@pytest.fixture
def table(tmp_path, monkeypatch):
    config = tmp_path / "config.py"
    config.write_text(
        "from goat_jax.config.run import *\n"
        "from goat_jax.data.tasks.registry import reviews\n"
        "def get_config(task, method, rank=8, seed=0, folder=None):\n"
        "    adapter = AdapterConfig(method, total_rank=rank)\n"
        "    train = TrainConfig(seed=seed)\n"
        "    model = ModelConfig('m', options={'folder': folder})\n"
        "    return RunConfig(model, reviews(), adapter, train=train)\n"
    )
    tasks = {
        task: PaperTask("config", {task: "accuracy"}, f"task={task}") for task in PAPER["goat"]
    }
    monkeypatch.setattr(sweep, "CONFIGS", tmp_path)
    monkeypatch.setattr(sweep, "TASKS", tasks)
    monkeypatch.setattr(sweep, "EXPERIMENTS", {"small": Experiment("small", [*tasks], PAPER)})
    return "small"


def test_what_is_done_is_not_trained_again(trainer, table, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "out"), "--seeds", "0", "1", "--quiet"]
    assert run_experiment(table, arguments) == 0
    assert len(trainer.calls) == 2 * 3 * 2 and len(set(trainer.calls)) == 12
    first = capsys.readouterr().out
    assert run_experiment(table, arguments) == 0
    assert len(trainer.calls) == 12 and capsys.readouterr().out == first
    assert run_experiment(table, [*arguments[:3], "0", "1", "2", "--quiet"]) == 0
    assert [name[-5:] for name in trainer.calls[12:]] == ["seed2"] * 6
    assert (tmp_path / "out" / "small.md").read_text().startswith("| method")
    saved = json.loads((tmp_path / "out" / "rte-lora-rank16-seed0" / "result.json").read_text())
    assert saved["key"]["config"]["adapter.total_rank"] == 16


def test_every_task_can_have_options_of_its_own(trainer, table, tmp_path):
    arguments = ["--out", str(tmp_path / "out"), "--methods", "goat:rho=5", "--quiet"]
    options = ["--options", "folder=all", "rte:folder=one"]
    assert run_experiment(table, [*arguments, *options]) == 0
    kept = [tmp_path / "out" / f"{task}-goat-rho-5-seed0" for task in ("rte", "cola")]
    keys = [json.loads((path / "result.json").read_text())["key"] for path in kept]
    folders = [key["config"]["model.options"]["folder"] for key in keys]
    assert folders == ["one", "all"]  # of two, the last one counts


def test_folders_of_long_labels_have_short_names():
    label = "goat:" + ",".join(f"x{n}=1" for n in range(80))
    names = {PaperRun("rte", text, 0).name for text in (label, label + ",y=1")}
    assert len(names) == 2 and max(map(len, names)) < 128


def test_a_stopped_sweep_goes_on(trainer, table, tmp_path, capsys):
    trainer.stopping = "rte-goat-seed0"
    arguments = ["--out", str(tmp_path / "out"), "--methods", "lora", "goat", "--tasks", "rte"]
    assert run_experiment(table, arguments) == 143
    assert "the same command continues" in capsys.readouterr().err
    trainer.stopping = None
    assert run_experiment(table, arguments) == 0
    assert trainer.calls == ["rte-lora-seed0", "rte-goat-seed0", "rte-goat-seed0"]


@pytest.mark.parametrize("error", [UserError("no such folder"), RunFailed("the loss is nan")])
def test_a_run_that_fails_does_not_stop_the_others(trainer, table, tmp_path, capsys, error):
    trainer.failing["rte-lora-seed0"] = error
    assert run_experiment(table, ["--out", str(tmp_path / "out"), "--tasks", "rte"]) == 1
    printed = capsys.readouterr()
    assert f"not done: rte-lora-seed0: {error}" in printed.err
    assert "- (84.47)" in printed.out and "50.00 (85.56, -35.56)" in printed.out


def test_a_result_of_other_settings_is_not_taken(trainer, table, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "out"), "--tasks", "rte", "--methods", "goat"]
    run_experiment(table, arguments)
    assert run_experiment(table, [*arguments, "--train.steps", "7"]) == 1
    assert "has a result with other settings" in capsys.readouterr().err
    assert len(trainer.calls) == 1


def test_a_result_is_taken_that_lacks_a_newer_field_which_is_empty(trainer, table, tmp_path):
    arguments = ["--out", str(tmp_path), "--tasks", "rte", "--methods", "goat", "--quiet"]
    assert run_experiment(table, arguments) == 0
    path = tmp_path / "rte-goat-seed0" / "result.json"
    saved = json.loads(path.read_text())
    assert saved["key"]["config"].pop("task.prompt") == ""
    path.write_text(json.dumps(saved))
    assert run_experiment(table, arguments) == 0 and len(trainer.calls) == 1
    del saved["key"]["config"]["train.seed"]  # not empty: another run
    path.write_text(json.dumps(saved))
    assert run_experiment(table, arguments) == 1 and len(trainer.calls) == 1


def test_seeds_tasks_and_differences_of_a_table():
    found = {"goat": {"rte": [85.0, 86.0], "cola": [80.0]}}
    columns = {"rte": ["rte"], "cola": ["cola"]}
    lines = render(PAPER, found, columns, ["goat", "mine"]).splitlines()
    own = [cell.strip() for cell in lines[2].split("|")[1:-1]]
    average = "82.75 (86.21, -3.46)"
    assert own == ["goat", "85.50 ± 0.71 (85.56, -0.06)", "80.00 (86.86, -6.86)", average]
    assert [cell.strip() for cell in lines[3].split("|")[1:-1]] == ["mine", "-", "-", "-"]


def test_columns_that_are_means_need_every_score():
    columns = {"both": ["rte", "cola"], "rte": ["rte"]}
    found = {"goat": {"rte": [80.0, 82.0], "cola": [90.0]}, "lora": {"rte": [80.0]}}
    paper = {"goat": {"both": 86.0, "average": 83.0}}
    goat, lora = render(paper, found, columns, ["goat", "lora"]).splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (goat, lora)]
    assert cells[0] == ["goat", "85.50 (86.00, -0.50)", "81.00 ± 1.41", "83.25 (83.00, +0.25)"]
    assert cells[1] == ["lora", "-", "80.00", "-"]
