"""The study: its runs continue where they stopped, and its statistics and tables by hand."""

import dataclasses
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from goat_jax.analysis import run_results
from goat_jax.data.tasks.splits import chosen_rows
from goat_jax.errors import UserError
from goat_jax.training.vmapped_runs import RunResult, RunVariant
from programs import load_program
from studies import runs
from studies.movement import keep_movements, movement_file, movements, read_movements
from studies.rates_report import rate_curves
from studies.records import collect, keep, kept, merged
from studies.report import TABLES, tables, write_report
from studies.runs import CHOOSING, EQUAL, SAME_RATE, TEST, Study, best_rate
from studies.statistics import Interval, apart_from_0, paired
from studies.tables import effects_table, summary, task_table
from studies.tasks import METHODS, TASKS, StudyTask, on_validation, task_of

ROOT = Path(__file__).resolve().parents[2]
DATA, KEPT = ROOT.parent / "shared" / "data", ROOT / "docs" / "study"


def result(seed: int, score: float, rate: float = 1e-3, loss: float = 0.5) -> RunResult:
    after = {"accuracy": score, "loss": loss}
    return RunResult(RunVariant(seed, rate), (1.0, 0.123456), after, 7, 0.1, 1.0, 1)


def records(**scores):
    """Records of one task: method -> scores of the seeds 1, 2 and so on."""
    return {
        "digits": {
            method: {
                CHOOSING: [result(0, 0.1, 1e-4), result(0, 0.2)],
                TEST: [result(seed, score) for seed, score in enumerate(of_method, start=1)],
            }
            for method, of_method in scores.items()
        }
    }


def test_a_rate_is_chosen_by_the_score_and_then_by_the_loss():
    tried = [result(0, 0.5, 1e-4, 0.1), result(0, 0.7, 1e-3, 0.4), result(0, 0.7, 1e-2, 0.3)]
    diverged = dataclasses.replace(result(0, 0.9, 1.0), after={}, diverged=3)
    assert best_rate([*tried, diverged], "accuracy") == 1e-2


def test_paired_differences_are_less_wide_than_their_scores():
    one, other = {1: 0.5, 2: 0.7, 3: 0.9}, {1: 0.4, 2: 0.65, 3: 0.8}
    found = paired(one, other)
    assert found is not None
    differences = [0.1, 0.05, 0.1]
    assert found.mean == pytest.approx(statistics.fmean(differences))
    # The two-sided 95 % quantile of Student's t with two degrees of freedom, from a table.
    assert found.half == pytest.approx(4.302653 * statistics.stdev(differences) / 3**0.5)
    _, chance = stats.ttest_1samp(differences, 0)
    assert found.chance == pytest.approx(chance)
    assert paired(one, {}) is None


def test_differences_are_corrected_for_their_number():
    """By Holm: the smallest of three is tripled, the next doubled, up to the first above 0.05."""
    of = {name: Interval(1.0, 0.5, p) for name, p in (("a", 0.03), ("b", 0.01), ("c", 0.02))}
    assert apart_from_0(of) == {"a", "b", "c"}
    assert apart_from_0({**of, "c": Interval(1.0, 0.5, 0.026)}) == {"b"}
    assert apart_from_0({**of, "b": Interval(1.0, 0.5, 0.02)}) == set()
    assert apart_from_0({}) == set()


def test_curves_of_rates_are_on_the_scale_of_all_methods():
    def run(perplexity, rate):
        return dataclasses.replace(result(0, 0, rate), after={"perplexity": perplexity})

    lost = dataclasses.replace(run(9.0, 1.0), after={}, diverged=3)
    found = {"lora": {CHOOSING: [run(2.0, 1e-3), run(4.0, 1e-4), lost]}, "goat": {TEST: []}}
    curves, ends = rate_curves(found, "perplexity")
    assert curves == {"lora": {1e-4: 0.0, 1e-3: 1.0}, "goat": {}}
    assert ends == "1 / perplexity 0.25 to 0.50"
    found["goat"] = {CHOOSING: [run(1.0, 1e-3)]}
    assert rate_curves(found, "perplexity")[0]["lora"][1e-3] == pytest.approx(1 / 3)


def test_tables_have_scores_differences_ranks_and_the_gap():
    adapters = {"lora": [0.70, 0.74], "goat": [0.75, 0.79], "dora": [0.6, 0.8]}
    found = records(frozen=[0.5, 0.5], full=[0.9, 0.9], **adapters)
    rows = [[cell.strip() for cell in row.split("|")] for row in summary(found).splitlines()]
    # lora 0.72, goat 0.77, dora 0.70: 22, 27 and 20 of the 40 points between frozen and full. Two
    # seeds make wide intervals: only the difference of goat, the same with both, is none of chance.
    expected = {
        "goat": ["1", "1.0", "68%", "1", "0"],
        "lora": ["1", "2.0", "55%", "0", "0"],
        "dora": ["1", "3.0", "50%", "0", "0"],
        "full": ["1", "", "100%", "0", "0"],
    }
    assert {row[1]: row[2:-1] for row in rows if row[1] in expected} == expected
    table = task_table(found["digits"], TASKS["digits"], TEST)
    row = next(line for line in table.splitlines() if line.startswith("| goat"))
    assert "0.7700 ± 0.0283" in row and "**+0.0500 ± 0.0000**" in row and "-0.1300 ± 0.2541" in row


def test_a_task_with_few_methods_has_no_part_in_the_ranks():
    (of_all,) = records(full=[0.9], lora=[0.7], goat=[0.8], dora=[0.6]).values()
    few = {method: of_all[method] for method in ("full", "dora")}
    alone = summary({"digits": of_all, "sst2": of_all})
    assert alone == summary({"digits": of_all, "reviews": few, "sst2": of_all})


def test_effects_are_beside_the_method_as_it_is_at_both_rates():
    goat = [result(1, 0.7, 1e-3), result(2, 0.8, 1e-3)]
    own = [result(1, 0.9, 3e-4, 0.25), result(2, 0.9, 3e-4, 0.25)]
    same = [result(1, 0.6), result(2, 0.7)]
    diverged = dataclasses.replace(result(1, 0.9, 1e-2), after={}, diverged=3)
    found = {
        "goat": {TEST: goat},
        "goat, alpha/r": {TEST: goat[:1]},
        "goat, rho 1": {TEST: own, SAME_RATE: same},
        "goat, eta 10": {TEST: [diverged]},
        "lora, theory scale": {TEST: own},  # without LoRA there is nothing to compare it with
    }
    table = effects_table(found, TASKS["digits"]).splitlines()[2:]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    assert [row[0] for row in rows] == ["goat", "goat, alpha/r", "goat, rho 1", "goat, eta 10"]
    # Own rate: 0.2 and 0.1 above; at goat's rate 0.1 below with both seeds, which stays apart from
    # 0 after the correction for two.
    accuracy = ["+0.1500 ± 0.6353", "**-0.1000 ± 0.0000**"]
    assert rows[2][3:] == [*accuracy, "0.2500", "**-0.2500 ± 0.0000**"]
    assert rows[0][3:] == ["", "", "0.5000", ""]
    assert rows[3][2:] == ["diverged", "diverged", "", "", "diverged"]


def test_effects_have_a_table_of_their_own_and_no_part_in_the_others(tmp_path):
    found = records(lora=[0.7, 0.7], goat=[0.8, 0.8], **{"goat, rho 1": [0.9, 0.9]})
    write_report(found, tmp_path)
    text = (tmp_path / "results.md").read_text("utf-8")
    assert text.count("| goat, rho 1") == 1 and text.count("| goat ") == 3


def test_results_are_added_to_those_that_are_kept():
    old = records(lora=[0.1, 0.2], full=[0.3, 0.4])
    new = records(goat=[0.7, 0.7], lora=[0.5], full=[0.5, 0.6])
    found = merged(old, new)["digits"]
    assert list(found) == ["full", "lora", "goat"]
    # Fewer runs do not replace more; as many or more do.
    assert found["lora"][TEST] == old["digits"]["lora"][TEST]
    assert found["full"][TEST] == new["digits"]["full"][TEST]
    assert merged(old, {}) == merged({}, old)


def test_records_come_back_and_a_report_is_written(tmp_path, capsys):
    found = records(frozen=[0.5], full=[0.9], lora=[0.7])
    keep(found, tmp_path)
    back = kept(tmp_path)
    assert back["digits"]["lora"][TEST][0].losses == (1.0, 0.12346)
    assert back["digits"]["lora"][CHOOSING][0].losses == ()
    names = [path.name for path in write_report(back, tmp_path)]
    assert names == ["results.md", "rates.png", "losses_digits.png"]
    assert all((tmp_path / name).stat().st_size for name in names)
    assert kept(tmp_path / "none") == {}
    out = ["--runs", str(tmp_path / "none"), "--out", str(tmp_path / "none")]
    assert load_program("study").main(["report", *out]) == 2
    assert "have no results" in capsys.readouterr().err


def test_a_study_chooses_rates_and_continues_where_it_stopped(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(
        TASKS,
        "tiny",
        StudyTask(
            "tiny",
            f"{tiny / 'config.py'}:steps=2",
            "",
            "accuracy",
            8,
            equal_parameters=True,
            effects=True,
            rates=(1e-3, 1e-2),
        ),
    )
    trained = []

    def instead_of_training(configs, runs_per_step):
        for config in configs:
            trained.append(config)
            rate, seed = config.optimizer.learning_rate, config.train.seed
            yield result(seed, 0.9 if rate == 1e-3 else 0.8, rate)

    monkeypatch.setattr(run_results, "train_vmapped", instead_of_training)
    study = Study("tiny", TASKS["tiny"], tmp_path, tmp_path, 2, seeds=(1, 2))
    said = []
    study.train("lora", said.append)
    assert said == ["tiny: lora: learning rate 0.001 of 2"]
    made = [(c.task.held_out, c.train.seed, c.optimizer.learning_rate) for c in trained]
    assert made == [(8, 0, 1e-3), (8, 0, 1e-2), *[(0, 1, 1e-3), (0, 2, 1e-3)] * 2]
    ranks = [config.adapter.spec().total_rank for config in trained]
    assert ranks[3] == ranks[0] < ranks[4] == ranks[5]  # goat's router has parameters as well
    study.train("lora", said.append)
    study.train("goat", said.append)
    assert len(trained) == 6 + 4
    assert TASKS["tiny"].rates_of("frozen") == (1e-3, 1e-2, 3e-2, 1e-1)
    found = collect(tmp_path)["tiny"]
    assert list(found["lora"]) == [CHOOSING, TEST, EQUAL] and list(found["goat"]) == [
        CHOOSING,
        TEST,
    ]
    # What is kept counts as done. At goat's rate the variant, whose own is 0.001, has no runs.
    done = collect(tmp_path)["tiny"]
    other = dataclasses.replace(study, out=tmp_path / "other", kept=done)
    other.train("goat", said.append)
    other.train("goat, rho 1", said.append)
    assert len(trained) == 10 + 4 and trained[-1].adapter.spec().initializer.rho == 1
    goat = {"goat": {CHOOSING: [result(0, 0.9, 1e-2), result(0, 0.1, 1e-3)]}}
    dataclasses.replace(other, kept=goat).train("goat, rho 1", said.append)
    assert [(c.train.seed, c.optimizer.learning_rate) for c in trained[14:]] == [
        (1, 1e-2),
        (2, 1e-2),
    ]


def test_runs_at_a_former_rate_are_dropped(tiny, tmp_path, monkeypatch):
    def instead_of_training(configs, runs_per_step):
        for config in configs:
            rate = config.optimizer.learning_rate
            yield result(config.train.seed, rate, rate)

    monkeypatch.setattr(run_results, "train_vmapped", instead_of_training)
    few = StudyTask("tiny", f"{tiny / 'config.py'}:steps=2", "", "accuracy", 8, rates=(1e-3, 1e-2))
    for task in (few, dataclasses.replace(few, rates=(1e-3, 1e-2, 1e-1))):
        Study("digits", task, tmp_path, tmp_path, 2, seeds=(1, 2)).train("goat", lambda _: None)
    found = [run.variant for run in collect(tmp_path)["digits"]["goat"][TEST]]
    assert found == [RunVariant(1, 1e-1), RunVariant(2, 1e-1)]


def test_a_model_without_a_head_is_scored_once_for_all_seeds(tiny, tmp_path, monkeypatch):
    task = StudyTask("tiny", f"{tiny / 'config.py'}:steps=9", "", "accuracy", 8, head=False)
    study = Study("digits", task, tmp_path, tmp_path, 2, seeds=(1, 2))
    trained = []

    def instead_of_training(configs):
        trained.extend(configs)
        yield result(1, 0.4)

    monkeypatch.setattr(runs, "train_vmapped", instead_of_training)
    said = []
    for _ in range(2):
        study.train("frozen", said.append)
    (config,) = trained
    assert config.train.steps == 1 and said == ["digits: frozen: scored without training"] * 2
    found = collect(tmp_path)["digits"]["frozen"]
    assert list(found) == [TEST] and [run.variant.seed for run in found[TEST]] == [1, 2]
    scored = {"frozen": found, **records(full=[0.9, 0.9], lora=[0.7, 0.6])["digits"]}
    cells = [
        cell.strip()
        for cell in task_table(scored, TASKS["digits"], TEST).splitlines()[2].split("|")
    ]
    # No learning rate and nothing trained; LoRA is 0.3 and 0.2 above with the two seeds.
    assert cells[1:7] == ["frozen", "0", "0", "0.4000 ± 0.0000", "0.5000", "-0.2500 ± 0.6353"]
    assert "50%" in summary({"digits": scored})  # LoRA: 0.25 of the 0.5 from 0.4 to 0.9
    written = [path.name for path in write_report({"digits": {"frozen": found}}, tmp_path / "out")]
    assert written == ["results.md", "rates.png"]
    study = dataclasses.replace(study, out=tmp_path / "other", kept={"frozen": found})
    study.train("frozen", said.append)
    assert len(trained) == 1


@pytest.mark.slow
def test_movements_are_those_of_the_chosen_runs(tiny, tmp_path):
    without_dropout = (tiny / "config.py").read_text("utf-8").replace("dropout=0.05", "dropout=0.0")
    (tmp_path / "config.py").write_text(without_dropout, "utf-8")
    task = StudyTask("tiny", f"{tmp_path / 'config.py'}:steps=2", "", "accuracy", 8)
    results = {method: {TEST: [result(1, 0.5, 1e-3)]} for method in ("full", "goat")}
    found = dict(movements(task, results, tmp_path, ["frozen", "full", "goat"]))
    assert list(found) == ["full", "goat"]
    full, goat = found["full"], found["goat"]
    # Another seed's full fine-tuning goes as far, but to another place.
    np.testing.assert_allclose(full.length, 1.0, rtol=0.2)
    assert max(full.cosine) < 0.99
    assert full.first_cosine == [] and full.entropy == [0.0, 0.0]
    layers, experts, steps = len(full.cosine), 8, 2
    assert len(goat.cosine) == len(goat.first_length) == layers
    assert len(goat.expert_cosine) == experts and len(goat.entropy) == steps
    assert max(goat.cosine) < 0.9 and sum(goat.blocks) == pytest.approx(1, abs=1e-3)
    assert all(1 / experts <= load <= 0.5 for load in goat.largest_load)
    for method in reversed(found):  # each is added to the others, in the order of reports
        keep_movements({method: found[method]}, tmp_path / "found.json")
    kept_movements = read_movements(tmp_path / "found.json")
    assert kept_movements == found and list(kept_movements) == list(found)
    keep_movements(found, movement_file(tmp_path, "digits"))
    written = write_report(records(full=[0.9], goat=[0.8]), tmp_path)
    assert written[-1].name == "movement_digits.png" and written[-1].stat().st_size
    assert "first step: cosine" in (tmp_path / "results.md").read_text("utf-8")
    with pytest.raises(UserError, match="lora has no results"):
        list(movements(task, results, tmp_path, ["lora"]))


def test_the_tables_in_docs_are_those_of_the_records():
    assert (KEPT / TABLES).read_text("utf-8") == tables(kept(KEPT), KEPT)


def test_an_interval_in_docs_is_scipys():
    """It is that of GOAT's accuracy minus LoRA's on the digits, read from the files themselves."""
    records = json.loads((KEPT / "digits.json").read_text("utf-8"))
    by_seed = [
        {run["variant"]["seed"]: run["after"]["accuracy"] for run in records[method]["test"]}
        for method in ("goat", "lora")
    ]
    goat, lora = ([each[seed] for seed in range(1, 6)] for each in by_seed)
    found = stats.ttest_rel(goat, lora).confidence_interval(0.95)
    middle, half = (found.low + found.high) / 2, (found.high - found.low) / 2
    text = (KEPT / TABLES).read_text("utf-8").split("## Handwritten digits")[1]
    row = next(line for line in text.splitlines() if line.startswith("| goat "))
    assert row.split("|")[6].strip(" *") == f"{middle:+.4f} ± {half:.4f}"


def test_no_test_row_has_a_part_in_the_choice():
    config = TASKS["reviews"].config("lora", DATA)
    chosen = on_validation(config, 1000)
    assert chosen.task.evaluation == config.task.train != config.task.evaluation
    train, held = (chosen_rows(chosen.task, split, 5000, None) for split in ("train", "evaluation"))
    assert len(held) == 1000 and not set(train) & set(held)


@pytest.mark.parametrize("name", TASKS)
def test_every_method_has_a_config_on_every_task(name, shared):
    task = TASKS[name]
    configs = {method: task.config(method, shared / "data") for method in task.methods()}
    assert {config.best_by for config in configs.values()} == {task.metric}
    assert len({(c.adapter.method, str(c.adapter.spec())) for c in configs.values()}) == len(
        configs
    )


def test_unknown_names_are_one_line(capsys):
    main = load_program("study").main
    assert main(["run", "--tasks", "digit"]) == 2
    assert "task 'digit' is not part of the study: use digits" in capsys.readouterr().err
    assert main(["run", "--tasks", "gsm8k", "--methods", "goat, rho 1"]) == 2
    assert "gsm8k has no method 'goat, rho 1'" in capsys.readouterr().err
    assert task_of("cola").metric == "matthews" and len(METHODS) == 16
