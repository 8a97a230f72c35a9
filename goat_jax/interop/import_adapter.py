"""An adapter read from a file: its metadata, its checks, and loading its tensors into a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.errors import UserError, nearest
from goat_jax.interop.modules import parameters, write_head, write_rows
from goat_jax.models.registry import Architecture
from goat_jax.nn.dense import merge_model, split_model
from goat_jax.nn.named_modules import find_modules
from goat_jax.pretrained.packaged_models import ORIGINS
from goat_jax.typing import PyTree
from goat_jax.validation.base_samples import other_base, places


@dataclasses.dataclass(frozen=True)
class Imported:
    """An adapter as read from its files.

    Attributes:
        source: the folder or file that it was read from, for messages.
        base: the base model that it names, None if it names none.
        base_sha256: the hash of that model's weights, None if it is unknown.
        options: the fields of `AdapterConfig` that the adapter determines.
        settles_all: whether all other fields take the method's defaults instead of the user's
            values.
        overrides: the (modules, options) of modules whose options differ.
        modules: module -> our name of a factor -> its array.
        head: PyTorch's tensors of the modules that were trained in full.
        revision: the base model's revision on the hub, None if it names none.
        rows: module -> vectors (n, D) of the tokens in `options["trainable_token_indices"]`.
        frozen: PyTorch's frozen tensors of modules with an adapter, which the model must have, too.
        tokenizer: the folder of a tokenizer with the adapter's tokens, None if it has none.
        parameters: the names or their ends of parameters that PEFT adapts as such.
        config: the adapter_config.json of PEFT; empty for other formats.
        base_samples: module -> samples of its pretrained weight, from formats that have them.
    """

    source: str
    base: str | None
    base_sha256: str | None
    options: Mapping[str, Any]
    settles_all: bool
    overrides: tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...]
    modules: Mapping[str, Mapping[str, np.ndarray]]
    head: Mapping[str, np.ndarray]
    revision: str | None = None
    rows: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    frozen: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    tokenizer: Path | None = None
    parameters: tuple[str, ...] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base_samples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Sorted names of the modules that were trained in full."""
        return tuple(sorted({name.rpartition(".")[0] for name in self.head}))


def check_weights(adapter: Imported, sha256: str, meant: bool = False) -> None:
    """Checks that the adapter is not known to belong to other weights than the model's.

    Args:
        adapter: the adapter.
        sha256: the hash of the model's weights.
        meant: whether the user has confirmed that the weights may differ.

    Raises:
        UserError: the hashes differ, and the user has not confirmed it.
    """
    if not meant and adapter.base_sha256 not in (None, sha256):
        raise UserError(
            f"{adapter.source} is an adapter{_of(adapter)}, whose weights are "
            f"{str(adapter.base_sha256)[:12]}; the model's are {sha256[:12]}: give the model it "
            "was trained on, or --other-base if this is intended"
        )


def check_samples(
    adapter: Imported, weights: Mapping[str, np.ndarray], architecture: Architecture
) -> None:
    """Checks an adapter without its base's sha256 by the samples that it has of the weights.

    Args:
        adapter: the adapter, with the model's module names.
        weights: the tensors of the model's checkpoint, read on access.
        architecture: the model's architecture.

    Raises:
        UserError: they are of other weights.
    """
    if adapter.base_sha256 is not None:
        return
    found = {}
    for stored in weights if adapter.base_samples else ():
        for name in (stored, architecture.prefix + stored):
            module = architecture.todays_name(name).removesuffix(".weight")
            if module in adapter.base_samples:
                weight = weights[stored]
                found[module] = [float(weight[place]) for place in places(*weight.shape)]
    own = {module: sample.tolist() for module, sample in adapter.base_samples.items()}
    problem = other_base(own, found)
    if problem is not None:
        raise UserError(
            f"{adapter.source}: {problem}: give the model it was trained on, or "
            "--other-base if this is intended"
        )


def base_note(adapter: Imported, path: str) -> str | None:
    """Returns a one-line warning if the adapter names another base model or revision than `path`.

    Only the last parts of the names are compared, so a folder ``models/roberta-large`` matches
    ``FacebookAI/roberta-large``. An adapter with the sha256 of its base's weights is checked by
    `check_weights` instead, one with samples by `check_samples`, and the names do not matter.
    """
    if adapter.base is None or adapter.base_sha256 is not None or adapter.base_samples:
        return None
    named, chosen = (_last_part(ORIGINS.get(name, name)) for name in (adapter.base, path))
    revision = "" if adapter.revision in (None, "main") else f" at revision {adapter.revision}"
    if named == chosen and not revision:
        return None
    return (
        f"warning: {adapter.source} was trained on {adapter.base}{revision}, the model here is "
        f"{path}: results differ if the weights do (--other-base if this is intended)"
    )


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def check_modules(
    adapter: Imported, kernels: Mapping[str, tuple[int, int]], modules: Collection[str]
) -> None:
    """Checks that the model has the adapter's modules with matching sizes.

    Args:
        adapter: the adapter.
        kernels: linear module that can take an adapter -> (I, O).
        modules: the names of all modules of the model.

    Raises:
        UserError: the model lacks a module, or a module takes no adapter or has another size.
    """
    for name, arrays in adapter.modules.items():
        if name in modules and name not in kernels:
            raise UserError(
                f"{adapter.source} adapts {name!r}, which takes no adapter here: merge that part "
                "into the base model with PEFT, or train without it in target_modules"
            )
        if name not in kernels:
            raise UserError(
                f"{adapter.source} adapts {name!r}, which the model does not have"
                f"{nearest(name, kernels)}: it is an adapter{_of(adapter)}"
            )
        (i, o), a, b = kernels[name], arrays["a"], arrays["b"]
        # A NEAT adapter is a network on the kernel's output axis, from O to O.
        own = adapter.frozen.get(f"{name}.weight")
        if own is not None and sorted(own.shape) != sorted((i, o)):
            raise UserError(
                f"{adapter.source}: {name} was {own.shape} and is {(i, o)} here: {_MERGE}"
            )
        if a.shape[-1] != b.shape[-2] or (a.shape[-2], b.shape[-1]) not in ((i, o), (o, o)):
            raise UserError(
                f"{adapter.source}: the factors of {name} are {a.shape[-2:]} and {b.shape[-2:]}, "
                f"the model's kernel is {(i, o)}: it is an adapter{_of(adapter)}"
            )


_MERGE = "merge the adapter into its own base with PEFT, and train on that"


def _of(adapter: Imported) -> str:
    return f" of {adapter.base}" if adapter.base else " of another model"


def put_tensors(
    adapter: Imported, graph: nnx.GraphDef, trainable: dict[str, PyTree], base: PyTree
) -> dict[str, PyTree]:
    """Returns the trainable pytree with the adapter's tensors, with unchanged shardings.

    Args:
        adapter: the adapter.
        graph: the model's graph (`goat_jax.nn.dense.split_model`).
        trainable: the model's trainable pytree.
        base: the model's frozen pytree.

    Raises:
        UserError: a tensor is missing, its shape differs from that of the model's adapter, or a
            frozen one differs from the model's.
    """
    model, used = merge_model(graph, trainable, base), set()
    _check_frozen(adapter, model)
    for ref in find_modules(model):
        dense_adapter = ref.module.adapter
        if dense_adapter is None:
            continue
        used |= set(ref.names())
        for key in dense_adapter.names:
            variable = getattr(dense_adapter, key)
            shape = tuple(variable.shape[len(ref.axes) :])
            layers = [_factor(adapter, name, key, shape) for name in ref.names()]
            whole = ref.joined(np.stack(layers))
            variable.set_value(jnp.asarray(whole, variable.dtype))
    for name in sorted(set(adapter.modules) - used):
        raise UserError(
            f"{adapter.source}: {name} got no adapter, since its rank is above the module's "
            "smaller side: train the adapter with a smaller rank there"
        )
    write_rows(model, adapter.rows, adapter.options.get("trainable_token_indices", ()))
    write_head(model, adapter.head_modules, lambda name, shape: _head(adapter, name, shape))
    new = split_model(model)[1]
    return jax.tree.map(lambda array, like: jax.device_put(array, like.sharding), new, trainable)


def _check_frozen(adapter: Imported, model: nnx.Module) -> None:
    for ref, parameter, layout in parameters(model):
        for name in {layout.full_name(each) for each in ref.names()} & set(adapter.frozen):
            stored = adapter.frozen[name]
            own = np.asarray(layout.to_torch(np.asarray(getattr(ref.module, parameter)[...])))
            if not _close(stored, own):
                raise UserError(
                    f"{adapter.source} has other frozen values of {name} than the model: {_MERGE}"
                )


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    """True if two arrays are equal but for rounding in their dtypes, or in an SVD."""
    if one.shape != other.shape:
        return False
    allowed = max(1e-4, *(float(jnp.finfo(array.dtype).eps) for array in (one, other)))
    wide, exact = one.astype(np.float32), other.astype(np.float32)
    return bool(np.linalg.norm(wide - exact) <= allowed * np.linalg.norm(exact))


def _factor(adapter: Imported, module: str, key: str, shape: tuple[int, ...]) -> np.ndarray:
    tensor = adapter.modules.get(module, {}).get(key)
    if tensor is None:
        raise UserError(f"{adapter.source} has no {key} of {module}: the adapter needs it")
    if tensor.shape != shape:
        raise UserError(
            f"{adapter.source}: {key} of {module} is {tensor.shape}, the adapter's is {shape}: "
            "give the sizes it was trained with"
        )
    return tensor


def _head(adapter: Imported, name: str, shape: tuple[int, ...]) -> np.ndarray:
    tensor = adapter.head.get(name)
    if tensor is None:
        raise UserError(f"{adapter.source} has no {name}: the head is incomplete")
    if tensor.shape != shape:
        raise UserError(f"{adapter.source}: {name} is {tensor.shape}, the model's is {shape}")
    return tensor.astype(np.float32)
