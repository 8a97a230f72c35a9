"""Reads and writes a model's kernels, adapters and heads by PyTorch name, one layer at a time.

The functions hide that the arrays of several layers may be stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError, nearest
from goat_jax.models.torch_layout import Layout, parameters
from goat_jax.nn.dense import Adaptable, Adapter, Head
from goat_jax.nn.named_modules import ModuleRef, find_modules
from goat_jax.nn.vocabulary import TokenTable, VocabularyOutput
from goat_jax.typing import Array

Read = Callable[[str, tuple[int, ...]], np.ndarray]
"""(PyTorch's name, PyTorch's shape) -> a float32 tensor of that shape; raises `UserError` if there
is none."""


class ModuleStart(NamedTuple):
    """The values of an adapted module.

    Attributes:
        kernel: the frozen kernel, (I, O).
        factors: the trained arrays a (E, I, R), b (E, R, O), router (I, E).
        scale: the experts' scales, (E,).
    """

    kernel: np.ndarray
    factors: dict[str, np.ndarray]
    scale: np.ndarray


class AdaptedModule(NamedTuple):
    """The spec and values of an adapted module.

    Attributes:
        spec: the adapter's method and sizes.
        kernel: the frozen kernel, (I, O).
        factors: the adapter's trained arrays by name.
        constants: the adapter's frozen arrays by name.
        scale: the experts' scales, (E,).
    """

    spec: AdapterSpec
    kernel: np.ndarray
    factors: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    scale: np.ndarray

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Factors and constants by name."""
        return self.factors | self.constants


def read_kernels(model: nnx.Module, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns the kernels (I, O) of these modules by name.

    Raises:
        UserError: no linear layer of the model has this name.
    """
    kernels = {}
    for ref in find_modules(model):
        kernels |= dict(zip(ref.names(), _layers(ref, ref.module.kernel), strict=True))
    for name in names:
        if name not in kernels:
            raise UserError(f"the model has no linear layer {name!r}{nearest(name, kernels)}")
    return {name: kernels[name] for name in names}


def _layers(ref: ModuleRef, variable: nnx.Variable[Array]) -> np.ndarray:
    return ref.each(np.asarray(variable[...]))


def _stack(ref: ModuleRef, arrays: list[np.ndarray]) -> Array:
    return jnp.asarray(ref.joined(np.stack(arrays)))


def _adapted(model: nnx.Module) -> Iterator[tuple[ModuleRef, Adaptable, Adapter]]:
    for ref in find_modules(model):
        if ref.module.adapter is not None:
            yield ref, ref.module, ref.module.adapter


def read_starts(model: nnx.Module) -> dict[str, ModuleStart]:
    """Returns the values of all adapted modules by name."""
    starts = {}
    for ref, dense, adapter in _adapted(model):
        kernels, scales = _layers(ref, dense.kernel), _layers(ref, adapter.scale)
        factors = {name: _layers(ref, getattr(adapter, name)) for name in adapter.names}
        for layer, name in enumerate(ref.names()):
            layer_factors = {key: value[layer] for key, value in factors.items()}
            starts[name] = ModuleStart(kernels[layer], layer_factors, scales[layer])
    return starts


def read_adapted(model: nnx.Module) -> Iterator[tuple[str, AdaptedModule]]:
    """Yields all adapted modules with their names, one layer at a time.

    Only the arrays of one stack of layers are on the host at a time.
    """
    for ref, dense, adapter in _adapted(model):
        kernels, scales = _layers(ref, dense.kernel), _layers(ref, adapter.scale)
        trained, frozen = (
            {name: _layers(ref, getattr(adapter, name)) for name in names}
            for names in (adapter.names, adapter.constant_names)
        )
        for layer, name in enumerate(ref.names()):
            factors = {key: value[layer] for key, value in trained.items()}
            constants = {key: value[layer] for key, value in frozen.items()}
            yield (
                name,
                AdaptedModule(adapter.spec, kernels[layer], factors, constants, scales[layer]),
            )


def write_starts(model: nnx.Module, starts: Mapping[str, ModuleStart]) -> None:
    """Sets the kernels and factors of all adapted modules in place; scales are unchanged."""
    for ref, dense, adapter in _adapted(model):
        layers = [starts[name] for name in ref.names()]
        dense.kernel.set_value(_stack(ref, [start.kernel for start in layers]))
        for key in adapter.names:
            value = _stack(ref, [start.factors[key] for start in layers])
            getattr(adapter, key).set_value(value)


def _head_parameters(
    model: nnx.Module, modules: Iterable[str]
) -> dict[str, tuple[nnx.Variable[Array], Layout]]:
    """Maps PyTorch's name of a head's parameter to our variable and its PyTorch layout."""
    by_module: dict[str, dict[str, tuple[nnx.Variable[Array], Layout]]] = {}
    stacked = set()
    for ref, parameter, layout in parameters(model):
        name = ref.names()[0]
        variable = getattr(ref.module, parameter)
        by_module.setdefault(name, {})[layout.full_name(name)] = (variable, layout)
        stacked |= set(ref.names()) if ref.axes else set()
    chosen = {}
    for name in modules:
        if name in stacked:
            raise UserError(f"{name!r} is one of a stack of layers: only a head is trained in full")
        if name not in by_module:
            raise UserError(f"the model has no module {name!r} to train{nearest(name, by_module)}")
        chosen |= by_module[name]
    return chosen


def write_head(model: nnx.Module, modules: Iterable[str], read: Read) -> None:
    """Sets the values of fully trained modules in place.

    Args:
        model: the model.
        modules: the names of the modules.
        read: the function that returns a tensor by its PyTorch name and shape.

    Raises:
        UserError: the model has no such module, or it is one of a stack of layers.
    """
    for name, (variable, layout) in _head_parameters(model, modules).items():
        value = read(name, layout.torch_shape(tuple(variable.shape)))
        variable.set_value(jnp.asarray(layout.from_torch(value)))


def read_head(model: nnx.Module, modules: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns the values of fully trained modules by PyTorch's names and in its layout.

    Raises:
        UserError: the model has no such module, or it is one of a stack of layers.
    """
    return {
        name: np.asarray(layout.to_torch(np.asarray(variable[...])))
        for name, (variable, layout) in _head_parameters(model, modules).items()
    }


def trained_tensors(model: nnx.Module, fresh: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Returns PyTorch's tensors of fully trained parameters and of those not in the checkpoint.

    Args:
        model: the model.
        fresh: the PyTorch names of the parameters that the checkpoint does not have.
    """
    tensors = {}
    for ref, parameter, layout in parameters(model):
        variable = getattr(ref.module, parameter)
        names = [layout.full_name(name) for name in ref.names()]
        if isinstance(variable, Head) or any(name in fresh for name in names):
            layers = [np.asarray(layout.to_torch(each)) for each in _layers(ref, variable)]
            tensors |= dict(zip(names, layers, strict=True))
    return tensors


ROWS = "token_adapter.trainable_tokens_delta"
"""PEFT's name of the trained rows of a module with a vocabulary."""


def trained_rows(model: nnx.Module) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Maps the modules with trained rows to the tokens (n,) and their vectors (n, D)."""
    return {
        ref.pattern: (np.asarray(rows.ids[...]), np.asarray(rows.values[...]))
        for ref in find_modules(model, (TokenTable, VocabularyOutput))
        if (rows := ref.module.rows) is not None
    }


def write_rows(model: nnx.Module, rows: Mapping[str, np.ndarray], ids: Sequence[int]) -> None:
    """Sets trained rows in place.

    Args:
        model: the model.
        rows: module -> vectors (n, D); modules that are not named keep theirs.
        ids: the tokens (n,) that the vectors belong to.
    """
    for ref in find_modules(model, (TokenTable, VocabularyOutput)):
        own = ref.module.rows
        if own is not None and ref.pattern in rows:
            at = np.searchsorted(np.asarray(own.ids[...]), np.asarray(ids))
            own.values.set_value(own.values[...].at[at].set(rows[ref.pattern]))


def module_names(model: nnx.Module) -> list[str]:
    """Returns the full names of all modules that have parameters."""
    names = (name for ref, _, _ in parameters(model) for name in ref.names())
    return list(dict.fromkeys(names))
