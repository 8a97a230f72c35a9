"""Every table, ablation and figure of the paper: its rows are runs, and tiny models fill it."""

import json
import statistics
from types import SimpleNamespace

import pytest

from paper_models import image_folder, write_questions
from programs import load_program
from reproduction import measures
from reproduction.experiments import EXPERIMENTS, GLUE, TASKS
from reproduction.labels import read_label
from reproduction.sweep import PaperRun
from tiny_language import write_model

PAPER = load_program("paper")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of every task; the images of Cars are those of its first two classes."""
    root = write_questions(tmp_path_factory.mktemp("data"))
    image_folder(root, "cars")
    return root


def options(data):
    folder = f"folder={data}"
    questions = {name: f"{folder},questions={data}" for name in ("math", "code", "chat")}
    own = {"vision": folder, "glue": folder, "commonsense": folder} | questions
    (data / "CodeFeedback-Filtered-Instruction.jsonl").touch()
    return own


def test_experiments_are_the_papers():
    numbers = [*(f"table{n}" for n in range(1, 9)), *(f"figure{n}" for n in (1, 2, 4, 5, 6, 7))]
    assert {*EXPERIMENTS} == {*numbers, "routing", "balance", "load"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_row_is_a_run(name, data):
    experiment = EXPERIMENTS[name]
    first = {TASKS[task].config: task for task in reversed(experiment.tasks)}
    names = set()
    for config, task in first.items():
        for row in experiment.rows:
            run = PaperRun(task, row, 0)
            names.add(run.name)
            run.config(options(data)[config] if task not in GLUE else "").adapter.spec()
    assert len(names) == len(first) * len(experiment.rows)


def test_columns_are_those_that_the_tasks_fill():
    for experiment in EXPERIMENTS.values():
        filled = {column for task in experiment.tasks for column in TASKS[task].columns}
        parts = [part for parts in experiment.columns.values() for part in parts]
        shown = filled | {*experiment.columns}
        assert {*parts} <= filled
        for scores in experiment.rows.values():
            assert {*scores} <= shown | {"average"}


def test_numbers_that_the_paper_prints_twice_agree():
    def average(table, row="goat"):
        return statistics.mean(EXPERIMENTS[table].rows[row].values())

    for table in ("table5", "routing"):
        assert average(table) == pytest.approx(average("table1"), abs=0.011)
    for row in ("molora", "hydralora", "goat"):
        by_rate, cost, math = (EXPERIMENTS[f"table{n}"].rows[row] for n in (6, 7, 2))
        assert by_rate["2e-5"] == cost["math"] == math["math"]
        assert EXPERIMENTS["balance"].rows[row] == {"cars": EXPERIMENTS["table1"].rows[row]["cars"]}
    goat = EXPERIMENTS["table8"].rows["goat"]
    for column, table in (("generation", 2), ("glue", 4), ("images", 1)):
        assert goat[column] == pytest.approx(average(f"table{table}"), abs=0.011)
    assert sum(EXPERIMENTS["load"].rows["goat:aux_weight=0"].values()) == pytest.approx(100)


def test_a_list_of_all_is_printed(capsys):
    assert PAPER.main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == [*EXPERIMENTS]


TINY = """
    --quiet --max-new-tokens 2 --train.steps 2 --train.batch-size 2 --train.eval-batch-size 2
    --optimizer.warmup-steps 0 --model.dtype float32 --adapter.target-modules .*q(uery|_proj)
""".split()  # noqa: SIM905
FEW = {
    "table2": ["chat", "math"],  # programs need a sandbox, which not every machine has
    "table3": ["commonsense"],
    "table4": ["rte"],
    "table6": ["math-1e-5", "math-5e-5"],
    "table7": ["cost", "math"],
    "table8": ["math", "cars", "commonsense"],
    "load": ["load"],
}
"""Experiment -> the tasks that are run with tiny models; the others are run on Cars."""
SECOND = {"figure2": 1, "figure5": 3, "figure6": 2}
"""Figure of series -> the first row that continues the series of row 0."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def models(roberta, clip, llama):
    texts = dict.fromkeys(("math", "code", "chat", "commonsense"), llama)
    return {"vision": clip, "glue": roberta} | texts


def fill(name, models, data, out, *, tasks, rows):
    """Runs some rows of an experiment on some tasks."""
    given = [
        f"{config}:{own},model={models[config]}"
        for config, own in options(data).items()
        if config in {TASKS[task].config for task in tasks}
    ]
    length = "32" if tasks == ["rte"] else "60"
    more = ["--train.max-length", length, "--train.num-buckets", "1"]
    own = ["--out", str(out), "--tasks", *tasks, "--methods", *rows]
    return PAPER.main([name, *own, "--options", *given, *TINY, *more])


@pytest.mark.slow
def test_costs_are_filled(llama, data, tmp_path, capsys):
    assert fill("table7", {"math": llama}, data, tmp_path, tasks=["cost"], rows=["goat"]) == 0
    head, _, row = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["method", "memory", "hours"]
    scores = json.loads((tmp_path / "cost-goat-seed0" / "result.json").read_text())["scores"]
    assert 0 < scores["memory"] < 1 and 0 < scores["hours"] < 20
    assert f"{scores['memory']:.2f} (34.85, " in row and f"{scores['hours']:.2f} (36.98, " in row


def test_a_step_that_does_not_fit_has_no_time(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measures, "plan", lambda *given: SimpleNamespace(peak=2.0**60))
    words = ["--tasks", "cost", "--methods", "full_moe", "--out", str(tmp_path)]
    assert PAPER.main(["table7", *words, "--options", f"folder={data},questions={data}"]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert "(640.00, +" in row and "| - (106.05)" in row


@pytest.mark.nightly
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_filled_by_tiny_models(name, models, data, tmp_path, capsys):
    rows = [row for row in EXPERIMENTS[name].rows if (read_label(row).rank or 8) <= 32]
    tasks = FEW.get(name, ["cars"])
    few = {"tasks": tasks, "rows": [*dict.fromkeys((rows[0], rows[SECOND.get(name, -1)]))]}
    assert fill(name, models, data, tmp_path, **few) == 0
    printed = capsys.readouterr()
    assert (tmp_path / f"{name}.md").read_text() in printed.out and "not done" not in printed.err
    for number in EXPERIMENTS[name].figures:
        assert (tmp_path / name / f"figure{number}.png").stat().st_size > 5000
    assert fill(name, models, data, tmp_path, **few) == 0  # from the kept results
    assert capsys.readouterr().out == printed.out
