"""`WeightView`: a checkpoint's tensors under other names, and in parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from goat_jax.pretrained.safetensors import Weights


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a tensor in a checkpoint.

    Attributes:
        name: the name of the stored tensor.
        rows: the part of its first axis; None for all.
    """

    name: str
    rows: slice | None = None


@dataclasses.dataclass(frozen=True)
class WeightView(Weights):
    """Tensors of a checkpoint by other names.

    Attributes:
        folder: the folder with the files, for messages.
        entries: tensor name -> `StoredTensor`, with the shape of the part.
        stored: the checkpoint's tensors.
        places: tensor name -> its place there.
    """

    stored: Weights
    places: Mapping[str, Place]

    def __getitem__(self, name: str) -> np.ndarray:
        place = self.places[name]
        tensor = self.stored[place.name]
        return tensor if place.rows is None else tensor[place.rows]


def view(
    weights: Weights, places: Mapping[str, Place], left_out: tuple[str, ...] = ()
) -> WeightView:
    """Returns the tensors at these places, by the names that `places` gives them."""
    entries = {}
    for name, place in places.items():
        entry = weights.entries[place.name]
        if place.rows is not None:
            rows = len(range(*place.rows.indices(entry.shape[0])))
            entry = dataclasses.replace(entry, shape=(rows, *entry.shape[1:]))
        entries[name] = entry
    return WeightView(weights.folder, entries, weights, places, left_out=left_out)
