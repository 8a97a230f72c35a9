"""Fills an abstract model from weight files: every parameter is set, or loading fails."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding

from goat_jax.errors import UserError
from goat_jax.models.registry import Architecture, Tie
from goat_jax.models.torch_layout import Layout, parameters
from goat_jax.nn.modules import LayerNorm, LearnedArray, RMSNorm
from goat_jax.nn.named_modules import ModuleRef
from goat_jax.pretrained.safetensors import STORED, Weights, check_finite
from goat_jax.typing import DTypeLike, Key

OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""Old name endings, in checkpoints converted from TensorFlow -> current ones."""

ShardingOf = Callable[[ModuleRef, str], Sharding]
"""(module, name of its parameter) -> the sharding of the (stacked) parameter."""

FLOAT32 = (LayerNorm, RMSNorm, LearnedArray)
"""Modules that stay in float32 whatever the dtype of the weights; they are small."""


@dataclasses.dataclass(frozen=True)
class _Slot:
    """One parameter of the model and the tensors (one per layer and expert) that fill it."""

    ref: ModuleRef
    parameter: str
    names: tuple[str, ...]
    layout: Layout

    def shape(self) -> tuple[int, ...]:
        """Returns one tensor's shape, with our axes."""
        return self.full_shape()[len(self.ref.axes) :]

    def torch_shape(self) -> tuple[int, ...]:
        return self.layout.torch_shape(self.shape())

    def full_shape(self) -> tuple[int, ...]:
        """Returns the shape of the parameter, axes of layers and experts included."""
        return tuple(getattr(self.ref.module, self.parameter).shape)

    def set(self, value: jax.Array) -> None:
        getattr(self.ref.module, self.parameter).set_value(value)


@dataclasses.dataclass(frozen=True)
class Filled:
    """Result of filling a model.

    Attributes:
        fresh: names of parameters that the checkpoint does not have.
        left_out: names of the file's tensors that belong to another head.
    """

    fresh: tuple[str, ...]
    left_out: tuple[str, ...]


def fill(
    model: nnx.Module,
    weights: Weights,
    architecture: Architecture,
    key: Key,
    dtype: DTypeLike,
    new_head: bool = False,
    sharding: ShardingOf | None = None,
    tie: Tie | None = None,
) -> Filled:
    """Sets every parameter of an abstract model.

    Tensors are read one at a time, each into its layer's place in the stacked parameter.

    Args:
        model: the abstract model, filled in place.
        weights: the checkpoint's tensors by name.
        architecture: the model's architecture.
        key: PRNG key for parameters that the checkpoint does not have.
        dtype: see `goat_jax.models.load.load_model`.
        new_head: see `goat_jax.models.load.load_model`.
        sharding: see `goat_jax.models.load.load_model`.
        tie: two tensors that config.json ties, either of which may stand for both.

    Raises:
        UserError: tensors that do not fit; the model is then unchanged.
    """
    stored = _canonical_names(weights, architecture)
    for one, other in () if tie is None else ((tie.name, tie.twin), (tie.twin, tie.name)):
        if one not in stored and other in stored:
            stored[one] = stored[other]
    slots = [_slot(*parameter) for parameter in parameters(model)]
    expected = {name: slot.torch_shape() for slot in slots for name in slot.names}
    left_out = _of_another_head(stored, expected, weights, architecture, tie)
    if new_head:
        left_out |= {name for name in stored if _is_output(name, architecture)}
    read = {name: key for name, key in stored.items() if name not in left_out}
    _check(expected, read, weights, architecture, left_out)
    fresh: list[str] = []
    for slot in slots:
        if slot.names[0] in read:
            read_part = partial(_read, slot, read, weights, _dtype(slot, architecture, dtype))
        else:
            read_part = partial(_start, slot, key)
            fresh += slot.names
        where = None if sharding is None else sharding(slot.ref, slot.parameter)
        slot.set(_place(read_part, slot.full_shape(), where))
    return Filled(tuple(fresh), tuple(sorted(stored[name] for name in left_out)))


def _of_another_head(
    stored: Mapping[str, str],
    expected: Mapping[str, tuple[int, ...]],
    weights: Weights,
    architecture: Architecture,
    tie: Tie | None,
) -> set[str]:
    """Finds the tensors of a head that the checkpoint has and this model does not.

    Such a head is stored beside the base model, or under the names of our head but with other
    modules or another number of labels.
    """
    ours = {_top(name) for name in (*expected, *(() if tie is None else (tie.name,)))}
    heads = {_top(module) for module in architecture.head} - {_top(architecture.prefix)}
    extra = [
        name
        for name in stored
        if name not in expected and not re.fullmatch(architecture.family.ignored, name)
    ]
    modules = {module for each in architecture.heads.values() for module in each}
    replaced = {_top(name) for name in extra} & heads
    resized = {
        _module(name)
        for name, shape in expected.items()
        if name in stored
        and _is_output(name, architecture)
        and weights.entries[stored[name]].shape[1:] == shape[1:]
        and weights.entries[stored[name]].shape != shape
    }
    return {
        name
        for name in stored
        if _top(name) in replaced
        or _module(name) in resized
        or (name in extra and (_top(name) not in ours or _module(name) in modules))
    }


def _top(name: str) -> str:
    return name.partition(".")[0]


def cast(model: nnx.Module, architecture: Architecture, dtype: DTypeLike) -> None:
    """Casts the parameters of a model that was not loaded to the dtypes that loading gives them."""
    for slot in [_slot(*parameter) for parameter in parameters(model)]:
        value = getattr(slot.ref.module, slot.parameter)[...]
        slot.set(value.astype(_dtype(slot, architecture, dtype)))


def _dtype(slot: _Slot, architecture: Architecture, dtype: DTypeLike) -> DTypeLike:
    small = isinstance(slot.ref.module, FLOAT32)
    return jnp.float32 if small or _is_head(slot.names[0], architecture) else dtype


def _canonical_names(weights: Weights, architecture: Architecture) -> dict[str, str]:
    """Maps current names, prefix included, to the names in the file."""
    bare = not any(name.startswith(architecture.prefix) for name in weights)
    names = {}
    for stored_name in weights:
        prefix = architecture.prefix if bare and not _is_head(stored_name, architecture) else ""
        name = prefix + stored_name
        for old, new in OLD_NAMES.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        names[architecture.todays_name(name)] = stored_name
    return names


def _is_head(name: str, architecture: Architecture) -> bool:
    return any(name.startswith(module + ".") for module in architecture.head)


def _is_output(name: str, architecture: Architecture) -> bool:
    """True if a parameter belongs to the head's last layer, whose size is the number of labels."""
    return any(name.startswith(module + ".") for module in architecture.head[-1:])


def _slot(ref: ModuleRef, parameter: str, layout: Layout) -> _Slot:
    return _Slot(ref, parameter, tuple(map(layout.full_name, ref.names())), layout)


Index = tuple[slice, ...]


def _place(
    read: Callable[[Index], np.ndarray], shape: tuple[int, ...], sharding: Sharding | None
) -> jax.Array:
    """Builds the parameter on its devices, reading at most one device's shard at a time."""
    if sharding is None:
        # Not jnp.asarray, which compiles a program for every shape.
        return jax.device_put(read((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding, lambda index: read(index or ()))


def _read(
    slot: _Slot, stored: Mapping[str, str], weights: Weights, dtype: DTypeLike, index: Index
) -> np.ndarray:
    """Reads a slice of a parameter, one tensor at a time."""
    leading = len(slot.ref.axes)
    names, inner = np.array(slot.names).reshape(slot.ref.axes)[index[:leading]], index[leading:]
    shape = tuple(
        len(range(*cut.indices(size))) for cut, size in zip(inner, slot.shape(), strict=True)
    )
    parts = np.empty((*names.shape, *shape), dtype)
    for place, name in np.ndenumerate(names):
        stored_name, entry = stored[name], weights.entries[stored[name]]
        with np.errstate(over="ignore"):  # overflow to infinity is rejected below
            parts[place] = slot.layout.from_torch(weights[stored_name])[inner]
        check_finite(parts[place], stored_name, entry.file)
    return parts


def _start(slot: _Slot, key: Key, index: Index) -> np.ndarray:
    """Initializes a new head's parameter: normal(0.02) kernels with a key per name, 0 or 1."""
    if slot.parameter in ("bias", "scale"):
        return np.full(slot.full_shape(), slot.parameter == "scale", np.float32)[index]
    number = np.uint32(zlib.crc32(slot.names[0].encode()))
    return np.asarray(0.02 * _normal(key, number, slot.full_shape()))[index]


@partial(jax.jit, static_argnums=2)
def _normal(key: Key, number: np.uint32, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, number), shape, jnp.float32)


def _check(
    expected: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, str],
    weights: Weights,
    architecture: Architecture,
    left_out: Iterable[str],
) -> None:
    """Raises `UserError` that lists everything that does not fit, in one line."""
    present = {name: weights.entries[stored[name]] for name in expected if name in stored}
    extra = [name for name in stored if name not in expected]
    misshapen = [name for name, entry in present.items() if entry.shape != expected[name]]
    lists = {
        "missing": _missing(expected, stored, architecture),
        "unexpected": [n for n in extra if not re.fullmatch(architecture.family.ignored, n)],
        "wrong shape": [
            f"{name} is {present[name].shape}, the config says {expected[name]}"
            for name in misshapen
        ],
        f"not stored as {', '.join(STORED)}": [
            f"{name} is {entry.dtype}"
            for name, entry in present.items()
            if entry.dtype not in STORED
        ],
    }
    problems = {kind: names for kind, names in lists.items() if names}
    if problems:
        other = shortened(list(left_out))
        fix = (
            f"it was saved with another task's head ({other}): take the checkpoint it was made from"
            if other and list(problems) == ["missing"]
            else "take both from one checkpoint"
        )
        differences = "; ".join(f"{kind}: {shortened(names)}" for kind, names in problems.items())
        raise UserError(
            f"{weights.folder}: the weights do not fit config.json; {differences}; {fix}"
        )


def _missing(
    expected: Iterable[str], stored: Mapping[str, str], architecture: Architecture
) -> list[str]:
    """Lists missing tensors; a head's module may be absent, but only with all its parameters."""
    present = {_module(name) for name in stored}
    return [
        name
        for name in expected
        if name not in stored and (not _is_head(name, architecture) or _module(name) in present)
    ]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def shortened(names: Collection[str], most: int = 5) -> str:
    """Joins names in one line, showing only the first few.

    >>> shortened(["b", "a", "c"], 2)
    'a, b and 1 more'
    """
    shown = ", ".join(sorted(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
