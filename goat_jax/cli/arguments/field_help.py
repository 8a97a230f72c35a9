"""Help for every config field and every method option, made from docstrings and types."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from goat_jax.adapters.methods import METHODS
from goat_jax.config.fields import field_kinds, method_options
from goat_jax.config.run import AdapterConfig, RunConfig
from goat_jax.errors import UserError
from goat_jax.registry import REGISTRY
from goat_jax.validation.fields import checked, describe, read_words
from goat_jax.validation.records import Dataclass, is_record

WIDTH = 100


def attribute_help(kind: type) -> dict[str, str]:
    """Returns the entries under ``Attributes:`` in the docstrings of a class and of its bases.

    >>> attribute_help(RunConfig)["out"]
    'the run folder; a run that exists there is continued.'
    """
    entries: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        inside = re.match(r"(?:[ ]+.*\n?|\n)*", section)
        text = textwrap.dedent(inside.group() if inside else "")
        for name, entry in re.findall(r"^(\w+):((?:.*\n?)(?:[ ]+.*\n?)*)", text, re.MULTILINE):
            entries[name] = " ".join(entry.split())
    return entries


def field_help(config: Dataclass, prefix: str = "") -> dict[str, str]:
    """Returns the help of every field by its dotted name.

    Args:
        config: a dataclass, whose fields may be dataclasses.
        prefix: the dotted name of `config` within its parent, with a final dot.
    """
    attributes, texts = attribute_help(type(config)), {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if is_record(value):
            texts |= field_help(value, name + ".")
        else:
            texts[name] = attributes.get(field.name, "")
    return texts


def describe_fields(config: RunConfig, prog: str) -> str:
    """Returns every field as the command line takes it, with type, current value and help.

    Args:
        config: the config whose values are shown.
        prog: the command.
    """
    texts, blocks = field_help(config), []
    for name, kind in field_kinds(config).items():
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        blocks.append(_block(name, f"{describe(kind)}; now {_shown(value)}. {texts[name]}"))
    options = [
        _block(f"adapter.{name}", f"{_taken_by(parts)}. {_option_help(name, parts)}")
        for name, parts in method_options().items()
        if not hasattr(AdapterConfig, name)
    ]
    return "\n".join(
        [
            f"fields of {prog}: --NAME VALUE ...",
            *blocks,
            "",
            "options of methods and their parts (goat-jax methods lists the parts of each method):",
            *options,
        ]
    )


def _block(name: str, text: str) -> str:
    body = textwrap.fill(text, WIDTH, initial_indent="      ", subsequent_indent="      ")
    return f"  --{name.replace('_', '-')}\n{body}"


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _option_help(name: str, parts: list[type]) -> str:
    if name in REGISTRY:
        return f"the part by its name: {', '.join(REGISTRY[name])}."
    texts = [attribute_help(part).get(name, "") for part in parts]
    return next(filter(None, texts), "")


def _taken_by(parts: list[type]) -> str:
    names = [name for name, method in METHODS.items() if _has_part(method.spec, parts)]
    return f"for {', '.join(names)}" if parts and names else "for every method"


def _has_part(holder: Any, parts: list[type]) -> bool:
    inner = [getattr(holder, field.name) for field in dataclasses.fields(holder)]
    held = [one for one in inner if dataclasses.is_dataclass(one)]
    return any(isinstance(one, tuple(parts)) or _has_part(one, parts) for one in held)


def describe_values(config: RunConfig, name: str, words: list[str]) -> str:
    """Returns " It takes ..." if words of a command line are not a value of a field, else "".

    Args:
        config: the config that has the field.
        name: the field's dotted name, or that of a method option.
        words: the words.
    """
    kind = field_kinds(config).get(name, Any)
    try:
        checked(name, read_words(name, words, kind), kind)
    except UserError:
        return f" It takes {describe(kind)}"
    return ""
