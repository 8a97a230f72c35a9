"""Fine-tuning with mixtures of LoRA experts (GOAT and its relatives) in JAX."""

from goat_jax.adapters.adapter import (
    AdapterStart,
    Report,
    apply_adapter,
    init_adapter,
    merge_adapter,
)
from goat_jax.adapters.context import Context
from goat_jax.adapters.methods import METHODS, Method, method_spec
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import RunFailed, UserError
from goat_jax.inject.inject import InjectReport, Override, inject
from goat_jax.integrations.attach import Adapted
from goat_jax.integrations.linen import adapt_linen
from goat_jax.integrations.nnx import adapt_nnx, merge_nnx, run_adapted
from goat_jax.models.load import Loaded, load_model
from goat_jax.nn.dense import Dense, Factor, Head, merge_model, run_model, split_model

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Adapted",
    "AdapterSpec",
    "AdapterStart",
    "Context",
    "Dense",
    "Factor",
    "Head",
    "InjectReport",
    "Loaded",
    "Method",
    "Override",
    "Report",
    "RunFailed",
    "UserError",
    "adapt_linen",
    "adapt_nnx",
    "apply_adapter",
    "init_adapter",
    "inject",
    "load_model",
    "merge_adapter",
    "merge_model",
    "merge_nnx",
    "method_spec",
    "run_adapted",
    "run_model",
    "split_model",
]
