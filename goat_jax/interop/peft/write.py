"""Writes adapters in Hugging Face PEFT's format: adapter_config.json and the tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.adapters.parts.scales import AlphaOverRootRank
from goat_jax.errors import UserError
from goat_jax.interop.folders import ADAPTER, ADAPTER_CONFIG, write_json, write_tensors
from goat_jax.interop.low_rank import LowRank
from goat_jax.interop.modules import AdaptedModule
from goat_jax.interop.peft.target_names import most_common

PREFIX = "base_model.model."
"""Prefix that PEFT adds to the names of the wrapped model."""

ACTIVATIONS = {"relu": "relu", "silu": "silu", "tanh": "tanh", "identity": "linear"}
"""Our name of an activation -> PEFT's."""


def lora_config(modules: Mapping[str, LowRank], root: bool) -> dict[str, Any]:
    """Builds the adapter_config.json of LoRA or DoRA, with its ranks and scales.

    Args:
        modules: module -> its adapter as plain LoRA.
        root: whether scales are alpha / sqrt(r), as in rsLoRA.

    >>> one, two = (LowRank(np.ones((4, r)), np.ones((r, 4)), 2.0, None, True) for r in (2, 3))
    >>> found = lora_config({"q": one, "k": one, "v": two}, False)
    >>> found["r"], found["lora_alpha"], found["rank_pattern"], found["alpha_pattern"]
    (2, 4, {'v': 3}, {'v': 6})
    """
    ranks = {name: module.a.shape[1] for name, module in modules.items()}
    alphas = {
        name: _plain(module.scale * (math.sqrt(ranks[name]) if root else ranks[name]))
        for name, module in modules.items()
    }
    rank, alpha = most_common(list(ranks.values())), most_common(list(alphas.values()))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "use_rslora": root,
        "use_dora": any(module.magnitude is not None for module in modules.values()),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }


def _plain(value: float) -> float | int:
    """Restores the number that the user wrote from its float32 rounding."""
    short = float(f"{value:.7g}")
    return int(short) if short.is_integer() else short


def lora_tensors(
    modules: Mapping[str, LowRank], tables: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Returns PEFT's tensors of LoRA and DoRA, by PEFT's names without the prefix.

    Args:
        modules: module -> its adapter as plain LoRA.
        tables: those of the modules that are embedding tables.
    """
    tensors = {}
    for name, module in modules.items():
        ending = "lora_embedding_{}" if name in tables else "lora_{}.weight"
        tensors[f"{name}.{ending.format('A')}"] = module.a.T
        tensors[f"{name}.{ending.format('B')}"] = module.b.T
        if module.magnitude is not None:
            tensors[f"{name}.lora_magnitude_vector"] = module.magnitude
    return tensors


def is_root(modules: Mapping[str, LowRank], adapted: Mapping[str, AdaptedModule]) -> bool:
    """True if all scales follow rsLoRA and all factors are exactly the trained ones."""
    return all(module.as_trained for module in modules.values()) and all(
        isinstance(each.spec.scale, AlphaOverRootRank) for each in adapted.values()
    )


def network_config(modules: Mapping[str, AdaptedModule]) -> dict[str, Any]:
    """Builds the adapter_config.json of PEANuT, PEFT's name of NEAT.

    Raises:
        UserError: PEFT cannot express the networks.
    """
    first = next(iter(modules.values()))
    for name, module in modules.items():
        combine: Any = module.spec.combine
        same = combine == first.spec.combine and module.spec.rank == first.spec.rank
        if not same or module.scale[0] != first.scale[0]:
            raise UserError(
                f"{name} has a different network from the first module: PEFT has one for all"
            )
        if combine.over_inputs:
            raise UserError(
                "over_inputs=true: PEFT's PEANuT acts on the output axis only, so it has no form "
                "for this adapter: use --to merged"
            )
    network: Any = first.spec.combine
    return {
        "peft_type": "PEANUT",
        "r": first.spec.rank,
        "depth": network.depth,
        "act_fn": ACTIVATIONS[network.activation],
        "scaling": _plain(float(first.scale[0])),
        "init_weights": True,
    }


def network_tensors(modules: Mapping[str, AdaptedModule]) -> dict[str, np.ndarray]:
    """Returns PEFT's tensors of PEANuT, by PEFT's names without the prefix."""
    tensors = {}
    for name, module in modules.items():
        tensors[f"{name}.peanut_A.weight"] = module.factors["a"][0].T
        tensors[f"{name}.peanut_B.weight"] = module.factors["b"][0].T
        for key in ("encoders", "decoders"):
            for number, matrix in enumerate(module.factors.get(key, ())):
                tensors[f"{name}.peanut_{key}.{number}.weight"] = matrix.T
    return tensors


def write_peft(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    head: Mapping[str, np.ndarray],
    *,
    target_modules: list[str],
    heads: list[str],
    task_type: str | None,
    base: str,
) -> None:
    """Writes a PEFT folder.

    Args:
        folder: the folder to write to.
        config: the adapter_config.json, from `lora_config` or `network_config`.
        tensors: the adapter's tensors, from `lora_tensors` or `network_tensors`.
        head: PyTorch's tensors of the modules that were trained in full.
        target_modules: the value of target_modules in adapter_config.json.
        heads: the value of modules_to_save in adapter_config.json.
        task_type: the task type, as PEFT names it.
        base: the name or path of the base model.
    """
    common = {
        "base_model_name_or_path": base,
        "task_type": task_type,
        "target_modules": target_modules,
        "modules_to_save": heads or None,
        "inference_mode": True,
    }
    write_json(folder / ADAPTER_CONFIG, {**config, **common})
    named = {**tensors, **head}
    write_tensors(folder / ADAPTER, {PREFIX + name: tensor for name, tensor in named.items()})
