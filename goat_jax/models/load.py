"""From a Hugging Face folder to a model: config, then every parameter from its tensor, loudly."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.errors import UserError, nearest
from goat_jax.layers import Dense
from goat_jax.models import encoder
from goat_jax.models.common import Embedding, LayerNorm
from goat_jax.models.safetensors import WeightFiles, open_weights, read_json
from goat_jax.sites import Site, find_sites
from goat_jax.typing import Key

TORCH_NAMES: dict[type[nnx.Module], dict[str, tuple[str, bool]]] = {
    Dense: {"kernel": ("weight", True), "bias": ("bias", False)},
    Embedding: {"table": ("weight", False)},
    LayerNorm: {"scale": ("weight", False), "bias": ("bias", False)},
}
"""Module -> our parameter -> torch's name, and whether torch stores it transposed."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How to build and fill a family of models.

    Attributes:
        config: config.json as a dict, and overrides -> our config.
        build: our config -> model with fresh parameters.
        prefix: what a checkpoint without the head leaves off its names ("bert.").
        ignored: names in a checkpoint that the model does not need, a regular expression.
        head: names of modules a checkpoint may lack: they start fresh.
    """

    config: Callable[..., Any]
    build: Callable[..., nnx.Module]
    prefix: str
    ignored: str
    head: tuple[str, ...]


def _encoder(name: str, ignored: str) -> Architecture:
    family = encoder.FAMILIES[name]
    return Architecture(
        config=encoder.EncoderConfig.from_hf,
        build=encoder.Encoder,
        prefix=family.prefix + ".",
        ignored=ignored,
        head=family.head,
    )


ARCHITECTURES: dict[str, Architecture] = {
    "bert": _encoder("bert", r"cls\..*|.*position_ids"),
    "roberta": _encoder("roberta", r"lm_head\..*|.*pooler\.dense\..*|.*position_ids"),
    "distilbert": _encoder("distilbert", r"vocab_\w+\..*|.*position_ids"),
}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model and what is worth knowing of its checkpoint.

    Attributes:
        model: with all parameters filled.
        fresh: names of parameters that the checkpoint does not have (a new head).
    """

    model: Any
    fresh: tuple[str, ...]


def load_model(folder: Path, *, key: Key, dtype: Any = jnp.float32, **overrides: Any) -> Loaded:
    """Reads a Hugging Face checkpoint folder.

    Args:
        folder: has config.json and safetensors.
        key: for parameters the checkpoint does not have (a new classification head).
        dtype: of the parameters it does have; fresh ones are float32.
        overrides: fields of the model's config, such as num_labels.

    Raises:
        UserError: no config, an unsupported model type, missing, unexpected or misshapen tensors.
    """
    folder = Path(folder)
    hf = read_json(folder / "config.json", "a checkpoint folder")
    architecture = architecture_of(hf, folder)
    config = architecture.config(hf, **overrides)
    model = nnx.eval_shape(lambda: architecture.build(config, rngs=nnx.Rngs(0)))
    fresh = fill(model, open_weights(folder), architecture, key, dtype)
    return Loaded(model, fresh)


def architecture_of(hf: Mapping[str, Any], where: Path) -> Architecture:
    """The architecture a config.json asks for."""
    kind = hf.get("model_type")
    if kind not in ARCHITECTURES:
        raise UserError(
            f"{where}: model_type {kind!r} is not supported{nearest(str(kind), ARCHITECTURES)}; "
            f"there are: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[kind]


def fill(
    model: nnx.Module, weights: WeightFiles, architecture: Architecture, key: Key, dtype: Any
) -> tuple[str, ...]:
    """Gives every parameter of an abstract model its value; returns the names of fresh ones."""
    strip = not any(name.startswith(architecture.prefix) for name in weights)
    stored = {
        (architecture.prefix + name if strip and not _is_head(name, architecture) else name): name
        for name in weights
    }
    slots = [slot for site in find_sites(model, tuple(TORCH_NAMES)) for slot in _slots(site)]
    _check(slots, stored, weights, architecture)
    fresh = []
    for slot in slots:
        if slot.names[0] in stored:
            arrays = [weights[stored[name]] for name in slot.names]
            arrays = [array.T if slot.transposed else array for array in arrays]
            value = np.stack(arrays) if slot.stacked else arrays[0]
            slot.set(jnp.asarray(value, dtype))
        else:
            key, own = jax.random.split(key)
            slot.set(_fresh(slot, own))
            fresh += slot.names
    return tuple(fresh)


def _is_head(name: str, architecture: Architecture) -> bool:
    return any(name.startswith(module + ".") for module in architecture.head)


@dataclasses.dataclass(frozen=True)
class _Slot:
    """One parameter of the model and the tensors (one per layer) that fill it."""

    site: Site
    parameter: str
    names: tuple[str, ...]
    transposed: bool

    @property
    def stacked(self) -> bool:
        return self.site.layers is not None

    def torch_shape(self) -> tuple[int, ...]:
        shape = getattr(self.site.module, self.parameter).shape[1 if self.stacked else 0 :]
        return tuple(reversed(shape)) if self.transposed else tuple(shape)

    def set(self, value: jax.Array) -> None:
        getattr(self.site.module, self.parameter).set_value(value)


def _slots(site: Site) -> list[_Slot]:
    found = []
    for parameter, (torch_name, transposed) in TORCH_NAMES[type(site.module)].items():
        if getattr(site.module, parameter) is not None:
            names = tuple(f"{name}.{torch_name}" for name in site.names())
            found.append(_Slot(site, parameter, names, transposed))
    return found


def _fresh(slot: _Slot, key: Key) -> jax.Array:
    """torch's start of a new head: normal(0.02) kernels, zero biases."""
    shape = getattr(slot.site.module, slot.parameter).shape
    if slot.parameter == "bias":
        return jnp.zeros(shape, jnp.float32)
    return 0.02 * jax.random.normal(key, shape, jnp.float32)


def _check(
    slots: list[_Slot],
    stored: Mapping[str, str],
    weights: WeightFiles,
    architecture: Architecture,
) -> None:
    """Lists everything that does not fit, in one line."""
    wanted = {name: slot for slot in slots for name in slot.names}
    missing = [name for name in wanted if name not in stored and not _is_head(name, architecture)]
    unexpected = [
        name
        for name in stored
        if name not in wanted and not re.fullmatch(architecture.ignored, name)
    ]
    shapes = [
        f"{name} is {weights.shape(stored[name])}, the config says {slot.torch_shape()}"
        for name, slot in wanted.items()
        if name in stored and weights.shape(stored[name]) != slot.torch_shape()
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes))
    problems = [f"{kind}: {_some(names)}" for kind, names in lists if names]
    if problems:
        raise UserError(f"the weights do not fit the config; {'; '.join(problems)}")


def _some(names: list[str], most: int = 5) -> str:
    shown = ", ".join(sorted(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
