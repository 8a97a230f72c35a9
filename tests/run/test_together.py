"""Runs trained at once under vmap are the runs they would be alone."""

import dataclasses
import json

import numpy as np
import pytest

from goat_jax.cli import main
from goat_jax.commands.compare import entry_config, read_entries, with_parameters_of
from goat_jax.errors import UserError
from goat_jax.run.fit import fit
from goat_jax.run.records import read_records
from goat_jax.run.shapes import abstract_run
from goat_jax.run.together import Member, train_together, with_member

MEMBERS = [Member(0, 1e-2), Member(1, 1e-2), Member(1, 2e-3)]


@pytest.fixture(scope="module")
def short(config):
    """Eight steps, without dropout (whose masks differ under vmap)."""
    adapter = dataclasses.replace(config.adapter, dropout=0.0)
    train = dataclasses.replace(config.train, steps=8, log_every=1, eval_every=8)
    return dataclasses.replace(config, adapter=adapter, train=train)


@pytest.mark.parametrize("method", [pytest.param("goat", marks=pytest.mark.slow), "lora_plus"])
def test_members_are_the_runs_they_would_be_alone(short, tmp_path, method):
    adapter = dataclasses.replace(short.adapter, method=method)
    short = dataclasses.replace(short, adapter=adapter)
    together = list(train_together(short, MEMBERS, at_once=3))
    for place in (0, 2):
        alone = with_member(short, MEMBERS[place])
        summary = fit(dataclasses.replace(alone, out=str(tmp_path / str(place))), progress=False)
        records = [r for r in read_records(summary.folder) if r["kind"] == "train"]
        losses = [record["task_loss"] for record in records]
        np.testing.assert_allclose(together[place].losses, losses, rtol=2e-4)
        assert summary.before is not None
        for name in ("loss", "accuracy"):
            for own, theirs in (
                (together[place].before, summary.before),
                (together[place].after, summary.after),
            ):
                np.testing.assert_allclose(own[name], theirs[name], rtol=2e-4)
    assert len({outcome.losses for outcome in together}) == 3
    assert len({outcome.trained_parameters for outcome in together}) == 1


@pytest.mark.slow
def test_members_with_frozen_kernels_of_their_own_run_apart(short):
    """Random segments make another residual for every seed."""
    adapter = dataclasses.replace(short.adapter, choice="random")
    train = dataclasses.replace(short.train, steps=4)
    short = dataclasses.replace(short, adapter=adapter, train=train)
    apart = list(train_together(short, MEMBERS[:2], at_once=2))
    alone = list(train_together(short, MEMBERS[1:2], at_once=1))
    assert apart[1].losses == alone[0].losses


@pytest.mark.slow
def test_compare_writes_a_table_and_a_figure_and_does_not_train_twice(tiny, tmp_path, capsys):
    arguments = ["compare", "--config", f"{tiny / 'config.py'}:steps=4", "--seeds", "0", "1"]
    arguments += ["--at-once", "2", "--out", str(tmp_path / "out"), "--methods", "goat,lora"]
    assert main(arguments) == 0
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert table in capsys.readouterr().out + "\n"
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["goat", "lora"]
    assert table.count("±") == 2 * 2  # accuracy and loss of two methods
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000
    path = tmp_path / "out" / "goat.json"
    saved = json.loads(path.read_text())
    saved["runs"] = saved["runs"][:1]
    saved["runs"][0]["after"]["loss"] = 123.0  # to be seen again, since it is not trained again
    path.write_text(json.dumps(saved))
    assert main(arguments) == 0
    found = [run["after"]["loss"] for run in json.loads(path.read_text())["runs"]]
    assert found[0] == 123.0 and found[1] < 2.0
    assert main([*arguments[:2], f"{tiny / 'config.py'}:steps=5", *arguments[3:]]) == 2
    assert "holds runs of another config (train.steps)" in capsys.readouterr().err


def test_equal_parameters(tiny):
    source = str(tiny / "config.py")
    goat, lora, full = (
        entry_config(source, entry) for entry in read_entries(["goat", "lora", "full:dropout=0"])
    )
    like = with_parameters_of(lora, goat)
    target, plain, equal = (
        abstract_run(each).inject_report.adapter_parameters for each in (goat, lora, like)
    )
    of_one_rank = plain / 8
    assert abs(equal - target) <= of_one_rank / 2 < abs(plain - target)
    assert with_parameters_of(full, goat) == full


def test_entries_that_make_no_sense(tiny):
    with pytest.raises(UserError, match="a method is named twice: goat, goat"):
        read_entries(["goat,goat"])
    (entry,) = read_entries(["lora:rho=3"])
    with pytest.raises(UserError, match="no option 'rho'"):
        entry_config(str(tiny / "config.py"), entry)
