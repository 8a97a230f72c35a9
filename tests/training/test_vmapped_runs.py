"""Runs trained at once under vmap are the runs they would be alone."""

import dataclasses
import gc
import json
import weakref

import numpy as np
import pytest

from goat_jax.cli.main import main
from goat_jax.cli.verbs.compare import entry_config, read_entries, with_parameters_of
from goat_jax.errors import RunFailed
from goat_jax.training import vmapped_runs as together
from goat_jax.training.abstract_run import abstract_run
from goat_jax.training.logging.metrics_log import read_records
from goat_jax.training.trainer import fit
from goat_jax.training.vmapped_runs import RunVariant, shared_step, train_vmapped, with_variant
from kinds import present
from tiny_run import LIGHT

DIVERGING = RunVariant(0, 1e30)
ALONE = {"num_experts": 1, "top_k": 1}
MEMBERS = [RunVariant(0, 1e-2), RunVariant(1, 1e-2), RunVariant(1, 2e-3)]


def shortened(config):
    """Eight steps, without dropout (whose masks differ under vmap)."""
    adapter = dataclasses.replace(config.adapter, dropout=0.0)
    train = dataclasses.replace(config.train, steps=8, log_every=1, eval_every=8)
    return dataclasses.replace(config, adapter=adapter, train=train)


@pytest.fixture(scope="module")
def short(two_modules):
    return shortened(two_modules)


def with_options(config, **options):
    return dataclasses.replace(config, adapter=dataclasses.replace(config.adapter, **options))


def alone(config, folder):
    """Losses and last scores of a run of its own."""
    summary = fit(dataclasses.replace(config, out=str(folder)), progress=False)
    records = [r for r in read_records(summary.folder) if r["kind"] == "train"]
    return [record["task_loss"] for record in records], summary.after


def assert_same(result, expected):
    losses, after = expected
    np.testing.assert_allclose(result.losses, losses, rtol=2e-4)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(result.after[name], after[name], rtol=2e-4)


@pytest.fixture
def sizes(monkeypatch):
    """The number of runs of every group that is trained."""
    found = []
    train = together._VmappedGroup.train
    monkeypatch.setattr(
        together._VmappedGroup, "train", lambda self: found.append(len(self.configs)) or train(self)
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "third"),
    # PiSSA starts from other factors, scales and frozen kernels than LoRA.
    [("lora", "pissa"), pytest.param("lora_plus", "lora_plus", marks=pytest.mark.nightly)],
)
def test_members_are_the_runs_they_would_be_alone(method, third, short, tmp_path, sizes):
    # One after the other, without a norm between them: the products of the last variant overflow.
    options = ALONE | {"target_modules": r".*\d\.(intermediate|output)\.dense"}
    methods = (method, method, third, method)
    runs = [
        with_variant(with_options(short, method=name, **options), variant)
        for name, variant in zip(methods, (*MEMBERS, DIVERGING), strict=True)
    ]
    *together, diverged = list(train_vmapped(runs, runs_per_step=4))
    assert sizes == [4]
    assert_same(together[2], alone(runs[2], tmp_path / "2"))  # a seed and a rate of its own
    assert len({result.losses for result in together}) == 3
    assert len({result.trained_parameters for result in together}) == 1
    assert [result.variant for result in together] == MEMBERS
    assert [result.diverged for result in together] == [None] * 3
    with pytest.raises(RunFailed, match=f"step {diverged.diverged}: the loss is"):
        alone(runs[-1], tmp_path / "diverged")
    assert len(diverged.losses) == present(diverged.diverged) - 1 and diverged.after == {}
    assert np.isfinite(diverged.losses).all()


STARTS = {
    "numbers": ({"rho": 2.0}, {"eta": 0.5, "aux_weight": 0.5}, {"segments": "random"}),
    "optimizer": tuple(
        {**ALONE, "method": "lora_pro", "alpha": alpha, "forward_scale": 2.0}
        for alpha in (8.0, 2.0)
    ),
    "methods": tuple({**ALONE, "method": name} for name in ("lora", "pissa")),
}


# In CI the runs above start differently.
@pytest.mark.nightly
@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
def test_runs_that_start_differently_share_a_step(short, tmp_path, sizes, starts):
    gentle = with_variant(
        short, RunVariant(0, 2e-3)
    )  # LoRA-Pro solves with b near 0: rounding grows
    runs = [with_options(gentle, **options) for options in starts]
    found = list(train_vmapped(runs, runs_per_step=len(runs)))
    assert sizes == [len(runs)]
    assert len({result.losses for result in found}) == len(runs)
    assert_same(found[-1], alone(runs[-1], tmp_path / "alone"))


def test_runs_that_step_differently_do_not(short):
    same = [
        {"rho": 3.0},
        {"alpha": 1.0},
        {"aux_weight": 0.0},
        {"segments": "random"},
    ]
    other = [{"top_k": 1}, {"dropout": 0.1}, {"total_rank": 16}, {"method": "hydralora"}]
    assert all(shared_step(with_options(short, **each)) == shared_step(short) for each in same)
    assert all(shared_step(with_options(short, **each)) != shared_step(short) for each in other)
    longer = dataclasses.replace(short, train=dataclasses.replace(short.train, steps=9))
    assert shared_step(longer) != shared_step(short)


@pytest.mark.slow
def test_compare_writes_a_table_and_a_figure_and_does_not_train_twice(tiny, tmp_path, capsys):
    arguments = [
        "compare",
        "--config",
        f"{tiny / 'config.py'}:{LIGHT},steps=4",
        "--seeds",
        "0",
        "1",
    ]
    arguments += ["--runs-per-step", "2", "--out", str(tmp_path / "out"), "--methods", "lora,pissa"]
    assert main(arguments) == 0
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert table in capsys.readouterr().out + "\n"
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["lora", "pissa"]
    assert table.count("±") == 2 * 2  # accuracy and loss of two methods
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000
    path = tmp_path / "out" / "lora.json"
    saved = json.loads(path.read_text())
    saved["runs"] = saved["runs"][:1]
    saved["runs"][0]["after"]["loss"] = 123.0  # to be seen again, since it is not trained again
    path.write_text(json.dumps(saved))
    assert main(arguments) == 0
    found = [run["after"]["loss"] for run in json.loads(path.read_text())["runs"]]
    assert found[0] == 123.0 and found[1] < 2.0
    assert main([*arguments[:2], f"{tiny / 'config.py'}:{LIGHT},steps=5", *arguments[3:]]) == 2
    assert "holds runs of another config (train.steps)" in capsys.readouterr().err


@pytest.mark.slow
def test_equal_parameters(tiny):
    source = str(tiny / "config.py")
    goat, lora = (entry_config(source, entry) for entry in read_entries(["goat", "lora"]))
    adapter = dataclasses.replace(goat.adapter, method="full", dropout=0.0)
    full = dataclasses.replace(goat, adapter=adapter)
    like = with_parameters_of(lora, goat)
    target, plain, equal = (
        abstract_run(each).inject_report.adapter_parameters for each in (goat, lora, like)
    )
    of_one_rank = plain / 8
    assert abs(equal - target) <= of_one_rank / 2 < abs(plain - target)
    assert with_parameters_of(full, goat) == full


def test_a_group_is_freed_once_it_is_trained(short, monkeypatch):
    """Its arrays would add up over the runs of a study."""
    groups = []
    init = together._VmappedGroup.__init__

    def noted(self, *given):
        init(self, *given)
        groups.append(weakref.ref(self))

    monkeypatch.setattr(together._VmappedGroup, "__init__", noted)
    assert len(list(train_vmapped([with_variant(short, MEMBERS[0])]))) == 1
    gc.collect()
    assert [group() for group in groups] == [None]
