"""`ShardingRules`: the sharding of every array of a run, derived from a mesh and its rules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import KeyPath

from goat_jax.errors import UserError
from goat_jax.nn.named_modules import ModuleRef, find_modules
from goat_jax.nn.quantized_kernel import tile_of
from goat_jax.sharding.config import AXES, MeshConfig, Rules
from goat_jax.sharding.logical_axes import PARAMETERS, WHOLE_IF_SMALL, adapter_axes, parameter_axes
from goat_jax.typing import Array, PyTree

SMALL = 2**20
"""Arrays of fewer elements (4 MiB) stay replicated where a rule would shard them unevenly."""


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Sharding rules for the arrays of a run.

    Attributes:
        mesh: the device mesh, with the axes `data`, `fsdp`, `tensor`, `sequence`.
        rules: logical axis -> mesh axes.
    """

    mesh: Mesh
    rules: Rules

    @property
    def replicated(self) -> NamedSharding:
        """Replicated sharding, for scalars and small arrays."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Sharding of batches along the batch axis, which is the first."""
        return self._sharding([self.rules.batch])

    @property
    def activations(self) -> NamedSharding:
        """Sharding of hidden states (B, T, D) between layers."""
        return self._sharding([self.rules.batch, self.rules.tokens])

    @property
    def token_parts(self) -> int:
        """Number of parts that the tokens of hidden states are split into."""
        return self._parts(self.rules.tokens)

    @property
    def lookups(self) -> tuple[NamedSharding, NamedSharding]:
        """Shardings of vectors (B, T, D) looked up in a table: as the table's, then as all others.

        Without the intermediate step the compiler would replicate all vectors on every device.
        """
        table = self.rules.embed
        others = (self.rules.batch, self.rules.tokens)
        left = (tuple(axis for axis in axes if axis not in table) for axes in others)
        return self._sharding([*left, table]), self.activations

    def output(self, shape: Sequence[int]) -> NamedSharding:
        """Returns the sharding of a vocabulary's output kernel (D, V) where it is used.

        The feature axis D is unsharded there, as in the hidden states it is multiplied with.
        """
        return self.cut("output", (None, "vocab"), shape)

    @property
    def batch_parts(self) -> int:
        """Number of parts that the rows of a batch are split into."""
        return self._parts(self.rules.batch)

    def parameter(self, ref: ModuleRef, name: str) -> NamedSharding:
        """Returns the sharding of a (stacked) parameter of a module, by its place in the model.

        Raises:
            UserError: an axis of a large array that the mesh does not divide; see `cut`.
        """
        shape = getattr(ref.module, name).shape
        axes = parameter_axes(ref, name, len(shape))
        return self.cut(f"{ref.pattern} ({name})", axes, shape)

    def quantized(self, ref: ModuleRef, shape: Sequence[int]) -> dict[str, NamedSharding]:
        """Returns the shardings of a quantized kernel's codes and scales, which are the kernel's.

        Where the mesh partitions a kernel inside of the blocks that share a scale, the scales are
        replicated along that axis; they are few.

        Args:
            ref: the module.
            shape: the kernel's shape, (I, O) or (L, I, O).

        Raises:
            UserError: an axis of a large kernel that the mesh does not divide; see `cut`.
        """
        axes = parameter_axes(ref, "kernel", len(shape))
        codes = self.cut(f"{ref.pattern} (kernel)", axes, shape)
        *layers, rows, columns = self._entries(codes, len(shape))
        blocks = shape[-2] // tile_of(shape[-2])
        scales = (*layers, () if blocks % self._parts(rows) else rows, columns)
        return {"codes": codes, "scales": self._sharding(scales)}

    def quantized_in_use(self, ref: ModuleRef, shape: Sequence[int]) -> dict[str, NamedSharding]:
        """Returns the shardings of codes and scales where they are dequantized.

        They are gathered over the mesh axes that shard rows and tokens, as `adapter_in_use`:
        otherwise the compiler would exchange the dequantized kernel, which is larger.
        """
        stored = self.quantized(ref, shape)
        return {name: self._gathered(sharding, len(shape)) for name, sharding in stored.items()}

    def adapter(self, ref: ModuleRef, name: str, shape: Sequence[int]) -> NamedSharding:
        """Returns an adapter array's sharding, layer axis included; it follows the kernel."""
        axes = adapter_axes(ref, name, len(shape))
        if name in WHOLE_IF_SMALL and math.prod(shape) < SMALL:
            return self.replicated
        return self.cut(f"{ref.pattern} (adapter's {name})", axes, shape)

    def adapter_in_use(self, ref: ModuleRef, name: str, shape: Sequence[int]) -> NamedSharding:
        """Returns the sharding of an adapter array where it is multiplied with activations.

        It is gathered over the mesh axes that shard rows and tokens. Otherwise the compiler may
        shard the product's features over them and exchange activations, which are far larger.
        """
        return self._gathered(self.adapter(ref, name, shape), len(shape))

    def _gathered(self, sharding: NamedSharding, rank: int) -> NamedSharding:
        """Returns an array's sharding, gathered over the mesh axes that shard rows and tokens."""
        gone = self.rules.batch + self.rules.tokens
        entries = self._entries(sharding, rank)
        kept = [tuple(axis for axis in axes if axis not in gone) for axes in entries]
        return NamedSharding(self.mesh, PartitionSpec(*(axes or None for axes in kept)))

    @staticmethod
    def _entries(sharding: NamedSharding, rank: int) -> list[tuple[str, ...]]:
        """Returns the mesh axes that shard each of an array's axes."""
        entries = [(axes,) if isinstance(axes, str) else axes or () for axes in sharding.spec]
        return entries + [()] * (rank - len(entries))

    def cut(self, what: str, axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        """Returns the sharding of an array with these logical axes; nothing is ever padded.

        An axis that its devices do not divide stays unsharded if the array is smaller than
        `SMALL`. For a vocabulary, whose size cannot be chosen, the features are sharded over its
        devices instead. A large array with an inner side alone (a factor of an adapter) is sharded
        there over the devices of both sides; otherwise each of them would hold a copy.

        Args:
            what: the array's name, for the error message.
            axes: the logical axis of each axis, None for unsharded.
            shape: the array's shape.

        Raises:
            UserError: any other axis of a larger array that its devices do not divide.
        """
        entries: list[tuple[str, ...]] = []
        spilled: tuple[str, ...] = ()
        for axis, size in zip(axes, shape, strict=True):
            mesh_axes = () if axis is None else getattr(self.rules, axis)
            if size % self._parts(mesh_axes):
                if axis == "vocab":
                    spilled = mesh_axes
                elif math.prod(shape) >= SMALL:
                    raise self._uneven(what, axis, mesh_axes, size)
                mesh_axes = ()
            entries.append(mesh_axes)
        for place, axis in enumerate(axes):
            if axis == "embed" and shape[place] % self._parts(entries[place] + spilled) == 0:
                entries[place] += spilled
            alone = axis == "inner" and "embed" not in axes and math.prod(shape) >= SMALL
            if alone and shape[place] % self._parts(entries[place] + self.rules.embed) == 0:
                entries[place] += self.rules.embed
        return self._sharding(entries)

    def _uneven(
        self, what: str, axis: str | None, mesh_axes: tuple[str, ...], size: int
    ) -> UserError:
        return UserError(
            f"{what} has {size} rows along {axis}, which mesh axes {', '.join(mesh_axes)} would "
            f"partition into {self._parts(mesh_axes)} unequal parts: choose mesh sizes that divide "
            f"{size}, or no axes for mesh.rules.{axis}"
        )

    def check_rows(self, name: str, rows: int) -> None:
        """Raises `UserError` unless batches of so many rows split into equal parts."""
        if rows % self.batch_parts:
            raise UserError(
                f"{name} {rows} is not divisible by the {self.batch_parts} parts that mesh axes "
                f"{', '.join(self.rules.batch)} partition it into: choose a multiple of "
                f"{self.batch_parts}"
            )

    def check_tokens(self, name: str, tokens: int) -> None:
        """Raises `UserError` unless rows of so many tokens split into equal parts."""
        if tokens % self.token_parts:
            raise UserError(
                f"{name} {tokens} is not divisible by the {self.token_parts} parts that mesh axes "
                f"{', '.join(self.rules.tokens)} partition a row into: choose a multiple of "
                f"{self.token_parts}"
            )

    def _sharding(self, entries: Sequence[tuple[str, ...]]) -> NamedSharding:
        """Returns a sharding by the mesh axes of an array's axes; those of size 1 are left out."""
        kept = [
            tuple(axis for axis in axes if self.mesh.shape[axis] > 1) or None for axes in entries
        ]
        while kept and kept[-1] is None:
            kept.pop()
        return NamedSharding(self.mesh, PartitionSpec(*kept))

    def _parts(self, axes: Sequence[str]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)


def make_sharding_rules(
    config: MeshConfig, devices: Sequence[Any] | None = None, processes: int = 1
) -> ShardingRules | None:
    """Builds the sharding rules of a mesh config; None for one device.

    Args:
        config: the mesh's sizes and rules.
        devices: the devices to use; None means all that there are.
        processes: number of processes of the run; one device cannot be shared by several.

    Raises:
        UserError: sizes whose product is not the number of devices.

    >>> make_sharding_rules(MeshConfig()) is None
    True
    """
    if config.single and processes == 1 and (devices is None or len(devices) == 1):
        return None
    devices = jax.devices() if devices is None else list(devices)
    return ShardingRules(_make_mesh(config.sizes(len(devices)), devices), config.rules)


def _make_mesh(sizes: tuple[int, ...], devices: Sequence[Any]) -> Mesh:
    from jax.experimental import mesh_utils

    # Orders devices so that neighbors on a TPU's torus, or GPUs of one host, are adjacent.
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(grid), AXES)


def model_shardings(model: nnx.Module, rules: ShardingRules) -> dict[tuple, NamedSharding]:
    """Returns the sharding of every parameter and adapter array of a model, by its path.

    Arrays that are not listed (scalars, small constants) are replicated.
    """
    by_path: dict[tuple, NamedSharding] = {}
    for ref in find_modules(model, tuple(PARAMETERS)):
        for name in PARAMETERS[type(ref.module)]:
            if getattr(ref.module, name) is not None:
                by_path[(*ref.path, name)] = rules.parameter(ref, name)
        quantized = getattr(ref.module, "quantized", None)
        if quantized is not None:
            for name, where in rules.quantized(ref, quantized.codes.shape).items():
                by_path[(*ref.path, "quantized", name)] = where
        adapter = getattr(ref.module, "adapter", None)
        if adapter is not None:
            for name in (*adapter.names, *adapter.constant_names):
                shape = getattr(adapter, name).shape
                by_path[(*ref.path, "adapter", name)] = rules.adapter(ref, name, shape)
    return by_path


def place_model(model: nnx.Module, rules: ShardingRules) -> None:
    """Moves the parameters of a model that is already in memory onto the mesh, in place.

    `goat_jax.models.load.load_model` instead reads parameters straight to their devices.
    """
    for ref in find_modules(model, tuple(PARAMETERS)):
        for name in PARAMETERS[type(ref.module)]:
            variable = getattr(ref.module, name)
            if variable is not None:
                where = rules.parameter(ref, name)
                variable.set_value(jax.device_put(variable[...], where))


def tree_shardings(
    tree: PyTree, known: dict[tuple, NamedSharding], replicated: NamedSharding
) -> PyTree:
    """Returns the sharding of every leaf of a tree whose paths end in the model's paths.

    This covers parameters, gradients and optimizer states: a leaf takes the sharding of the longest
    known path that its path ends with, if it has as many axes; all others get `replicated`.
    """
    longest = max(map(len, known), default=0)

    def of_leaf(path: KeyPath, leaf: Array) -> NamedSharding:
        keys = tuple(_key(entry) for entry in path)
        for length in range(min(longest, len(keys)), 0, -1):
            sharding = known.get(keys[-length:])
            if sharding is not None and len(sharding.spec) <= leaf.ndim:
                return sharding if _divides(sharding, leaf.shape) else replicated
        return replicated

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def _divides(sharding: NamedSharding, shape: Sequence[int]) -> bool:
    try:
        sharding.shard_shape(tuple(shape))
    except ValueError:
        return False
    return True


def _key(entry: object) -> object:
    for name in ("key", "name", "idx"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return entry
