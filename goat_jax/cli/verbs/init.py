"""``goat-jax init``: writes the config file of the run that a model and data would give."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from goat_jax.cli.arguments.config import propose_config
from goat_jax.cli.arguments.field_help import attribute_help
from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.files import user_path, write_whole
from goat_jax.validation.records import is_record

WIDTH = 100


def init(file: Path, model: str, data: str, held_out: str | None, words: list[str]) -> int:
    """Writes a config file; returns the exit code 0.

    Args:
        file: the file to write, which must not exist.
        model: the pretrained model.
        data: the source of the training rows.
        held_out: the source of the evaluation rows, or None.
        words: ``--field value ...``, which override the choices.
    """
    file = user_path(file)
    if file.suffix != ".py":
        raise UserError(f"{file} is no .py file: give the file to write before other fields")
    if file.exists():
        raise UserError(f"{file} exists: give another name, or remove it")
    proposal = propose_config(model, data, held_out, words, "goat-jax init")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, config_file(proposal.config, proposal.lines))
    print("\n".join([*proposal.lines, f"wrote {file}: goat-jax train --config {file}"]))
    return 0


def config_file(config: RunConfig, lines: Sequence[str]) -> str:
    """Returns the text of a config file whose ``get_config()`` gives a config.

    Args:
        config: the config.
        lines: lines for its docstring.
    """
    kinds = dict.fromkeys(type(value) for value in _records(config))
    imports = sorted(f"from {kind.__module__} import {kind.__name__}" for kind in kinds)
    about = "\n".join(
        textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ") for line in lines
    )
    about = about.replace("\\", "\\\\").replace('"""', r"\"\"\"")
    body = "\n".join(_written(config, "    "))
    return (
        f'"""Made from a model and data; every field can be changed here.\n\n{about}\n"""\n\n'
        + "\n".join(imports)
        + f"\n\n\ndef get_config() -> RunConfig:\n    return {body}\n"
    )


def _records(config: Any) -> Iterator[Any]:
    """Yields a config and those nested in it that are not all defaults."""
    yield config
    for _, value in _changed(config):
        if is_record(value):
            yield from _records(value)


def _changed(config: Any) -> Iterator[tuple[str, Any]]:
    """Yields the name and value of every field that differs from its default."""
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING or value != default:
            yield field.name, value


def _written(config: Any, indent: str) -> Iterator[str]:
    """Yields the lines of the expression that makes a config, with each field's help above it."""
    texts, inner = attribute_help(type(config)), indent + "    "
    yield f"{type(config).__name__}("
    for name, value in _changed(config):
        text, mark = texts.get(name, ""), f"{inner}# "
        if text:
            yield textwrap.fill(text, WIDTH, initial_indent=mark, subsequent_indent=mark)
        if is_record(value):
            first, *rest = _written(value, inner)
            yield f"{inner}{name}={first}"
            yield from rest[:-1]
            yield f"{rest[-1]},"
        else:
            yield f"{inner}{name}={value!r},"
    yield f"{indent})"
