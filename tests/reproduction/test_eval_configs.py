"""The paper's runs of its language tables: every method's config is made, and some are traced."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from goat_jax.adapters.methods import METHODS
from goat_jax.adapters.parts.scales import TheoreticalScale
from goat_jax.cli.arguments.config import override, with_adapter
from goat_jax.config.fields import config_from_json, flatten
from goat_jax.config.files import load_config
from goat_jax.data.tasks.benchmarks.commonsense import FOLDERS
from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.data.tasks.language import LanguageTask
from goat_jax.errors import UserError
from goat_jax.training.abstract_run import abstract_run
from kinds import expect

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROW = {
    "instruction": "Hot?\n\nAnswer format: true/false",
    "output": "the correct answer is true",
    "answer": "true",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files under the names of their publishers."""
    root = tmp_path_factory.mktemp("files")
    for parts in FOLDERS.values():
        (root / parts[0]).mkdir()
        (root / parts[0] / "test.json").write_text(json.dumps([ROW]))
    for name in ("commonsense_170k", "MetaMathQA-395K", "WizardLM_evol_instruct_70k", "question"):
        (root / f"{name}.json").write_text("[]")
    for name in ("CodeFeedback-Filtered-Instruction", "test"):
        (root / f"{name}.jsonl").write_text("")
    return root


def config_of(family, folder, **options):
    given = {"folder": folder} | options
    if family != "commonsense":
        given["questions"] = folder
    rest = ",".join(f"{name}={value}" for name, value in given.items())
    return load_config(f"{CONFIGS / family}.py:{rest}")


FAMILIES = ("commonsense", "math", "code", "chat")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_has_a_config(family, folder):
    for method in sorted(set(METHODS) - {"moelora"}):
        config = config_of(family, folder, method=method)
        config.adapter.spec()
        assert isinstance(config.task, EvalTask) and config.train.total_steps > 0


@pytest.mark.parametrize("task", FOLDERS)
def test_every_set_can_be_learnt_alone(task, folder):
    config = config_of("commonsense", folder, task=task)
    assert config.task.name == task and config.task.evaluation.endswith("test.json")


def test_sizes_are_the_papers(folder):
    expected = {
        "commonsense": (32, 64.0, 16, 3 * (170300 // 16), 1e-4, 0.1),
        "math": (8, 16.0, 32, 5 * (100_000 // 32), 2e-5, 1.0),
        "code": (8, 16.0, 32, 5 * (100_000 // 32), 2e-5, 1.0),
        "chat": (8, 16.0, 32, 5 * (52_000 // 32), 2e-5, 1.0),
    }
    for family, (rank, alpha, batch, steps, rate, eta) in expected.items():
        config = config_of(family, folder)
        spec = config.adapter.spec()
        assert (spec.total_rank, spec.alpha, spec.num_experts) == (rank, alpha, 8)
        assert (config.train.batch_size, config.train.steps) == (batch, steps)
        assert (config.optimizer.learning_rate, config.optimizer.warmup_steps) == (rate, 100)
        assert expect(TheoreticalScale, spec.scale).eta == eta and spec.dropout == 0.05
        assert not expect(LanguageTask, config.task).packing  # a batch is so many rows of the set
    spec = config_of("math", folder, learning_rate=1e-4).adapter.spec()
    assert expect(TheoreticalScale, spec.scale).eta == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("goat", {}),
        ("goat_plus", {}),
        ("molora", {"scale": "theory"}),
        ("lora", {"scale": "theory"}),
        ("hydralora", {"scale": "theory"}),
    ],
)
def test_eta_goes_with_the_scale_rule_not_with_the_methods_name(family, method, options, folder):
    """s_1 = sqrt(3 * 4096 eta / d) of a projection of LLaMA, whatever method has the rule."""
    eta = 0.1 if family == "commonsense" else 1.0
    config = with_adapter(config_of(family, folder, method=method), options)
    for adapter in (config.adapter, config_from_json(flatten(config)).adapter):
        spec = adapter.spec()
        given = spec.initializer.decompose(jnp.eye(64), spec, jax.random.key(0))
        first = float(spec.scale(4096, given, spec)[0])
        assert first == pytest.approx((3 * 4096 * eta / spec.rank) ** 0.5, rel=1e-6)
    own = with_adapter(config, {"eta": 0.25}).adapter.spec()  # what is given wins
    first = float(own.scale(4096, given, own)[0])
    assert first == pytest.approx((3 * 4096 * 0.25 / spec.rank) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_published_codes_own_scale_is_taken(family, folder):
    """alpha / d = 16: what the published scripts run."""
    config = config_of(family, folder)
    for changed in (
        with_adapter(config, {"scale": "alpha_over_rank"}),
        override(config, ["--adapter.scale", "alpha_over_rank"], "test"),
    ):
        spec = changed.adapter.spec()
        assert spec.scale(4096, None, spec).tolist() == [16.0] * 8
    with pytest.raises(UserError, match="no option 'eta'"):  # asked for by name it is refused
        with_adapter(config, {"scale": "alpha_over_rank", "eta": 0.5})


def test_full_fine_tuning_has_its_own_rate(folder):
    rates = {"commonsense": (1e-4, 1e-5), "math": (2e-5, 2e-5)}
    rates |= dict.fromkeys(("code", "chat"), (2e-5, 1e-5))
    for family, expected in rates.items():
        for method, rate in zip(("goat", "full"), expected, strict=True):
            config = config_of(family, folder, method=method)
            assert config.optimizer.learning_rate == rate
            given = config_of(family, folder, method=method, learning_rate=3e-6)
            assert given.optimizer.learning_rate == 3e-6


@pytest.mark.slow
@pytest.mark.parametrize(("family", "method"), [("commonsense", "lora"), ("math", "goat")])
def test_a_run_traces_at_full_size(family, method, folder):
    """LLaMA-2-7B, its adapters, optimizer and step, without weights; the paper's share (0.84%)."""
    run = abstract_run(config_of(family, folder, method=method))
    assert run.check()["loss"].shape == ()
    report = run.inject_report
    model = report.total_parameters - report.adapter_parameters
    assert 6.7e9 < model < 6.8e9
    share = 100 * report.adapter_parameters / model
    assert share == pytest.approx({"commonsense": 0.84, "math": 0.43}[family], abs=0.02)
