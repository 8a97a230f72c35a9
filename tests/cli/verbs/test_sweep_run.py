"""A small sweep that really trains."""

import json

import pytest

from goat_jax.cli.main import main
from tiny_run import LIGHT


@pytest.mark.slow
def test_rates_share_a_step_and_the_table_has_what_was_trained(tiny, tmp_path):
    out = tmp_path / "sweep"
    axes = ["adapter.rho=1,5", "optimizer.learning-rate=1e-4,1e-2"]
    command = ["sweep", "--config", f"{tiny / 'config.py'}:{LIGHT}", "--over", *axes]
    command += ["--train.steps", "6", "--adapter.dropout", "0", "--runs-per-step", "2"]
    assert main([*command, "--out", str(out)]) == 0
    runs = json.loads((out / "adapter.rho-5.json").read_text())["runs"]
    assert [run["variant"]["learning_rate"] for run in runs] == [1e-4, 1e-2]
    slow, fast = runs
    assert slow["losses"][0] == pytest.approx(fast["losses"][0], rel=1e-4)  # one start
    assert fast["after"]["loss"] < slow["after"]["loss"] - 0.05  # of all rows: 0.61 and 0.76
    first = (out / "sweep.md").read_text().splitlines()[2]
    best = max(run["after"]["accuracy"] for run in runs)
    other = json.loads((out / "adapter.rho-1.json").read_text())["runs"]
    best = max(best, *(run["after"]["accuracy"] for run in other))
    assert f"{best:.4f}" in first
