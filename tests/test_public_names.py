"""Public names of `goat_jax`: a list that changes on purpose only, each name documented."""

import ast
import dataclasses
import importlib.resources
import inspect
import subprocess
import sys

import pytest

import goat_jax
import goat_jax.config.run

PUBLIC = [
    "METHODS",
    "Adapted",
    "AdapterInit",
    "AdapterSpec",
    "Context",
    "Dense",
    "Factor",
    "Head",
    "InjectReport",
    "Loaded",
    "Method",
    "Override",
    "Predictions",
    "Report",
    "RunFailed",
    "TrainedRun",
    "UserError",
    "adapt_linen",
    "adapt_nnx",
    "apply_adapter",
    "init_adapter",
    "inject",
    "load",
    "load_model",
    "merge_adapter",
    "merge_model",
    "merge_nnx",
    "method_spec",
    "run_adapted",
    "run_model",
    "split_model",
    "train",
]
"""Names that a release must not lose. A new one is added here and to `__all__`."""

OF_CONFIGS = {
    "AdapterConfig": (
        "method target_modules modules_to_save total_rank num_experts top_k alpha dropout "
        "dropout_per_expert aux_weight scale segments rho eta reference_code count_padding options "
        "defaults forward_scale overrides"
    ),
    "MeshConfig": "data fsdp tensor sequence rules",
    "ModelConfig": "path dtype remat quantize dropout attention options",
    "OptimizerConfig": (
        "learning_rate schedule warmup_steps weight_decay max_grad_norm beta1 beta2 epsilon"
    ),
    "RunConfig": "model task adapter optimizer train mesh svd logging out",
    "SvdConfig": "folder keep route",
    "TrainConfig": (
        "steps batch_size grad_accum_steps max_length num_buckets data_threads eval_batch_size "
        "eval_every save_every log_every early_stopping_patience best_by grace_seconds save_errors "
        "changed_rows seed"
    ),
    "LoggingConfig": "utilization profile wandb",
}
"""Classes of `goat_jax.config.run` and their fields, which config files and run folders have."""

OF_RUNS = {
    "goat_jax.config.files": "load_config",
    "goat_jax.config.guess": "config_for",
    "goat_jax.data.tasks.registry": "make_task files image_files language_files",
    "goat_jax.optim.optimizer": "OptimizerConfig",
    "goat_jax.interop.export_run": "export_run",
    "goat_jax.training.logging.summary": "Summary",
    "goat_jax.training.trainer": "begin fit",
    "goat_jax.planning.plan": "plan",
    "goat_jax.training.checkpoints.restore": "restore_run",
    "goat_jax.training.abstract_run": "abstract_run",
    "goat_jax.training.vmapped_runs": "RunVariant RunResult train_vmapped with_variant",
}
"""Names that programs around runs import, by module."""


def test_the_public_names_are_these():
    assert goat_jax.__all__ == PUBLIC
    assert all(hasattr(goat_jax, name) for name in PUBLIC)


def test_every_public_name_is_documented():
    for name in PUBLIC:
        value = getattr(goat_jax, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        assert value.__doc__ and len(value.__doc__.split()) > 3, name
        assert not value.__doc__.startswith(f"{name}("), f"{name} has no text of its own"
        arguments = inspect.signature(value).parameters if inspect.isfunction(value) else {}
        for argument in arguments.values():
            assert argument.annotation is not inspect.Parameter.empty, f"{name}({argument})"


@pytest.mark.parametrize("name", OF_CONFIGS)
def test_configs_keep_their_fields(name):
    found = {field.name for field in dataclasses.fields(getattr(goat_jax.config.run, name))}
    assert found >= set(OF_CONFIGS[name].split())


@pytest.mark.parametrize("module", OF_RUNS)
def test_runs_keep_their_functions(module):
    found = importlib.import_module(module)
    missing = [name for name in OF_RUNS[module].split() if not hasattr(found, name)]
    assert not missing


def test_it_is_typed():
    assert importlib.resources.files("goat_jax").joinpath("py.typed").is_file()


@pytest.mark.slow
def test_names_are_imported_at_their_first_use():
    code = "import sys, goat_jax; print(sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    code += "; goat_jax.inject; print(goat_jax.inject.__name__, 'inject' in dir(goat_jax))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "inject True"]


def test_homes_and_the_imports_that_type_checkers_read_agree():
    tree = ast.parse(inspect.getsource(goat_jax))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    read = {
        alias.name: node.module.removeprefix("goat_jax.")
        for node in checked.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert read == goat_jax._HOMES and set(read) == set(goat_jax.__all__)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="'goat_jax' has no attribute 'nosuch'"):
        goat_jax.nosuch  # noqa: B018
