"""How torch stores every kind of module: the name of each parameter and the order of its axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import nnx

from goat_jax.nn.dense import Dense
from goat_jax.nn.modules import (
    Constant,
    Embedding,
    LayerNorm,
    PatchEmbedding,
    Projection,
    RMSNorm,
)
from goat_jax.nn.named_modules import Site, find_sites

Array = Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """One parameter in torch.

    Attributes:
        name: torch's name inside the module; empty if the module's name is the parameter's.
        axes: the axes of torch's tensor in the order that we have them; empty if they are equal.

    >>> Layout("weight", (1, 0)).torch_shape((3, 5))
    (5, 3)
    """

    name: str
    axes: tuple[int, ...] = ()

    def full_name(self, module: str) -> str:
        """The name in a state dict."""
        return f"{module}.{self.name}" if self.name else module

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Torch's shape of one layer's parameter that has this shape here."""
        return tuple(shape[self.axes.index(axis)] for axis in sorted(self.axes)) or shape

    def from_torch(self, tensor: Array) -> Array:
        """Torch's tensor with our axes."""
        return tensor.transpose(self.axes) if self.axes else tensor

    def to_torch(self, array: Array) -> Array:
        """Our array with torch's axes."""
        return array.transpose(np.argsort(self.axes)) if self.axes else array


TORCH_NAMES: dict[type[nnx.Module], dict[str, Layout]] = {
    Dense: {"kernel": Layout("weight", (1, 0)), "bias": Layout("bias")},
    Projection: {"kernel": Layout("weight", (1, 0)), "bias": Layout("bias")},
    PatchEmbedding: {"kernel": Layout("weight", (2, 3, 1, 0)), "bias": Layout("bias")},
    Embedding: {"table": Layout("weight")},
    LayerNorm: {"scale": Layout("weight"), "bias": Layout("bias")},
    RMSNorm: {"scale": Layout("weight")},
    Constant: {"value": Layout("")},
}
"""Module -> our parameter -> how torch has it."""


def parameters(model: nnx.Module) -> Iterator[tuple[Site, str, Layout]]:
    """Every parameter that a checkpoint has: its module, our name of it, torch's form."""
    for site in find_sites(model, tuple(TORCH_NAMES)):
        for parameter, layout in TORCH_NAMES[type(site.module)].items():
            if getattr(site.module, parameter) is not None:
                yield site, parameter, layout


def torch_parameters(model: nnx.Module) -> Iterator[tuple[str, np.ndarray]]:
    """The parameters as torch has them, by its names, layer by layer; one module's at a time."""
    for site, parameter, layout in parameters(model):
        value = np.asarray(getattr(site.module, parameter)[...])
        layers = value if site.layers is not None else value[None]
        for name, layer in zip(site.names(), layers, strict=True):
            yield layout.full_name(name), np.asarray(layout.to_torch(layer), order="C")


def torch_tensors(model: nnx.Module) -> dict[str, np.ndarray]:
    """The model's parameters as torch's state dict has them: name -> array."""
    return dict(torch_parameters(model))
