"""Linear layers that a checkpoint stores as one and the model has as several.

They are split when a checkpoint is opened and joined when one is written, so that between the two
every linear layer has one name, one adapter and one decomposition.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from goat_jax.pretrained.safetensors import Weights
from goat_jax.pretrained.weight_view import Place, view


@dataclasses.dataclass(frozen=True)
class Fused:
    """A stored linear layer whose outputs are those of several layers, one after the other.

    Attributes:
        name: the end of its name, such as "self_attn.qkv_proj".
        parts: the ends of the parts' names, in the order of their outputs.
        sizes: function from the model's config to the number of outputs of each part.
    """

    name: str
    parts: tuple[str, ...]
    sizes: Callable[[Any], tuple[int, ...]]

    def whole_name(self, part: str) -> str | None:
        """Returns the name of the stored layer of a part, by the part's full name; None for others.

        >>> Fused("a.qkv", ("a.q", "a.k"), lambda config: (2, 1)).whole_name("layers.0.a.k")
        'layers.0.a.qkv'
        """
        for own in self.parts:
            if part.endswith(f".{own}"):
                return part.removesuffix(own) + self.name
        return None

    def part_names(self, name: str) -> list[str] | None:
        """Returns the full names of a stored layer's parts by its full name; None for others."""
        if not name.endswith(f".{self.name}"):
            return None
        return [name.removesuffix(self.name) + part for part in self.parts]

    def ranges(self, config: Any) -> list[slice]:
        """Returns the outputs of each part."""
        stops = list(itertools.accumulate(self.sizes(config)))
        return [slice(*edges) for edges in itertools.pairwise([0, *stops])]


def split(weights: Weights, fused: Sequence[Fused], config: Any) -> Weights:
    """Returns a checkpoint's tensors with those of fused layers in parts.

    A tensor whose size is not the sum of its parts' stays whole, so that loading names it.
    """
    if not fused:
        return weights
    places = {}
    for name, entry in weights.entries.items():
        module, _, parameter = name.rpartition(".")
        for each in fused:
            parts = each.part_names(module)
            if parts is not None and entry.shape[:1] == (sum(each.sizes(config)),):
                for part, rows in zip(parts, each.ranges(config), strict=True):
                    places[f"{part}.{parameter}"] = Place(name, rows)
                break
        else:
            places[name] = Place(name)
    return view(weights, places)


def join(
    tensors: Iterable[tuple[str, np.ndarray]], fused: Sequence[Fused]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields tensors as they are stored: parts are held back until their layer is complete."""
    held: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors:
        module, _, parameter = name.rpartition(".")
        for each in fused:
            whole = each.whole_name(module)
            if whole is None:
                continue
            own = held.setdefault(f"{whole}.{parameter}", {})
            own[module] = tensor
            order = each.part_names(whole)
            assert order is not None
            if len(own) == len(order):
                del held[f"{whole}.{parameter}"]
                yield f"{whole}.{parameter}", np.concatenate([own[part] for part in order])
            break
        else:
            yield name, tensor
    assert not held, f"parts are missing of {list(held)}"
