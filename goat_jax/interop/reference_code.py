"""Reads and writes routed adapters with the tensor names of the GOAT paper's published code.

Both directions are exact, bit for bit. Each module has ``NAME.lora_A.I.weight`` (R, in) and
``NAME.lora_B.I.weight`` (out, R) for every expert I, and ``NAME.lora_gating.weight`` (E, in); heads
keep their names. The frozen residual kernel is not in the file: a reader subtracts the initial
adapter from the pretrained weights again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.errors import UserError
from goat_jax.interop.folders import (
    ADAPTER,
    ADAPTER_CONFIG,
    open_adapter,
    read_tensors,
    write_json,
    write_tensors,
)
from goat_jax.interop.import_adapter import Imported
from goat_jax.interop.modules import AdaptedModule
from goat_jax.validation.renamed import present_options

TYPE = "GOAT_PUBLISHED"
"""Value of peft_type in adapter_config.json, which makes PEFT reject the folder, not misread it."""

GATING = "lora_gating.weight"
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.(\d+)\.weight")


def published_tensors(modules: Mapping[str, AdaptedModule]) -> dict[str, np.ndarray]:
    """Returns the tensors of all modules by their published names.

    Raises:
        UserError: an adapter has other parts than experts a, b and one router matrix.
    """
    tensors = {}
    for name, module in modules.items():
        if set(module.factors) != {"a", "b", "router"} or module.spec.combine.layout != "pairs":
            raise UserError(
                f"{name} has {', '.join(module.factors)} with {type(module.spec.router).__name__}: "
                "the published code has pairs of experts and one router matrix"
            )
        pairs = zip(module.factors["a"], module.factors["b"], strict=True)
        for number, (a, b) in enumerate(pairs):
            tensors[f"{name}.lora_A.{number}.weight"] = a.T
            tensors[f"{name}.lora_B.{number}.weight"] = b.T
        tensors[f"{name}.{GATING}"] = module.factors["router"].T
    return tensors


def write_published(
    folder: Path,
    modules: Mapping[str, AdaptedModule],
    head: Mapping[str, np.ndarray],
    base: str,
    options: Mapping[str, Any],
) -> None:
    """Writes the tensors, and the settings (`AdapterConfig`) that are needed to use them.

    Args:
        folder: the folder to write to.
        modules: the trained modules by name.
        head: PyTorch's tensors of the modules that were trained in full.
        base: the name or path of the base model.
        options: the settings.

    Raises:
        UserError: an adapter has other parts than experts a, b and one router matrix.
    """
    write_tensors(folder / ADAPTER, {**published_tensors(modules), **head})
    about = {"peft_type": TYPE, "base_model_name_or_path": base, "settings": dict(options)}
    write_json(folder / ADAPTER_CONFIG, about)


def is_published(source: Path) -> bool:
    """True if an adapter file has the published names."""
    return any(name.endswith(GATING) for name in open_adapter(source))


def read_published(source: Path, config: Mapping[str, Any], base_sha256: str | None) -> Imported:
    """Reads the adapter of a folder or a safetensors file with the published names.

    Args:
        source: the folder or file.
        config: the adapter_config.json that `write_published` wrote, {} if there is none.
        base_sha256: the hash of the base model's weights, None if it is unknown.

    Raises:
        UserError: experts or a router are missing, or the modules differ in the number or rank of
            their experts.
    """
    tensors = read_tensors(source)
    by_module: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    routers, head = {}, {}
    for name, value in tensors.items():
        if match := _FACTOR.fullmatch(name):
            module, key, number = match[1], match[2].lower(), int(match[3])
            by_module.setdefault(module, {}).setdefault(key, {})[number] = value.T
        elif name.endswith(GATING):
            routers[name.removesuffix("." + GATING)] = value.T
        else:
            head[name] = value
    modules = {name: _stacked(source, name, arrays, routers) for name, arrays in by_module.items()}
    sizes = {name: module["a"].shape for name, module in modules.items()}
    experts, _, rank = next(iter(sizes.values()))
    for name, shape in sizes.items():
        if (shape[0], shape[2]) != (experts, rank):
            raise UserError(
                f"{source}: {name} has {shape[0]} experts of rank {shape[2]}, others have "
                f"{experts} of {rank}: the published code has one size for all"
            )
    settings = dict(present_options(config.get("settings", {})))
    options = {
        **{key: value for key, value in settings.items() if value is not None},
        "total_rank": experts * rank,
        "num_experts": experts,
        "target_modules": tuple(modules),
        "modules_to_save": tuple(sorted({name.rpartition(".")[0] for name in head})),
    }
    base = config.get("base_model_name_or_path")
    whole = bool(settings)
    return Imported(str(source), base, base_sha256, options, whole, (), modules, head)


def _stacked(
    source: Path,
    name: str,
    arrays: Mapping[str, Mapping[int, np.ndarray]],
    routers: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Stacks the factors a (E, I, R), b (E, R, O) and router (I, E) of one module."""
    numbers = list(range(len(arrays.get("a", ()))))
    whole = all(sorted(arrays.get(key, ())) == numbers for key in ("a", "b"))
    if not numbers or not whole or name not in routers or routers[name].shape[1] != len(numbers):
        raise UserError(f"{source}: some experts of {name} or its router are missing")
    pairs = {key: np.stack([arrays[key][number] for number in numbers]) for key in ("a", "b")}
    return {**pairs, "router": routers[name]}
