"""Every pair of a task and a method of the paper's tables is a run that traces at full size."""

from pathlib import Path

import jax
import pytest

from goat_jax.adapters.methods import METHODS
from goat_jax.config.files import load_config
from goat_jax.data.tasks.benchmarks.glue import GLUE
from goat_jax.data.tasks.benchmarks.vision import VISION
from goat_jax.data.tasks.image import ImageTask
from goat_jax.data.tasks.text import TextTask
from goat_jax.errors import UserError
from goat_jax.models.known_encoders import KNOWN_ENCODERS
from goat_jax.models.load import random_model
from goat_jax.models.registry import ARCHITECTURES
from goat_jax.training.abstract_run import abstract_run
from goat_jax.training.setup import adapt
from reproduction.published_scores import GLUE_SCORES, VISION_SCORES
from tiers import first_of_each

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TASKS = {"glue": [name for name in GLUE if name != "stsb"], "vision": list(VISION)}
TRAINABLE = sorted(set(METHODS) - {"moelora"})


def config_of(family, task, method, rest=""):
    return load_config(f"{CONFIGS / family}.py:task={task},method={method}{rest}")


@pytest.mark.slow
@pytest.mark.parametrize("family", TASKS)
def test_every_pair_is_a_run(family):
    for task in TASKS[family]:
        for method in TRAINABLE:
            config = config_of(family, task, method)
            config.adapter.spec()
            assert config.train.total_steps >= 100 == config.optimizer.warmup_steps
            assert isinstance(config.task, TextTask | ImageTask) and len(config.task.labels) > 1


def traces(family, task, method):
    run = abstract_run(config_of(family, task, method))
    metrics = run.check()
    assert metrics["loss"].shape == ()
    return run


@pytest.mark.slow
@pytest.mark.parametrize("family", TASKS)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_methods_trace_at_full_size(family, method):
    traces(family, TASKS[family][0], method)


# CI traces one adapter and whole kernels above, routed experts below, and every method at the size
# of Llama (tests/planning/test_abstract_run.py).
@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("family", TASKS)
@pytest.mark.parametrize("method", TRAINABLE)
def test_every_method_traces_at_full_size(family, method):
    traces(family, TASKS[family][0], method)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    first_of_each([(f, t) for f in TASKS for t in TASKS[f]], lambda case: case[:1]),
    ids="-".join,
)
def test_every_task_traces_at_full_size(case):
    """The tasks of a family differ in their labels alone, so CI traces one of each family."""
    family, task = case
    run = traces(family, task, "goat")
    assert run.eval_batch["labels"].shape == ((64,) if family == "glue" else (512,))


def test_heads_of_clip_are_frozen_trained_or_linear():
    frozen = abstract_run(config_of("vision", "dtd", "lora"))
    trained = abstract_run(config_of("vision", "dtd", "lora", ",train_head=true"))
    linear = abstract_run(config_of("vision", "dtd", "lora", ",head=linear"))
    counts = [run.inject_report.head_parameters for run in (frozen, trained, linear)]
    assert counts == [0, 512 * 47, 768 * 47 + 47]


def test_the_table_of_glue_is_for_every_family_of_encoders():
    for name in ("albert-base-v2", "modernbert-base", "deberta-v3-small"):  # other heads' names
        hf = KNOWN_ENCODERS[name]
        config = config_of("glue", "rte", "lora", f",model={name}")
        reports = []

        def start(hf=hf, config=config, reports=reports):
            model = random_model(hf, key=jax.random.key(0), num_layers=1).model
            reports.append(adapt(model, config, config.adapter.spec(), jax.random.key(1)))

        jax.eval_shape(start)
        rows = {row.name: row.what for row in reports[0].rows if row.what != "frozen"}
        head = ARCHITECTURES[hf["model_type"]].heads["sequence"]
        trained = [name for name, what in rows.items() if what == "trained in full"]
        assert trained == [name for name in head if not name.endswith("norm")]
        assert all("layer" in name for name in set(rows) - set(trained))
        width = hf["hidden_size"]
        assert reports[0].head_parameters >= width * width + 2 * width + 2


def test_steps_are_the_papers_epochs():
    assert config_of("vision", "dtd", "goat").train.steps == 76 * 7  # 3,760 images, 512 a batch
    assert config_of("glue", "rte", "goat").train.steps == 50 * 9


def test_full_fine_tuning_has_its_own_rate():
    """1e-5 in the script of GLUE; the script of images has one rate for all."""
    for family, full in (("glue", 1e-5), ("vision", 1e-4)):
        for method in TRAINABLE:
            expected = full if method in ("full", "full_moe") else 1e-4
            config = config_of(family, TASKS[family][0], method)
            assert config.optimizer.learning_rate == expected, method
        given = config_of(family, TASKS[family][0], "full", ",learning_rate=3e-6")
        assert given.optimizer.learning_rate == 3e-6


def test_averages_of_the_tables_are_the_papers():
    """The column the tables do not have here is a check of those they have."""
    for table, method, average in [
        (VISION_SCORES, "goat", 81.49), (VISION_SCORES, "full_moe", 84.40),
        (VISION_SCORES, "lora@32", 80.44), (VISION_SCORES, "hydralora", 79.58),
        (GLUE_SCORES, "goat", 89.76), (GLUE_SCORES, "lora", 88.46),
        (GLUE_SCORES, "milora", 89.51), (GLUE_SCORES, "pissa", 85.00),
    ]:  # fmt: skip
        scores = table[method].values()
        assert sum(scores) / len(scores) == pytest.approx(average, abs=0.011)


def test_a_method_that_one_task_cannot_train_says_so():
    with pytest.raises(UserError, match="moelora weights experts by the task of each row"):
        config_of("glue", "rte", "moelora")
