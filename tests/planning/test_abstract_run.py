"""A run of shapes is the run that `build` makes, and it traces at the size of any model."""

import dataclasses
import json

import jax
import pytest

from goat_jax.adapters.methods import METHODS
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import language_files, make_task
from goat_jax.errors import UserError
from goat_jax.injection.selection import Override
from goat_jax.models.known_sizes import NAMED, model_config
from goat_jax.models.registry import ARCHITECTURES
from goat_jax.pretrained.resolve import open_checkpoint
from goat_jax.training.abstract_run import abstract_run
from goat_jax.training.data import load_data
from goat_jax.training.setup import build
from tiers import first_of_each


def shapes(tree):
    return jax.tree.map(lambda a: (tuple(a.shape), str(a.dtype)), tree)


def check_shapes(real, abstract):
    assert shapes(abstract.state) == shapes(real.state)
    assert shapes(abstract.base) == shapes(real.base)
    assert abstract.inject_report == real.inject_report
    assert abstract.kind == real.kind


def check_metrics(config, real, abstract):
    batch = next(load_data(config).train)
    _, metrics = jax.eval_shape(real.train_step, real.state, real.base, batch)
    assert shapes(abstract.check()) == shapes(metrics)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        ("lora_pro", "bfloat16"),
        ("full_moe", "bfloat16"),
        # In CI it is the run below, which has more to follow.
        pytest.param("goat", "float32", marks=(pytest.mark.slow, pytest.mark.nightly)),
    ],
)
def test_shapes_are_those_of_the_real_run(two_modules, method, dtype):
    model = dataclasses.replace(two_modules.model, dtype=dtype)
    adapter = dataclasses.replace(two_modules.adapter, method=method, dropout=None)
    config = dataclasses.replace(two_modules, model=model, adapter=adapter)
    check_shapes(build(config), abstract_run(config))


@pytest.fixture(scope="module")
def both(two_modules):
    """A config of GOAT with overrides, a forward scale and micro-batches; its run in both forms."""
    config = two_modules
    adapter = dataclasses.replace(
        config.adapter,
        forward_scale=2.0,
        overrides=(Override(r".*layer\.0\..*", {"total_rank": 16}),),
    )
    train = dataclasses.replace(config.train, grad_accum_steps=4)
    config = dataclasses.replace(config, adapter=adapter, train=train)
    return config, build(config), abstract_run(config)


@pytest.mark.slow
def test_forward_scale_and_overrides_are_followed(both):
    _, real, abstract = both
    check_shapes(real, abstract)


@pytest.mark.slow
def test_metrics_of_micro_batches_are_those_of_a_step(both):
    check_metrics(*both)


@pytest.mark.slow
@pytest.mark.nightly  # one batch is less than several
def test_metrics_are_those_of_a_step(config):
    check_metrics(config, build(config), abstract_run(config))


def test_batches_are_those_of_the_data(config):
    # As long as the longest row, so that the data need no other length.
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_length=16))
    real = load_data(config)
    train, abstract = next(real.train), abstract_run(config)
    assert shapes(abstract.batch) == shapes(train)
    assert {n: a.dtype for n, a in abstract.eval_batch.items()} == {
        n: a.dtype for n, a in real.evaluation[0].items()
    }


FULL_SIZE = {
    "roberta-large": 355_361_794,
    "clip-vit-base-patch32": 87_457_538,
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "smollm2-135m": 134_515_008,
}
"""Parameters of the model with a head of two classes, as transformers counts them."""


def full_size(name, method="lora", total_rank=16):
    tasks = {"text encoder": "rte", "language model": "gsm8k", "image encoder": "image_files"}
    columns = {"image_files": {"train": "a", "evaluation": "b", "labels": ("cat", "dog")}}
    task = tasks[ARCHITECTURES[NAMED[name]["model_type"]].kind]
    return RunConfig(
        ModelConfig(name, dtype="bfloat16"),
        make_task(task, **columns.get(task, {})),
        AdapterConfig(method, total_rank=total_rank, modules_to_save=()),
        train=TrainConfig(batch_size=4, max_length=64),
    )


@pytest.mark.parametrize("name", FULL_SIZE)
def test_named_models_have_their_published_size(name):
    report = abstract_run(full_size(name)).inject_report
    assert report.total_parameters - report.adapter_parameters == FULL_SIZE[name]


# The first model of each family; `test_known_sizes.py` counts the parameters of all of them.
OTHERS = {
    NAMED[name]["model_type"]: name for name in reversed(list(NAMED)) if name not in FULL_SIZE
}.values()


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_named_models_can_be_built(name):
    assert abstract_run(full_size(name)).inject_report.adapter_parameters > 0


def way_to_combine(method):
    """The rest of every method is traced at small sizes (test_contract.py)."""
    return [METHODS[method].spec.combine.layout]


# MoELoRA's gate needs numbers of tasks, which rows of a single task do not have.
TRACED = ["goat", *(name for name in METHODS if name not in ("goat", "moelora"))]


@pytest.mark.slow
@pytest.mark.parametrize("method", first_of_each(TRACED, way_to_combine))
def test_every_method_traces_a_step_of_llama(method):
    sizes = {"multilora": 24, "molora_soft": 20}
    abstract_run(full_size("llama-2-7b", method, sizes.get(method, 16))).check()


def test_a_folder_needs_no_weights(tmp_path):
    folder = tmp_path / "sizes"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(NAMED["smollm2-135m"])))
    named = abstract_run(full_size("smollm2-135m"))
    assert abstract_run(full_size("llama-2-7b"), folder).inject_report == named.inject_report
    with pytest.raises(UserError, match=r"no weights|safetensors"):
        open_checkpoint(folder)


def test_what_does_not_fit_is_one_line(config):
    with pytest.raises(UserError, match=r"dinov2-base is a image encoder, but task files needs"):
        abstract_run(config, "dinov2-base")
    with pytest.raises(UserError, match=r"did you mean 'llama-2-7b'"):
        model_config("meta-llama/lama-2-7b")


def test_a_step_that_changes_its_state_is_found(config):
    run = abstract_run(config)
    broken = dataclasses.replace(run, train_step=lambda state, base, batch: (None, {}))
    with pytest.raises(ValueError, match="changes the shapes"):
        broken.check()


def test_language_task_without_files_is_enough():
    """Nothing is read: neither rows nor weights."""
    config = dataclasses.replace(
        full_size("llama-2-7b"), task=language_files("nowhere.jsonl", "nowhere.jsonl")
    )
    assert abstract_run(config).batch["input_ids"].shape == (4, 64)
