"""torch's layout of every kind of module: each parameter's name and the order of its axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import nnx

from goat_jax.nn.dense import Dense
from goat_jax.nn.mixture import Router
from goat_jax.nn.modules import (
    Embedding,
    JoinedProjection,
    LayerNorm,
    LearnedArray,
    PatchEmbedding,
    Projection,
    RMSNorm,
    TokenConvolution,
)
from goat_jax.nn.named_modules import ModuleRef, find_modules
from goat_jax.nn.vocabulary import TokenTable, VocabularyOutput

Array = Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """Name and axes of one parameter in torch.

    Attributes:
        name: torch's name inside the module; empty if the module's name is the parameter's.
        axes: the axes of torch's tensor in the order of ours; empty if the orders are equal.

    >>> Layout("weight", (1, 0)).torch_shape((3, 5))
    (5, 3)
    """

    name: str
    axes: tuple[int, ...] = ()

    def full_name(self, module: str) -> str:
        """Returns the parameter's name in a state dict."""
        return f"{module}.{self.name}" if self.name else module

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns torch's shape of one layer's parameter that has shape `shape` here."""
        return tuple(shape[self.axes.index(axis)] for axis in sorted(self.axes)) or shape

    def from_torch(self, tensor: Array) -> Array:
        """Reorders the axes of torch's tensor to ours."""
        return tensor.transpose(self.axes) if self.axes else tensor

    def to_torch(self, array: Array) -> Array:
        """Reorders the axes of our array to torch's."""
        return array.transpose(np.argsort(self.axes)) if self.axes else array


TORCH_NAMES: dict[type[nnx.Module], dict[str, Layout]] = {
    Dense: {"kernel": Layout("weight", (1, 0)), "bias": Layout("bias")},
    VocabularyOutput: {"kernel": Layout("weight", (1, 0))},
    Projection: {"kernel": Layout("weight", (1, 0)), "bias": Layout("bias")},
    JoinedProjection: {
        "kernel": Layout("in_proj_weight", (1, 0)),
        "bias": Layout("in_proj_bias"),
    },
    PatchEmbedding: {"kernel": Layout("weight", (2, 3, 1, 0)), "bias": Layout("bias")},
    TokenConvolution: {"kernel": Layout("weight", (2, 1, 0)), "bias": Layout("bias")},
    Embedding: {"table": Layout("weight")},
    TokenTable: {"table": Layout("weight")},
    LayerNorm: {"scale": Layout("weight"), "bias": Layout("bias")},
    RMSNorm: {"scale": Layout("weight")},
    LearnedArray: {"value": Layout("")},
    Router: {"kernel": Layout("weight", (1, 0)), "bias": Layout("bias")},
}
"""Module -> our parameter name -> its layout in torch."""


def parameters(model: nnx.Module) -> Iterator[tuple[ModuleRef, str, Layout]]:
    """Yields every parameter that a checkpoint has: its module, our name for it, its layout."""
    for ref in find_modules(model, tuple(TORCH_NAMES)):
        for parameter, layout in TORCH_NAMES[type(ref.module)].items():
            if getattr(ref.module, parameter) is not None:
                yield ref, parameter, layout


def torch_parameters(model: nnx.Module) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (torch name, array in torch's layout), layer by layer, one parameter at a time."""
    for ref, parameter, layout in parameters(model):
        value = np.asarray(getattr(ref.module, parameter)[...])
        for name, layer in zip(ref.names(), ref.each(value), strict=True):
            yield layout.full_name(name), np.asarray(layout.to_torch(layer), order="C")


def torch_tensors(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns the model's parameters as torch's state dict: name -> array."""
    return dict(torch_parameters(model))
