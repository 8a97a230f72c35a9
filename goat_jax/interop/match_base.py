"""Matches an imported adapter to a base model: renames its modules and unties embeddings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from goat_jax.interop.import_adapter import Imported
from goat_jax.interop.peft.expert_adapters import split_experts
from goat_jax.interop.peft.fused_adapters import split_adapter
from goat_jax.models.registry import Architecture, Tie


@dataclasses.dataclass(frozen=True)
class Fitted:
    """An adapter matched to a base model.

    Attributes:
        adapter: the adapter with the model's module names.
        options: the fields of the model's config that the adapter requires.
        notes: remarks for the user, one line each.
    """

    adapter: Imported
    options: Mapping[str, Any]
    notes: tuple[str, ...]


def fit_adapter(
    adapter: Imported, architecture: Architecture, hf: Mapping[str, Any], modules: Collection[str]
) -> Fitted:
    """Renames an adapter's modules to the model's names, and unties embeddings that it has untied.

    An adapter made on a bare model lacks the prefix of the names, and one made with transformers 4
    has old names. Tensors for parts that our model does not have (a pooler that no classifier
    reads, another task's head) are dropped and named in a note.

    Args:
        adapter: the adapter.
        architecture: the model's architecture.
        hf: the model's config.json.
        modules: the names of all modules of the model that have parameters.
    """
    if architecture.fused:
        adapter = split_adapter(adapter, architecture.fused, architecture.config_of(hf))
    mixture = getattr(architecture.config_of(hf), "mixture", None)
    if mixture is not None:
        experts, tensors = mixture.num_experts, architecture.expert_tensors
        adapter = split_experts(adapter, tensors, experts)
    tie = architecture.tie
    if tie is not None:  # a model with tied embeddings has no module with the second name
        modules = {*modules, _module(tie.name), _module(tie.twin)}
    names = {name: _our_name(name, architecture, modules) for name in adapter.modules}
    unused = [
        name for name, module in names.items() if module is None and _unused(name, architecture)
    ]
    kept = {name: module or name for name, module in names.items() if name not in unused}
    heads = {name: _our_tensor(name, architecture, modules) for name in adapter.head}
    foreign = [
        name
        for name, module in heads.items()
        if module is None and not name.startswith(architecture.prefix)
    ]
    head = {
        module or name: adapter.head[name] for name, module in heads.items() if name not in foreign
    }
    left_out = [*unused, *foreign]
    notes = (
        f"{adapter.source}: {', '.join(sorted(left_out))} left out, the model has no such part",
    )
    head, options = _tied(head, tie, hf)
    return Fitted(
        dataclasses.replace(
            adapter,
            modules={module: adapter.modules[name] for name, module in kept.items()},
            head=head,
            base_samples={
                module: adapter.base_samples[name]
                for name, module in kept.items()
                if name in adapter.base_samples
            },
            frozen={
                _our_tensor(name, architecture, modules) or name: tensor
                for name, tensor in adapter.frozen.items()
            },
            rows={
                _our_name(name, architecture, modules) or name: vectors
                for name, vectors in adapter.rows.items()
            },
            overrides=tuple(
                (tuple(kept[name] for name in group if name in kept), values)
                for group, values in adapter.overrides
                if any(name in kept for name in group)
            ),
            options={
                **adapter.options,
                "target_modules": tuple(kept.values()),
                "modules_to_save": tuple(sorted({_module(name) for name in head})),
            },
        ),
        options,
        notes if left_out else (),
    )


def _our_name(name: str, architecture: Architecture, modules: Collection[str]) -> str | None:
    """Returns the model's name of a module, None if it has no such module."""
    for whole in (name, architecture.prefix + name):
        current = architecture.todays_name(whole + ".").removesuffix(".")
        if current in modules:
            return current
    return None


def _our_tensor(name: str, architecture: Architecture, modules: Collection[str]) -> str | None:
    module, dot, parameter = name.rpartition(".")
    our_module = _our_name(module if dot else name, architecture, modules)
    return our_module and our_module + dot + (parameter if dot else "")


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _unused(name: str, architecture: Architecture) -> bool:
    """True if our model leaves the module out, because nothing reads it."""
    tie = architecture.tie
    return any(
        re.fullmatch(architecture.family.ignored, weight) and (tie is None or weight != tie.name)
        for weight in (f"{name}.weight", f"{architecture.prefix}{name}.weight")
    )


def _tied(
    head: Mapping[str, np.ndarray], tie: Tie | None, hf: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the fully trained tensors and the options, for a base that may tie two of them.

    PEFT trains a copy of a module in full, even if another module shares its array. So the two stay
    tied only if the adapter has both and they are equal; otherwise the model has to be untied.
    """
    head = dict(head)
    if tie is None or not tie.applies(hf) or not {tie.name, tie.twin} & set(head):
        return head, {}
    if {tie.name, tie.twin} <= set(head) and tie.equal(head):
        del head[tie.name]
        return head, {}
    return head, {tie.field: False}
