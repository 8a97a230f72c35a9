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
        rows: the part of the first axis; None for all.
        item: the index on a leading axis before it, of which the tensor has one; None without one.
        turned: whether the last two axes are in the other order.
    """

    name: str
    rows: slice | None = None
    item: int | None = None
    turned: bool = False


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
        if place.item is None:
            tensor = self.stored[place.name]
        else:
            tensor = self.stored.item(place.name, place.item)
        tensor = tensor.swapaxes(-1, -2) if place.turned else tensor
        return tensor if place.rows is None else tensor[place.rows]


def view(
    weights: Weights, places: Mapping[str, Place], left_out: tuple[str, ...] = ()
) -> WeightView:
    """Returns the tensors at these places, by the names that `places` gives them."""
    entries = {}
    for name, place in places.items():
        entry = weights.entries[place.name]
        shape = entry.shape if place.item is None else entry.shape[1:]
        shape = (*shape[:-2], shape[-1], shape[-2]) if place.turned else shape
        if place.rows is not None:
            shape = (len(range(*place.rows.indices(shape[0]))), *shape[1:])
        entries[name] = dataclasses.replace(entry, shape=shape)
    return WeightView(weights.folder, entries, weights, places, left_out=left_out)
