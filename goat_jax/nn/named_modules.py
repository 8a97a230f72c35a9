"""Finds a model's modules and gives them their Hugging Face names.

A model may define ``hf_names() -> dict``, which maps its short paths to names, for example
``{"layers.query": "bert.encoder.layer.{}.attention.self.query"}``; ``{}`` stands for the layer's
number, and a second one for that of a mixture's expert. Without it the path itself is the name.
Targets, loading, export and parity all use these names, the same strings as torch and PEFT.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar, overload, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx

from goat_jax.adapters.adapter import Report
from goat_jax.nn.dense import Adaptable
from goat_jax.nn.mixture import Mixture
from goat_jax.nn.stack import Stack
from goat_jax.typing import Array, PyTree

M = TypeVar("M", bound=nnx.Module, covariant=True)


@dataclasses.dataclass(frozen=True)
class ModuleRef(Generic[M]):
    """A module of the model, with its path and name.

    Attributes:
        module: the module; its arrays have a leading layer axis when `layers` is not None.
        path: the module's path in the model, such as ("layers", "runs", 0, "query").
        pattern: the module's Hugging Face name, with ``{}`` for the layer's number.
        layers: the layers that the module holds; None outside a stack.
        experts: the number of a mixture's experts that it holds in each layer; None outside one.
    """

    module: M
    path: tuple[Any, ...]
    pattern: str
    layers: range | None
    experts: int | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        """The leading axes of its arrays: of layers and of experts, where it has them."""
        layers = () if self.layers is None else (len(self.layers),)
        return layers if self.experts is None else (*layers, self.experts)

    def names(self) -> list[str]:
        """Returns the full name of the module in every layer, and for every expert there."""
        return [name for names in self.names_by_layer() for name in names]

    def names_by_layer(self) -> list[list[str]]:
        """Returns the full names of the module in each layer."""
        experts = [()] if self.experts is None else [(expert,) for expert in range(self.experts)]
        layers = [()] if self.layers is None else [(layer,) for layer in self.layers]
        if not self.axes:
            return [[self.pattern]]
        return [[self.pattern.format(*layer, *each) for each in experts] for layer in layers]

    def each(self, array: Any) -> Any:
        """Returns an array with one leading axis, of all modules in the order of `names`."""
        return array.reshape(math.prod(self.axes), *array.shape[len(self.axes) :])

    def joined(self, array: Any) -> Any:
        """Returns an array of all modules, as `each` gives it, with the module's leading axes."""
        return array.reshape(*self.axes, *array.shape[1:])


@runtime_checkable
class _Named(Protocol):
    """A model that gives its modules their Hugging Face names."""

    def hf_names(self) -> dict[str, str]: ...


@overload
def find_modules(model: nnx.Module) -> list[ModuleRef[Adaptable]]: ...


@overload
def find_modules(model: nnx.Module, kind: type[M] | tuple[type[M], ...]) -> list[ModuleRef[M]]: ...


def find_modules(
    model: nnx.Module, kind: type[nnx.Module] | tuple[type[nnx.Module], ...] = Adaptable
) -> list[ModuleRef[Any]]:
    """Finds all modules of a kind, by default those that take adapters.

    They come in the order of `hf_names`, or else of the model's paths.

    >>> from goat_jax.models.encoder.model import Encoder, tiny_config
    >>> [ref.pattern for ref in find_modules(Encoder(tiny_config(), rngs=nnx.Rngs(0)))][1]
    'bert.encoder.layer.{}.attention.self.query'
    """
    table = model.hf_names() if isinstance(model, _Named) else {}
    modules = list(_modules(model))  # to walk through a model takes longer than all of the rest
    stacks = {path: module for path, module in modules if isinstance(module, Stack)}
    mixtures = {
        (*path, "experts"): module.num_experts
        for path, module in modules
        if isinstance(module, Mixture)
    }
    refs = []
    for path, module in modules:
        if isinstance(module, kind):
            stack, inner, layers = _place_in_stack(path, stacks)
            own_name = ".".join(str(part) for part in (*stack, *inner))
            number = () if layers is None else ("{}",)
            default = ".".join(str(part) for part in (*stack, *number, *inner))
            experts = next((n for at, n in mixtures.items() if path[: len(at)] == at), None)
            refs.append(ModuleRef(module, path, table.get(own_name, default), layers, experts))
    order = {pattern: place for place, pattern in enumerate(table.values())}
    return sorted(refs, key=lambda ref: order.get(ref.pattern, len(order)))


def _modules(model: nnx.Module) -> Iterator[tuple[tuple[Any, ...], nnx.Module]]:
    return ((tuple(path), module) for path, module in nnx.iter_modules(model))


def _place_in_stack(path: tuple, stacks: dict[tuple, Stack]) -> tuple[tuple, tuple, range | None]:
    """Returns the path of a module's stack, its path within a layer, and the layers it holds."""
    for length in range(len(path)):
        if path[:length] in stacks and len(path) > length + 1:
            run = path[length + 1]
            ranges = stacks[path[:length]].ranges()
            return path[:length], path[length + 2 :], ranges[run]
    return (), path, None


def find_stacks(model: nnx.Module) -> list[Stack]:
    """Finds all stacks of the model."""
    return [module for _, module in _modules(model) if isinstance(module, Stack)]


def reports_by_name(model: nnx.Module, sown: PyTree) -> dict[str, Report]:
    """Groups the reports that `dense.run_model` captured by module name.

    Returns:
        name pattern -> `Report` with aux_loss (L,), load (L, E), entropy (L,), where L runs over
        the modules that have an adapter there (`adapted_names`): one per layer, or per layer and
        expert of a mixture. If the context requested tokens, also weights (L, ..., E) and
        mean_weights (L, E), and if it requested them gate_equations (L, E, 1 + E), except for the
        experts of a mixture.
    """
    by_pattern: dict[str, list[Report]] = {}
    for ref in find_modules(model):
        if ref.module.adapter is None:
            continue
        report = _look_up(sown, ref.path)["adapter"]["report"][0]
        report = jax.tree.map(ref.each, report)
        by_pattern.setdefault(ref.pattern, []).append(report)
    return {name: _concatenate(reports) for name, reports in by_pattern.items()}


def _concatenate(runs: list[Report]) -> Report:
    """Joins the reports of a stack's runs; a run with fewer experts gets loads of zero."""
    experts = max(run.load.shape[-1] for run in runs)

    def joined(parts: list[Array]) -> Array:
        blank = [[(0, 0)] * (part.ndim - 1) + [(0, experts - part.shape[-1])] for part in parts]
        padded = [jnp.pad(part, pad) for part, pad in zip(parts, blank, strict=True)]
        return jnp.concatenate(padded)

    def joined_if_captured(parts: list[Array | None]) -> Array | None:
        captured = [part for part in parts if part is not None]
        return joined(captured) if captured else None

    def joined_equations(parts: list[Array | None]) -> Array | None:
        captured = [part for part in parts if part is not None]
        grown = [(0, experts - part.shape[1]) for part in captured]
        padded = [
            jnp.pad(part, [(0, 0), more, more]) for part, more in zip(captured, grown, strict=True)
        ]
        return jnp.concatenate(padded) if padded else None

    return Report(
        aux_loss=jnp.concatenate([run.aux_loss for run in runs]),
        load=joined([run.load for run in runs]),
        entropy=jnp.concatenate([run.entropy for run in runs]),
        weights=joined_if_captured([run.weights for run in runs]),
        mean_weights=joined_if_captured([run.mean_weights for run in runs]),
        gate_equations=joined_equations([run.gate_equations for run in runs]),
    )


def _look_up(sown: PyTree, path: tuple) -> PyTree:
    """Returns the captured values at a module's path.

    A stack keeps a run's under ``run_N``, a mixture its experts' under ``of_experts``.
    """
    parts = list(path)
    while parts:
        part = parts.pop(0)
        if part == "runs":
            sown = sown[f"run_{parts.pop(0)}"][0]
        elif f"of_{part}" in sown:
            sown = sown[f"of_{part}"][0]
        else:
            sown = sown[part]
    return sown


def adapted_names(model: nnx.Module) -> dict[str, list[str]]:
    """Maps each name pattern to its modules with an adapter, in the order of `reports_by_name`."""
    names: dict[str, list[str]] = {}
    for ref in find_modules(model):
        if ref.module.adapter is not None:
            names.setdefault(ref.pattern, []).extend(ref.names())
    return names


def name_number(name: str) -> int:
    """Returns a hash of a name that is stable across processes (Python's `hash` is not).

    >>> name_number("abc")
    891568578
    """
    return zlib.crc32(name.encode()) & 0x7FFFFFFF
