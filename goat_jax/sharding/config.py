"""Mesh sizes, and the rules that map an array's logical axes to mesh axes."""

from __future__ import annotations

import dataclasses
import math

from goat_jax.errors import UserError, nearest
from goat_jax.validation.fields import check_fields

AXES = ("data", "fsdp", "tensor", "sequence")
"""The axes of every mesh, slowest first: neighboring devices share a `sequence` group."""

TOGETHER = (
    ("embed", "inner"),
    ("embed", "vocab"),
    ("batch", "inner"),
    ("batch", "vocab"),
    ("batch", "tokens"),
    ("tokens", "inner"),
    ("tokens", "vocab"),
)
"""Pairs of logical axes that occur in one array, so that they cannot share a mesh axis."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> the mesh axes it is sharded over; empty for an unsharded axis.

    Attributes:
        batch: mesh axes for the batch axis of batches and activations.
        tokens: mesh axes for the token axis of activations between layers; in attention they shard
            the heads instead.
        embed: mesh axes for the side of a kernel (and of its adapter) that faces the residual
            stream, and for the features of embedding tables.
        inner: mesh axes for the other side: heads, the inside of the feed-forward.
        vocab: mesh axes for the tokens of the embedding table and of the output.

    Raises:
        UserError: an unknown mesh axis, or one that would shard an array twice.

    >>> Rules(embed=("tensor",))
    Traceback (most recent call last):
    goat_jax.errors.UserError: mesh.rules partition both embed and inner along tensor, but they \
are axes of one array: give one of them other axes
    """

    batch: tuple[str, ...] = ("data", "fsdp")
    tokens: tuple[str, ...] = ("sequence",)
    embed: tuple[str, ...] = ("fsdp", "sequence")
    inner: tuple[str, ...] = ("tensor",)
    vocab: tuple[str, ...] = ("tensor",)

    def __post_init__(self) -> None:
        check_fields(self, "mesh.rules.")
        for field in dataclasses.fields(self):
            axes = getattr(self, field.name)
            for axis in axes:
                if axis not in AXES:
                    raise UserError(
                        f"mesh.rules.{field.name} names {axis!r}{nearest(axis, AXES)}: choose from "
                        f"{', '.join(AXES)}"
                    )
            if len(set(axes)) < len(axes):
                raise UserError(f"mesh.rules.{field.name} names an axis twice: {' '.join(axes)}")
        for one, other in TOGETHER:
            shared = set(getattr(self, one)) & set(getattr(self, other))
            if shared:
                raise UserError(
                    f"mesh.rules partition both {one} and {other} along "
                    f"{', '.join(sorted(shared))}, but "
                    "they are axes of one array: give one of them other axes"
                )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Shape of the device mesh of a run.

    All sizes 1 means one device and no mesh. Otherwise the product of the sizes must be the number
    of devices; at most one size may be -1, which takes the devices that the others leave.

    Attributes:
        data: number of data-parallel groups; each holds the same parameters and sees other rows.
        fsdp: number of devices that shard the parameters and see other rows.
        tensor: number of devices that shard every layer's inner side and see the same rows.
        sequence: number of devices that shard the tokens of the same rows, for long rows, and the
            parameters, as `fsdp` does.
        rules: the mesh axes that each logical axis is sharded over.

    Raises:
        UserError: a size that is neither positive nor -1, or two of -1.

    >>> MeshConfig(data=2, fsdp=-1).sizes(8)
    (2, 4, 1, 1)
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    rules: Rules = Rules()

    def __post_init__(self) -> None:
        check_fields(self, "mesh.")
        sizes = self.given
        for name, size in zip(AXES, sizes, strict=True):
            if size < 1 and size != -1:
                raise UserError(
                    f"mesh.{name} is {size}: give 1 or more, or -1 for the remaining devices"
                )
        if sizes.count(-1) > 1:
            raise UserError(f"mesh {_text(sizes)} has two sizes of -1: only one may be -1")

    @property
    def given(self) -> tuple[int, ...]:
        """Sizes in the order of `AXES`, as they were given."""
        return tuple(getattr(self, axis) for axis in AXES)

    @property
    def single(self) -> bool:
        """True if all sizes are 1: one device and no mesh."""
        return all(size == 1 for size in self.given)

    def sizes(self, devices: int) -> tuple[int, ...]:
        """Returns the sizes of a mesh of so many devices, with -1 resolved.

        Raises:
            UserError: the product of the sizes is not this number of devices.
        """
        known = math.prod(size for size in self.given if size != -1)
        sizes = tuple(devices // known if size == -1 else size for size in self.given)
        if math.prod(sizes) != devices:
            raise UserError(
                f"mesh {_text(self.given)} does not use exactly the {devices} available devices: "
                f"choose sizes whose product is {devices}, or -1 for one of them"
            )
        return sizes


def _text(sizes: tuple[int, ...]) -> str:
    return " x ".join(f"{name} {size}" for name, size in zip(AXES, sizes, strict=True))
