"""Fine-tuning with mixtures of LoRA experts (GOAT and its relatives) in JAX."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goat_jax.adapters.adapter import (
        AdapterInit,
        Report,
        apply_adapter,
        init_adapter,
        merge_adapter,
    )
    from goat_jax.adapters.context import Context
    from goat_jax.adapters.methods import METHODS, Method, method_spec
    from goat_jax.adapters.spec import AdapterSpec
    from goat_jax.errors import RunFailed, UserError
    from goat_jax.inference.predictions import Predictions
    from goat_jax.inference.trained_run import TrainedRun, load
    from goat_jax.injection.inject import inject
    from goat_jax.injection.report import InjectReport
    from goat_jax.injection.selection import Override
    from goat_jax.integrations.attach import Adapted
    from goat_jax.integrations.linen import adapt_linen
    from goat_jax.integrations.nnx import adapt_nnx, merge_nnx, run_adapted
    from goat_jax.models.load import Loaded, load_model
    from goat_jax.nn.dense import Dense, Factor, Head, merge_model, run_model, split_model
    from goat_jax.training.from_data import train

__version__ = "0.2.0"

__all__ = [
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

_HOMES = {
    "Adapted": "integrations.attach",
    "AdapterSpec": "adapters.spec",
    "AdapterInit": "adapters.adapter",
    "Context": "adapters.context",
    "Dense": "nn.dense",
    "Factor": "nn.dense",
    "Head": "nn.dense",
    "InjectReport": "injection.report",
    "Loaded": "models.load",
    "METHODS": "adapters.methods",
    "Method": "adapters.methods",
    "Override": "injection.selection",
    "Predictions": "inference.predictions",
    "Report": "adapters.adapter",
    "RunFailed": "errors",
    "TrainedRun": "inference.trained_run",
    "UserError": "errors",
    "adapt_linen": "integrations.linen",
    "adapt_nnx": "integrations.nnx",
    "apply_adapter": "adapters.adapter",
    "init_adapter": "adapters.adapter",
    "inject": "injection.inject",
    "load": "inference.trained_run",
    "load_model": "models.load",
    "merge_adapter": "adapters.adapter",
    "merge_model": "nn.dense",
    "merge_nnx": "integrations.nnx",
    "method_spec": "adapters.methods",
    "run_adapted": "integrations.nnx",
    "run_model": "nn.dense",
    "split_model": "nn.dense",
    "train": "training.from_data",
}
"""Public name -> its module. Imported at the first use: the command line answers without them."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
