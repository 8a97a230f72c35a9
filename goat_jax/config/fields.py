"""Fields of a config by dotted names: listing, JSON and replacement."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from goat_jax.config.run import AdapterConfig, RunConfig
from goat_jax.data.tasks.registry import KINDS
from goat_jax.errors import UnknownField, UserError
from goat_jax.registry import REGISTRY
from goat_jax.validation.checks import check_choice
from goat_jax.validation.fields import construct, field_types
from goat_jax.validation.other_names import meant_by
from goat_jax.validation.records import Dataclass, is_record
from goat_jax.validation.renamed import check_present, present_names


def flatten(config: Dataclass, prefix: str = "") -> dict[str, Any]:
    """Returns every field of a config by its dotted name, as JSON values.

    >>> from goat_jax.optim.optimizer import OptimizerConfig
    >>> flatten(OptimizerConfig())["schedule"]
    'cosine'
    """
    values: dict[str, Any] = {}
    if type(config) in KINDS.values():
        values[prefix + "kind"] = next(k for k, kind in KINDS.items() if kind is type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if is_record(value):
            values |= flatten(value, name + ".")
        else:
            values[name] = json.loads(json.dumps(value, default=_as_json))
    return values


def _as_json(value: object) -> Any:
    if is_record(value):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def config_from_json(values: Mapping[str, Any]) -> RunConfig:
    """Makes the `RunConfig` from the output of `flatten`: JSON values by dotted names.

    Former names, which files of earlier versions have, are read as the present ones.

    Raises:
        UserError: an unknown field, a missing one, or a value that is not valid.

    >>> from goat_jax.config.run import ModelConfig
    >>> from goat_jax.data.tasks.registry import reviews
    >>> config = RunConfig(ModelConfig("m", options={"pooling": "mean"}), reviews())
    >>> config_from_json(flatten(config)) == config
    True
    """
    if not isinstance(values, Mapping):
        raise UserError(f"config {values!r} is not valid: give values by name")
    tree: dict[str, Any] = {}
    for name, value in present_names(values).items():
        *groups, last = name.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise UserError(f"config has {group} both as a value and as a group of fields")
        place[last] = _tuples(value)
    task = tree.get("task")
    if not isinstance(task, dict):
        raise UserError("config has no task.kind, which is required")
    kind = task.pop("kind", None)
    check_choice("task.kind", kind, KINDS)
    return construct("config", RunConfig, tree | {"task": construct("task", KINDS[kind], task)})


def _tuples(value: object) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


class _NestedFields(dict[str, Any]):
    """Values for the fields of a nested config, by name."""


def with_fields(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Returns the config with the values of some fields replaced.

    Args:
        config: the config to start from.
        values: the new values by the fields' dotted names. ``adapter.NAME`` may also be an option
            of the method or of one of its parts, and ``model.options.NAME`` a key of a mapping.

    Raises:
        UserError: an unknown field, or a value that is not valid.

    >>> from goat_jax.config.run import ModelConfig
    >>> from goat_jax.data.tasks.registry import reviews
    >>> config = RunConfig(ModelConfig("m"), reviews())
    >>> with_fields(config, {"adapter.method": "lora_dash", "adapter.change_step": 20}).adapter
    ... # doctest: +ELLIPSIS
    AdapterConfig(method='lora_dash', ... options={'change_step': 20}, ...)
    """
    tree = _NestedFields()
    for name, value in values.items():
        check_present(name)
        *groups, last = name.split(".")
        place = tree
        for group in groups:
            inner = place.setdefault(group, _NestedFields())
            if not isinstance(inner, _NestedFields):
                raise UserError(f"{name} and all of {group} are given: give one of them")
            place = inner
        place[last] = value
    return _replaced(config, tree, "", config)


def _replaced(config: Any, tree: Mapping[str, Any], prefix: str, whole: RunConfig) -> Any:
    known = [field.name for field in dataclasses.fields(config)]
    changes: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in tree.items():
        if name in known:
            changes[name] = _replaced_value(getattr(config, name), value, prefix + name, whole)
        elif isinstance(config, AdapterConfig) and is_method_option(name, config):
            others[name] = value
        else:
            inner = f".{next(iter(value))}" if isinstance(value, _NestedFields) else ""
            raise unknown_field(whole, prefix + name + inner)
    for name, other in getattr(config, "ALTERNATIVES", {}).items():
        if changes.get(name) is not None:
            changes.setdefault(other, None)
    if others:
        changes["options"] = {**config.options, **changes.get("options", {}), **others}
    return dataclasses.replace(config, **changes)


def _replaced_value(now: object, value: object, name: str, whole: RunConfig) -> Any:
    if is_record(now):
        if not isinstance(value, _NestedFields):
            fields = ", ".join(field.name for field in dataclasses.fields(now))
            raise UserError(f"{name} is a group of fields: give one of them by name ({fields})")
        return _replaced(now, value, name + ".", whole)
    if isinstance(now, Mapping) and isinstance(value, Mapping):
        return {**now, **value}
    if isinstance(value, _NestedFields):
        raise UserError(f"{name} is a single field and has no field {next(iter(value))}")
    return value


def unknown_field(config: RunConfig, name: str) -> UnknownField:
    """Makes the error for a dotted name that is not a field, with the field probably meant:
    one of the same group, or else one of any group."""
    fields = [*field_kinds(config), *(f"adapter.{option}" for option in method_options())]
    groups = [field.name for field in dataclasses.fields(config)]
    group, dot, last = name.rpartition(".")
    inside = [one for one in fields if one.startswith(group + dot)] if dot else []
    for known in (inside, [*groups, *fields]):
        by_last = {one.rpartition(".")[2]: one for one in known}
        match = meant_by(last, [*by_last, *known])
        if match:
            return UnknownField(name, by_last.get(match, match), config)
    return UnknownField(name, None, config)


def field_kinds(config: Dataclass, prefix: str = "") -> dict[str, Any]:
    """Returns the type of every field by its dotted name.

    >>> from goat_jax.sharding.config import MeshConfig
    >>> list(field_kinds(MeshConfig(), "mesh."))[-2:]
    ['mesh.rules.inner', 'mesh.rules.vocab']
    """
    kinds: dict[str, Any] = {}
    for name, kind in field_types(type(config)).items():
        value = getattr(config, name)
        if is_record(value):
            kinds |= field_kinds(value, f"{prefix}{name}.")
        else:
            kinds[prefix + name] = kind
    return kinds


def is_method_option(name: str, adapter: AdapterConfig) -> bool:
    """True if any registered part, or a part of the adapter's spec, has an option of this name."""
    return name in method_options() or adapter.spec().has_option(name)


def method_options() -> dict[str, list[type]]:
    """Returns the options of all registered parts, each with the classes of parts that have it.

    The kinds of parts, such as ``router``, are options too: their value is a part's name.

    >>> [part.__name__ for part in method_options()["rho"]]
    ['SvdSegments']
    """
    by_option: dict[str, list[type]] = {kind: [] for kind in REGISTRY}
    for named in REGISTRY.values():
        for part in named.values():
            for field in dataclasses.fields(part):
                by_option.setdefault(field.name, []).append(part)
    return by_option
