"""Writes and reads routed adapters as PEFT folders of the tuner in `goat_jax.torch`, exactly.

The base model is the pretrained one: what the start of the experts takes off its kernels is in the
file as frozen factors, so no decomposition is needed to load it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from goat_jax.errors import UserError
from goat_jax.interop.folders import read_about, read_tensors
from goat_jax.interop.import_adapter import Imported
from goat_jax.interop.modules import AdaptedModule
from goat_jax.interop.peft.target_names import most_common
from goat_jax.interop.peft.write import PREFIX
from goat_jax.registry import REGISTRY
from goat_jax.validation.base_samples import places
from goat_jax.validation.renamed import present_options

TYPE = "GOAT"
"""Value of peft_type."""

EXPERTS = "goat_experts"
"""Name that the tuner gives a module's experts."""

LAYOUTS = ("pairs", "shared")
"""Layouts of factors that the tuner computes with."""

ROUTERS = ("none", "softmax", "top_k", "top_p", "top_k_shared", "threshold", "task")
"""Routers that PyTorch has, the keys of `goat_jax.torch.modeling_goat.ROUTERS`."""

INITIAL = {"router_std"}
"""Options of parts that matter at the start only."""

SAMPLE = "base_sample"
"""The tuner's name of the samples of a pretrained kernel."""

MATRIX = "router.linear.weight"
"""The tuner's name of a router's matrix."""

TENSORS = {
    "threshold_bias": "router.bias",
    "task_embedding": "router.embedding.weight",
    "task_gate": "router.gate.weight",
}
"""Trained arrays of routers besides their matrix -> the tuner's names; gates are transposed."""


def routed_config(
    modules: Mapping[str, AdaptedModule], ranks: Mapping[str, int], recipe: Mapping[str, Any]
) -> dict[str, Any]:
    """Builds the adapter_config.json of routed adapters.

    Args:
        modules: module -> its trained adapter.
        ranks: module -> the rank of what was taken off its pretrained kernel.
        recipe: the run's settings (`AdapterConfig`), with which `read_routed` makes it again.
    """
    fields = {name: _fields(module, ranks[name]) for name, module in modules.items()}
    keys = next(iter(fields.values()))
    usual = {key: most_common([each[key] for each in fields.values()]) for key in keys}
    other = {
        name: {key: value for key, value in own.items() if value != usual[key]}
        for name, own in fields.items()
    }
    patterns = {name: own for name, own in other.items() if own}
    return {"peft_type": TYPE, **usual, "patterns": patterns, "recipe": dict(recipe)}


def mixture_fields(module: AdaptedModule) -> dict[str, Any]:
    """Returns the settings of a module's experts and router by the tuner's names.

    Raises:
        UserError: PyTorch has no such router.
    """
    spec = module.spec
    router, options = _named("router", spec.router)
    if router not in ROUTERS:
        raise UserError(
            f"the router {router!r} is not one of goat_jax.torch, which has {', '.join(ROUTERS)}"
        )
    return {
        "r": spec.rank,
        "num_experts": spec.num_experts,
        "shared_a": spec.combine.layout == "shared",
        "top_k": spec.top_k,
        "router": router,
        "router_options": options,
    }


def _fields(module: AdaptedModule, start_rank: int) -> dict[str, Any]:
    spec = module.spec
    aux_loss, aux_options = _named("aux_loss", spec.aux_loss)
    return {
        **mixture_fields(module),
        "start_rank": start_rank,
        "aux_loss": aux_loss,
        "aux_loss_options": aux_options,
        "aux_weight": spec.aux_weight,
        "dropout": spec.dropout,
    }


def _named(kind: str, part: Any) -> tuple[str, dict[str, Any]]:
    """Returns a part's name and its options."""
    name = next(name for name, cls in REGISTRY[kind].items() if cls is type(part))
    return name, {k: v for k, v in dataclasses.asdict(part).items() if k not in INITIAL}


def routed_tensors(
    name: str, module: AdaptedModule, removed: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the tensors of one module by the tuner's names, without PEFT's prefix.

    Args:
        name: the module.
        module: its trained adapter.
        removed: the factors (I, Q) and (Q, O) of what was taken off the pretrained kernel.

    Raises:
        UserError: the adapter is more than a sum of weighted products.
    """
    tensors = mixture_tensors(name, module)
    tensors |= {
        "expert_scaling": module.scale,
        "start_a": removed[0].T,
        "start_b": removed[1].T,
        SAMPLE: base_sample(module.kernel, removed),
    }
    return {f"{name}.{EXPERTS}.{key}": np.asarray(value) for key, value in tensors.items()}


def base_sample(kernel: np.ndarray, removed: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Returns samples of a pretrained kernel by which the tuner knows the base model.

    Args:
        kernel: the frozen kernel (I, O).
        removed: the factors (I, Q) and (Q, O) of what was taken off the pretrained one.
    """
    rows, columns = zip(*places(*kernel.shape[::-1]), strict=True)  # of PyTorch's (O, I)
    taken = np.einsum("nq,qn->n", removed[0][list(columns)], removed[1][:, list(rows)])
    return kernel[list(columns), list(rows)].astype(np.float32) + taken.astype(np.float32)


def mixture_tensors(name: str, module: AdaptedModule) -> dict[str, np.ndarray]:
    """Returns the trained tensors of one module by the names of `Mixture` in PyTorch.

    Args:
        name: the module.
        module: its trained adapter.

    Raises:
        UserError: the adapter is more than a sum of weighted products.
    """
    spec = module.spec
    combine: Any = spec.combine
    if combine.layout not in LAYOUTS or combine.replaces or module.constants:
        raise UserError(
            f"{name} is adapted by {type(combine).__name__}, which is not a sum of weighted "
            "products: goat_jax.torch has no form for it"
        )
    arrays = {key: jnp.asarray(value) for key, value in module.arrays.items()}
    a, b = (arrays["a"], arrays["b"]) if combine.layout == "shared" else combine.pairs(arrays)
    tensors = {
        "expert_a.weight": jnp.moveaxis(a, 1, -1).reshape(-1, a.shape[1]),
        "expert_b.weight": b.reshape(-1, b.shape[-1]).T,
    }
    matrix = spec.router.matrix(arrays)
    if matrix is not None:
        tensors[MATRIX] = matrix.T
    tensors |= {TENSORS[key]: array for key, array in arrays.items() if key in TENSORS}
    if TENSORS["task_gate"] in tensors:
        tensors[TENSORS["task_gate"]] = arrays["task_gate"].T
    return {key: np.asarray(value) for key, value in tensors.items()}


def read_routed(folder: Path, config: Mapping[str, Any]) -> Imported:
    """Reads a folder that `routed_config` and `routed_tensors` describe, trained on or not.

    Args:
        folder: the folder.
        config: its adapter_config.json.

    Raises:
        UserError: the adapter was not made by a run of goat_jax, or tensors are missing or have
            unknown names or shapes.
    """
    settings = {
        k: v for k, v in present_options(config.get("recipe") or {}).items() if v is not None
    }
    if "method" not in settings:
        raise UserError(
            f"{folder} has no recipe: it was made in PyTorch, and what its start took off the "
            "kernels cannot be made again here"
        )
    if config.get("trainable_token_indices"):
        raise UserError(f"{folder} has trained vectors of tokens, which are not read with routers")
    patterns = config.get("patterns") or {}
    if any(set(own) - {"start_rank"} for own in patterns.values()):
        raise UserError(f"{folder} has modules with settings of their own, which are not read")
    by_module: dict[str, dict[str, np.ndarray]] = {}
    head, samples = {}, {}
    for name, tensor in read_tensors(folder).items():
        module, found, key = name.removeprefix(PREFIX).rpartition(f".{EXPERTS}.")
        if not found:
            head[name.removeprefix(PREFIX)] = tensor
        elif key == SAMPLE:
            samples[module] = tensor.astype(np.float32)
        elif not key.startswith("start_"):
            by_module.setdefault(module, {})[key] = tensor.astype(np.float32)
    modules = {name: _factors(folder, name, own, config) for name, own in by_module.items()}
    options = {
        **settings,
        "target_modules": tuple(modules),
        "modules_to_save": tuple(sorted({name.rpartition(".")[0] for name in head})),
    }
    base = config.get("base_model_name_or_path")
    sha256 = read_about(folder).get("base_sha256")
    return Imported(
        str(folder), base, sha256, options, True, (), modules, head, base_samples=samples
    )


def _factors(
    folder: Path, name: str, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns the arrays of one module by our names."""
    experts, rank = config["num_experts"], config["r"]
    try:
        a, b = tensors["expert_a.weight"].T, tensors["expert_b.weight"].T
        factors = {
            "a": np.moveaxis(a.reshape(len(a), -1, rank), 1, 0),
            "b": b.reshape(experts, rank, -1),
        }
    except (KeyError, ValueError):
        raise UserError(f"{folder}: the experts of {name} are missing or of another size") from None
    if MATRIX in tensors:
        matrix = tensors[MATRIX].T
        factors["router"] = matrix[:, :experts]
        if matrix.shape[1] > experts:
            factors["threshold"] = matrix[:, experts:]
    factors |= {ours: tensors[key] for ours, key in TENSORS.items() if key in tensors}
    if "task_gate" in factors:
        factors["task_gate"] = factors["task_gate"].T
    return factors
