"""`Placement`: from a mesh and its rules to the sharding of every array of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from goat_jax.errors import UserError
from goat_jax.nn.named_modules import Site, find_sites
from goat_jax.sharding.config import AXES, MeshConfig, Rules
from goat_jax.sharding.logical_axes import PARAMETERS, WHOLE_IF_SMALL, adapter_axes, parameter_axes
from goat_jax.typing import PyTree

SMALL = 2**20
"""Arrays of fewer elements may stay whole where a rule would cut them unevenly; 4 MiB."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the arrays of a run go.

    Attributes:
        mesh: with the axes `data`, `fsdp`, `tensor`.
        rules: logical axis -> mesh axes.
    """

    mesh: Mesh
    rules: Rules

    @property
    def whole(self) -> NamedSharding:
        """A copy on every device: for numbers and for what is small."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """Of batches and activations, which are cut by rows, their first axis."""
        return NamedSharding(self.mesh, _spec([self.rules.batch]))

    @property
    def lookups(self) -> tuple[NamedSharding, NamedSharding]:
        """Of vectors (B, T, D) looked up in a table: as the table is cut, then as activations are.

        Without the step between, the compiler would make all vectors whole on every device.
        """
        rows = tuple(axis for axis in self.rules.batch if axis not in self.rules.embed)
        first = NamedSharding(self.mesh, _spec([rows, (), self.rules.embed]))
        return first, self.rows

    def output(self, shape: Sequence[int]) -> NamedSharding:
        """Of a vocabulary's output kernel (D, V) where it meets hidden states: its features are
        whole there."""
        return self.cut("output", (None, "vocab"), shape)

    @property
    def row_parts(self) -> int:
        """Into how many parts the rows of a batch are cut."""
        return self._parts(self.rules.batch)

    def parameter(self, site: Site, name: str) -> NamedSharding:
        """Of a (stacked) parameter of a module, by the module's place in the model.

        Raises:
            UserError: an axis of a large array that the mesh does not divide; see `cut`.
        """
        shape = getattr(site.module, name).shape
        axes = parameter_axes(site, name, len(shape))
        return self.cut(f"{site.pattern} ({name})", axes, shape)

    def adapter(self, site: Site, name: str, shape: Sequence[int]) -> NamedSharding:
        """Of an array of the adapter at a site, its layer axis included: it follows the kernel."""
        axes = adapter_axes(site, name, len(shape))
        if name in WHOLE_IF_SMALL and math.prod(shape) < SMALL:
            return self.whole
        return self.cut(f"{site.pattern} (adapter's {name})", axes, shape)

    def cut(self, what: str, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        """The sharding of an array with these logical axes; nothing is ever padded.

        An axis that its devices do not divide stays whole if the array is smaller than `SMALL`. A
        vocabulary, whose size is nobody's choice, hands its devices to the features instead. A
        large array with an inner side alone (a factor of an adapter) is cut there along the
        devices of both sides, or each of them would hold a copy.

        Raises:
            UserError: another such axis of a larger array, naming `what`.
        """
        entries: list[tuple[str, ...]] = []
        spilled: tuple[str, ...] = ()
        for axis, size in zip(axes, shape, strict=True):
            own = () if axis is None else getattr(self.rules, axis)
            if size % self._parts(own):
                if axis == "vocab":
                    spilled = own
                elif math.prod(shape) >= SMALL:
                    raise self._uneven(what, axis, own, size)
                own = ()
            entries.append(own)
        for place, axis in enumerate(axes):
            if axis == "embed" and shape[place] % self._parts(entries[place] + spilled) == 0:
                entries[place] += spilled
            alone = axis == "inner" and "embed" not in axes and math.prod(shape) >= SMALL
            if alone and shape[place] % self._parts(entries[place] + self.rules.embed) == 0:
                entries[place] += self.rules.embed
        return NamedSharding(self.mesh, _spec(entries))

    def _uneven(self, what: str, axis: str | None, own: tuple[str, ...], size: int) -> UserError:
        return UserError(
            f"{what} has {size} rows along {axis}, which mesh axes {', '.join(own)} would cut into "
            f"{self._parts(own)} unequal parts: choose mesh sizes that divide {size}, or no axes "
            f"for mesh.rules.{axis}"
        )

    def check_rows(self, name: str, rows: int) -> None:
        """Raises `UserError` unless batches of so many rows are cut into equal parts."""
        if rows % self.row_parts:
            raise UserError(
                f"{name} {rows} is not divisible by the {self.row_parts} parts that mesh axes "
                f"{', '.join(self.rules.batch)} cut it into: choose a multiple of {self.row_parts}"
            )

    def _parts(self, axes: Sequence[str]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)


def _spec(entries: Sequence[tuple[str, ...]]) -> PartitionSpec:
    kept = [axes or None for axes in entries]
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)


def make_placement(
    config: MeshConfig, devices: Sequence[Any] | None = None, processes: int = 1
) -> Placement | None:
    """The placement that a config asks for, None for one device.

    Args:
        devices: those to use; all there are if None.
        processes: of the run; one device cannot be shared by several.

    Raises:
        UserError: sizes that do not take exactly these devices.

    >>> make_placement(MeshConfig()) is None
    True
    """
    if config.single and processes == 1 and (devices is None or len(devices) == 1):
        return None
    devices = jax.devices() if devices is None else list(devices)
    return Placement(_make_mesh(config.sizes(len(devices)), devices), config.rules)


def _make_mesh(sizes: tuple[int, ...], devices: Sequence[Any]) -> Mesh:
    from jax.experimental import mesh_utils

    # Puts neighbours on a TPU's torus, or GPUs of one host, next to each other.
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(grid), AXES)


def model_shardings(model: Any, placement: Placement) -> dict[tuple, NamedSharding]:
    """The sharding of every parameter and adapter array of a model, by its path in the trees.

    What is not listed (single numbers, small constants) is whole on every device.
    """
    found: dict[tuple, NamedSharding] = {}
    for site in find_sites(model, tuple(PARAMETERS)):
        for name in PARAMETERS[type(site.module)]:
            if getattr(site.module, name) is not None:
                found[(*site.path, name)] = placement.parameter(site, name)
        adapter = getattr(site.module, "adapter", None)
        if adapter is not None:
            for name in (*adapter.names, *adapter.constant_names):
                shape = getattr(adapter, name).shape
                found[(*site.path, "adapter", name)] = placement.adapter(site, name, shape)
    return found


def place_model(model: Any, placement: Placement) -> None:
    """Moves a model's parameters onto the mesh, in place; for models that are there already.

    `goat_jax.models.load.load_model` reads them straight to their devices instead.
    """
    for site in find_sites(model, tuple(PARAMETERS)):
        for name in PARAMETERS[type(site.module)]:
            variable = getattr(site.module, name)
            if variable is not None:
                where = placement.parameter(site, name)
                variable.set_value(jax.device_put(variable[...], where))


def tree_shardings(tree: PyTree, known: dict[tuple, NamedSharding], whole: Any) -> PyTree:
    """The sharding of every leaf of a tree that has the model's paths somewhere in its own.

    Parameters, gradients and optimizer states alike: a leaf belongs to the longest known path that
    its own path ends with, if it has as many axes; all others are whole.
    """
    longest = max(map(len, known), default=0)

    def of_leaf(path: tuple, leaf: Any) -> Any:
        keys = tuple(_key(entry) for entry in path)
        for length in range(min(longest, len(keys)), 0, -1):
            sharding = known.get(keys[-length:])
            if sharding is not None and len(sharding.spec) <= leaf.ndim:
                return sharding if _divides(sharding, leaf.shape) else whole
        return whole

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def _divides(sharding: NamedSharding, shape: Sequence[int]) -> bool:
    try:
        sharding.shard_shape(tuple(shape))
    except ValueError:
        return False
    return True


def _key(entry: Any) -> Any:
    for name in ("key", "name", "idx"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return entry
