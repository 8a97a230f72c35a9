"""LoRA on a mixture's experts, which PEFT has as one adapter of a parameter of all experts.

PEFT calls them `target_parameters`. Of X experts and rank r, row e r + j of lora_A and column
j X + e of lora_B belong to expert e. Several parameters of a module are wrapped one in another, the
first inside: its tensors are named after the `base_layer` of the next.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from goat_jax.errors import UserError
from goat_jax.interop.import_adapter import Imported
from goat_jax.interop.low_rank import LowRank
from goat_jax.interop.peft.patterns import by_pattern
from goat_jax.models.expert_tensors import ExpertTensor

INNER = ".base_layer"


class ExpertAdapter(NamedTuple):
    """The adapter of a parameter of all experts.

    Attributes:
        a: the first factors (X, I, R).
        b: the second factors (X, R, O).
        scale: the scale of their products.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float


def join_experts(
    modules: Mapping[str, LowRank], tensors: Sequence[ExpertTensor], experts: int
) -> tuple[dict[str, LowRank], dict[str, ExpertAdapter]]:
    """Returns the adapters of other modules, and those of parameters by the parameters' names.

    Args:
        modules: module -> its adapter.
        tensors: the parameters of the experts.
        experts: the number X of experts.

    Raises:
        UserError: an expert has DoRA's magnitudes.
    """
    others: dict[str, LowRank] = {}
    layers: dict[str, dict[tuple[int, int], LowRank]] = {}
    of_name = {}
    for name, module in modules.items():
        each = next((each for each in tensors if each.of_layer(name)), None)
        if each is None:
            others[name] = module
            continue
        if module.magnitude is not None:
            raise UserError(f"{name} is of an expert, whose magnitudes PEFT cannot have")
        whole, expert, part = each.of_layer(name) or ("", 0, 0)
        of_name[whole] = each
        layers.setdefault(whole, {})[expert, part] = module
    return others, {name: _joined(of_name[name], own, experts) for name, own in layers.items()}


def _joined(
    each: ExpertTensor, layers: Mapping[tuple[int, int], LowRank], experts: int
) -> ExpertAdapter:
    parts = sorted({part for _, part in layers})
    total = len(each.parts) * layers[0, parts[0]].b.shape[1]
    first = [layers[expert, parts[0]] for expert in range(experts)]
    shared = len(parts) == len(each.parts) and all(
        layers[expert, part].scale == first[0].scale
        and np.array_equal(layers[expert, part].a, first[expert].a)
        for expert in range(experts)
        for part in parts
    )
    ranks = [max(layers[expert, part].a.shape[1] for expert in range(experts)) for part in parts]
    starts = [0] * len(parts) if shared else [sum(ranks[:place]) for place in range(len(parts))]
    rank = ranks[0] if shared else sum(ranks)
    a = np.zeros((experts, first[0].a.shape[0], rank), np.float32)
    b = np.zeros((experts, rank, total), np.float32)
    for expert in range(experts):
        for start, part in zip(starts, parts, strict=True):
            own = layers[expert, part]
            rows = slice(start, start + own.a.shape[1])
            a[expert][:, rows] = own.a
            b[expert][rows, each.outputs(part, total)] = own.b if shared else own.scale * own.b
    return ExpertAdapter(a, b, first[0].scale if shared else 1.0)


def expert_tensors(
    adapters: Mapping[str, ExpertAdapter], tensors: Sequence[ExpertTensor]
) -> dict[str, np.ndarray]:
    """Returns PEFT's tensors of the parameters, by PEFT's names without the prefix."""
    found = {}
    for name, adapter in adapters.items():
        owner = name.rpartition(".")[0]
        order = [f"{owner}.{_short(each)}" for each in tensors]
        targeted = [other for other in order if other in adapters]
        inner = INNER * (len(targeted) - 1 - targeted.index(name))
        x, features, rank = adapter.a.shape
        found[f"{owner}{inner}.lora_A.weight"] = adapter.a.swapaxes(1, 2).reshape(-1, features)
        columns = adapter.b.transpose(2, 1, 0).reshape(-1, rank * x)
        found[f"{owner}{inner}.lora_B.weight"] = columns
    return found


def _short(each: ExpertTensor) -> str:
    return each.name.rpartition(".")[2]


def split_experts(adapter: Imported, tensors: Sequence[ExpertTensor], experts: int) -> Imported:
    """Returns an adapter with those of parameters as adapters of the experts' layers.

    Args:
        adapter: the adapter as read.
        tensors: the parameters of the experts.
        experts: the number X of experts.

    Raises:
        UserError: the sizes are not those of so many experts.
    """
    modules: dict[str, Mapping[str, np.ndarray]] = {}
    settings: dict[tuple[int, float], list[str]] = {}
    split = set()
    for name, arrays in adapter.modules.items():
        key, each = _parameter(name, adapter.parameters, tensors)
        if each is None:
            modules[name] = arrays
            continue
        split.add(name)
        rank, alpha = _rank_and_alpha(adapter.config, key)
        a, b = arrays["a"][0], arrays["b"][0]
        if a.shape[1] != rank * experts or b.shape[0] != rank * experts:
            raise UserError(
                f"{adapter.source}: {key} has {a.shape[1]} ranks, which is not {rank} for each of "
                f"{experts} experts"
            )
        firsts = a.reshape(-1, experts, rank).swapaxes(0, 1)
        seconds = b.reshape(rank, experts, -1).swapaxes(0, 1)
        prefix = key.removesuffix(each.name)
        for part, pattern in enumerate(each.parts):
            own = seconds[..., each.outputs(part, b.shape[1])]
            used = _used(own)
            size = used.shape[1]
            change = math.sqrt(size / rank) if adapter.config.get("use_rslora") else size / rank
            names = settings.setdefault((size, alpha * change), [])
            for expert in range(experts):
                layer = prefix + pattern.format(expert)
                names.append(layer)
                modules[layer] = {
                    "a": firsts[expert][None][:, :, used[expert]],
                    "b": own[expert][None][:, used[expert]],
                }
    if not split:
        return adapter
    kept = tuple(
        (tuple(name for name in names if name not in split), values)
        for names, values in adapter.overrides
    )
    usual = adapter.options["total_rank"], adapter.options["alpha"]
    own_overrides = tuple(
        (tuple(names), {"total_rank": rank, "alpha": alpha})
        for (rank, alpha), names in settings.items()
        if (rank, alpha) != usual
    )
    overrides = (*((names, values) for names, values in kept if names), *own_overrides)
    return dataclasses.replace(adapter, modules=modules, overrides=overrides)


def _parameter(
    name: str, parameters: Sequence[str], tensors: Sequence[ExpertTensor]
) -> tuple[str, ExpertTensor | None]:
    """Returns the full name of the parameter that a wrapper is for, and the parameter."""
    owner, depth = name.replace(INNER, ""), name.count(INNER)
    keys = [(f"{owner}.{_short(each)}", each) for each in tensors]
    targeted = [
        (key, each)
        for key, each in keys
        if f".{key}".endswith("." + each.name)
        and any(f".{key}".endswith("." + given) for given in parameters)
    ]
    return targeted[-1 - depth] if depth < len(targeted) else ("", None)


def _rank_and_alpha(config: Mapping[str, Any], key: str) -> tuple[int, float]:
    rank = by_pattern(key, config.get("rank_pattern"), config.get("r", 8))
    return rank, float(by_pattern(key, config.get("alpha_pattern"), config.get("lora_alpha", 8)))


def _used(b: np.ndarray) -> np.ndarray:
    """Returns the ranks (X, n) that the layers of experts use of (X, R, O).

    A layer beside others in a parameter has zeros for the ranks of those; all experts of a layer
    need one number of ranks.
    """
    used = np.any(b, -1)
    counts = used.sum(-1)
    if not counts[0] or (counts != counts[0]).any():
        used = np.ones_like(used)
    return np.nonzero(used)[1].reshape(len(b), -1)
