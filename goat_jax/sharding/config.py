"""A mesh's sizes and its rules: which logical axis of an array is cut along which mesh axes."""

from __future__ import annotations

import dataclasses
import math

from goat_jax.errors import UserError, nearest
from goat_jax.validation.fields import check_fields

AXES = ("data", "fsdp", "tensor")
"""The axes of every mesh, slowest first: devices next to each other share a `tensor` group."""

TOGETHER = (("embed", "inner"), ("embed", "vocab"), ("batch", "inner"), ("batch", "vocab"))
"""Logical axes that meet in one array, which no mesh axis can cut twice."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis -> the mesh axes it is cut along, none for an axis that stays whole.

    Attributes:
        batch: rows of batches and activations.
        embed: the side of a kernel (and of its adapter) that faces the residual stream, the
            features of embedding tables.
        inner: the other side: heads, the inside of the feed-forward.
        vocab: tokens of the embedding table and of the output.

    Raises:
        UserError: an unknown mesh axis, or one that would cut an array twice.

    >>> Rules(embed=("tensor",))
    Traceback (most recent call last):
    goat_jax.errors.UserError: mesh.rules cut both embed and inner along tensor, but they are axes \
of one array: give one of them other axes
    """

    batch: tuple[str, ...] = ("data", "fsdp")
    embed: tuple[str, ...] = ("fsdp",)
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
                    f"mesh.rules cut both {one} and {other} along {', '.join(sorted(shared))}, but "
                    "they are axes of one array: give one of them other axes"
                )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices of a run.

    All sizes 1 is one device and no mesh. Otherwise the sizes take all devices there are; at most
    one may be -1, which is what the others leave.

    Attributes:
        data: groups that hold the same parameters and see other rows.
        fsdp: devices that share out the parameters and see other rows.
        tensor: devices that share out every layer's inside and see the same rows.
        rules: what is cut along which axis.

    Raises:
        UserError: a size that is neither positive nor -1, or two of -1.

    >>> MeshConfig(data=2, fsdp=-1).sizes(8)
    (2, 4, 1)
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    rules: Rules = Rules()

    def __post_init__(self) -> None:
        check_fields(self, "mesh.")
        given = self.given
        for name, size in zip(AXES, given, strict=True):
            if size < 1 and size != -1:
                raise UserError(f"mesh.{name} is {size}: give 1 or more, or -1 for what is left")
        if given.count(-1) > 1:
            raise UserError(f"mesh {_text(given)} leaves two sizes open: only one may be -1")

    @property
    def given(self) -> tuple[int, int, int]:
        """The sizes in the order of `AXES`, as they were given."""
        return self.data, self.fsdp, self.tensor

    @property
    def single(self) -> bool:
        """Whether this is one device and no mesh."""
        return self.given == (1, 1, 1)

    def sizes(self, devices: int) -> tuple[int, int, int]:
        """The sizes of a mesh of so many devices.

        Raises:
            UserError: they do not take exactly these devices.
        """
        given, known = self.given, math.prod(size for size in self.given if size != -1)
        sizes = tuple(devices // known if size == -1 else size for size in given)
        if math.prod(sizes) != devices:
            raise UserError(
                f"mesh {_text(given)} does not take exactly the {devices} devices there are: "
                "choose sizes whose product they are, or -1 for one of them"
            )
        return sizes  # type: ignore[return-value]


def _text(sizes: tuple[int, ...]) -> str:
    return " x ".join(f"{name} {size}" for name, size in zip(AXES, sizes, strict=True))
