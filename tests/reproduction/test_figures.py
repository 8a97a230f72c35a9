"""The paper's figures from run folders that are made by hand: what they show, what is lacking."""

import dataclasses
import json

import pytest

from goat_jax.adapters.parts.aux_losses import LoadBalancing
from goat_jax.analysis.collect_runs import by_series, gather
from goat_jax.analysis.figure_data import (
    constant_scale,
    min_max_normalised,
    score_panels,
    segment_position,
)
from goat_jax.cli.arguments.config import with_adapter
from goat_jax.config.fields import flatten
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import reviews
from goat_jax.errors import UserError
from programs import load_program
from reproduction.experiments import EXPERIMENTS, MIXTURES
from reproduction.figures import FIGURES, draw_figures
from reproduction.sweep import PaperRun


def write_run(
    root, name, method, score: float | None = 0.5, *, task="one", seed=0, loads=(), **options
):
    """A finished run of three steps."""
    config = RunConfig(
        ModelConfig("m"),
        dataclasses.replace(reviews(), name=task),
        AdapterConfig(method),
        train=TrainConfig(steps=3, seed=seed),
    )
    config = with_adapter(config, options)
    folder = root / name
    folder.mkdir(parents=True)
    run = {"config": flatten(config), "base_sha256": "0", "residual_norms": {}}
    run |= {"trained_parameters": 1, "versions": {}}
    (folder / "run.json").write_text(json.dumps(run))
    records = [
        {"kind": "train", "step": n, "loss": 1 / n, "task_loss": 1 / n, "grad_norm": 1.0 / n}
        for n in (1, 2, 3)
    ]
    records += [{"kind": "load", "step": 3, "modules": {"q": list(loads)}}] if loads else []
    if score is not None:
        scores = {"loss": 0.4, "accuracy": score, "f1": 0.1}
        records.append({"kind": "eval", "step": 3, "split": "evaluation", **scores, "seconds": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_scores_are_of_the_last_step_or_of_the_evaluation(tmp_path):
    done = write_run(tmp_path, "a", "lora", 0.75)
    write_run(tmp_path, "b", "lora", None)
    evaluated = write_run(tmp_path, "c", "lora", 0.75)
    (evaluated / "result.json").write_text(
        json.dumps({"scores": {"score/turn_1": 6.5, "other": 1.0}})
    )
    first, second, third = gather([tmp_path])
    assert first.folder == done and first.score() == ("accuracy", 0.75)
    assert first.score("f1") == ("f1", 0.1) and first.score("nothing") == ("accuracy", 0.75)
    assert second.score() is None and third.score() == ("score/turn_1", 6.5)
    assert first.series("grad_norm") == ([1, 2, 3], [1.0, 0.5, 1 / 3])
    with pytest.raises(UserError, match="no run in"):
        gather([tmp_path / "nothing"])


def test_series_have_the_names_that_tell_them_apart(tmp_path):
    write_run(tmp_path, "a", "lora", total_rank=8)
    write_run(tmp_path, "b", "lora", total_rank=8, alpha=99.0, seed=1)  # alpha follows the rank
    write_run(tmp_path, "c", "lora", total_rank=16)
    write_run(tmp_path, "d", "goat", task="two")
    runs = gather([tmp_path])
    assert {name: len(own) for name, own in by_series(runs).items()} == {
        "lora, rank 8": 2,
        "lora, rank 16": 1,
        "goat": 1,
    }
    assert {name: len(own) for name, own in by_series(runs, ("total_rank",)).items()} == {
        "lora": 3,
        "goat": 1,
    }


def test_scores_against_rank(tmp_path):
    for seed, scores in enumerate(((0.5, 0.75), (0.25, 1.0))):
        for rank, score in zip((8, 16), scores, strict=True):
            write_run(tmp_path, f"r{rank}-{seed}", "goat", score, seed=seed, total_rank=rank)
    write_run(tmp_path, "single", "molora", 0.9, total_rank=8)
    write_run(tmp_path, "unfinished", "goat", None, total_rank=32)
    panels, name = score_panels(
        gather([tmp_path]), lambda run: run.config.adapter.spec().total_rank, ("total_rank",)
    )
    assert name == "accuracy, percent"
    assert panels == {"one": {"goat": {8: [50.0, 25.0], 16: [75.0, 100.0]}}}
    grades, name = score_panels(gather([tmp_path]), lambda run: 1.0)
    assert (grades, name) == ({}, "")


@pytest.mark.slow
def test_every_figure_is_drawn_when_its_runs_are_there(tmp_path):
    for share in (0.0, 0.5, 1.0):
        write_run(tmp_path / "1", f"p{share}", "pissa", share / 2 + 0.3, offset=share)
    for scale in (1, 4):
        write_run(tmp_path / "2", f"s{scale}", "lora", scale="fixed", value=scale)
    shares = [[0.25] * 4 + [0.0] * 4, [0.125] * 8]
    for experts in (4, 8):
        write_run(tmp_path / "6", f"e{experts}", "goat", loads=shares, num_experts=experts)
    write_run(tmp_path / "6", "more", "goat", total_rank=16, loads=shares)
    needed = {1: ["1"], 2: ["2"], 4: ["1", "2"], 5: ["6"], 6: ["6"], 7: ["6"]}
    for number, folders in needed.items():
        out = tmp_path / "out" / str(number)
        drawn, lacking = draw_figures(gather([tmp_path / each for each in folders]), out)
        assert out / f"figure{number}.png" in drawn
        assert all(path.stat().st_size > 5000 for path in drawn)
        assert len(drawn) + len(lacking) == len(FIGURES)
    drawn, lacking = draw_figures(gather([tmp_path / "1" / "p0.0"]), tmp_path / "none")
    assert drawn == [] and len(lacking) == len(FIGURES)
    assert "figure 5 (score against rank) needs finished runs of a method at two" in lacking[3]


@pytest.mark.parametrize("task", ["dtd", "rte"])
def test_the_runs_of_every_figure_have_configs(task):
    drawn = {name: each for name, each in EXPERIMENTS.items() if name.startswith("figure")}
    assert [each.figures for each in drawn.values()] == [(number,) for number in FIGURES]
    for experiment in drawn.values():
        runs = [PaperRun(task, label, 0) for label in experiment.rows]
        assert len({run.name for run in runs}) == len(runs)
        for run in runs:
            run.config().adapter.spec()


def specs_of(figure):
    """Specs of a figure's runs, as its program trains them on images."""
    rows = EXPERIMENTS[f"figure{figure}"].rows
    return [PaperRun("dtd", label, 0).config().adapter.spec() for label in rows]


def test_places_of_figure_1_are_spread_over_the_spectrum_at_both_ranks():
    specs = specs_of("1")
    assert [spec.total_rank for spec in specs] == [32] * 9 + [128] * 9
    assert [segment_position(spec) for spec in specs] == 2 * [n / 8 for n in range(9)]


def test_figure_2_starts_from_the_svd_at_every_scale_and_rank():
    specs = specs_of("2")
    assert {type(spec.initializer).__name__ for spec in specs} == {"SvdSegments"}
    ranks = {spec.total_rank for spec in specs}
    scales = {constant_scale(spec) for spec in specs}
    assert min(ranks) == 1 and len(specs) == len(ranks) * len(scales) == 20


def test_figures_4_and_5_are_of_the_tables_methods():
    """The upcycled model is what the others are held against; mixtures are those of table 1."""
    curves = set(EXPERIMENTS["figure4"].rows)
    assert curves >= {"full_moe", "lora", "pissa", "milora", *MIXTURES}
    assert {(spec.num_experts, spec.top_k) for spec in specs_of("5")} == {(8, 2)}
    assert {spec.aux_loss for spec in specs_of("5")} == {LoadBalancing()}


def test_scores_of_figure_1_are_normalised_by_series():
    points = {0.0: [10.0, 30.0], 0.5: [40.0], 1.0: [30.0]}  # means 20, 40, 30
    assert min_max_normalised(points) == {0.0: [-0.5, 0.5], 0.5: [1.0], 1.0: [0.5]}
    assert min_max_normalised({0.0: [5.0], 1.0: [5.0]}) == {0.0: [0.0], 1.0: [0.0]}


def test_figures_are_drawn_from_the_command_line(tmp_path, capsys):
    write_run(tmp_path, "a", "lora")
    write_run(tmp_path, "b", "dora")
    assert load_program("paper").main(["draw", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert (
        printed[0] == str(tmp_path / "out" / "figure4.png") and "not drawn: figure 1" in printed[1]
    )
    assert load_program("paper").main(["draw", str(tmp_path / "out")]) == 2
    assert "no run in" in capsys.readouterr().err
