"""Config files: Python files whose ``get_config(**options)`` returns a `RunConfig`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from goat_jax.config.run import RunConfig
from goat_jax.config.shipped import config_file
from goat_jax.errors import UserError
from goat_jax.validation.fields import call, read_value
from goat_jax.validation.renamed import hint_in_error


def load_config(source: str) -> RunConfig:
    """Runs ``get_config(**options)`` of a config file.

    Args:
        source: ``FILE.py`` or the name of a shipped config (`goat_jax.config.shipped`), possibly
            followed by ``:option=value,...``; a value is read as JSON, or else as text.

    Raises:
        UserError: the file does not exist, raises an error or has no ``get_config``, or an option
            is unknown or not valid.
    """
    path, _, rest = source.partition(":")
    file = config_file(path)
    spec = importlib.util.spec_from_file_location(f"goat_jax_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(
            f"config file {path} is not a Python file: give a file whose name ends in .py"
        )
    module = importlib.util.module_from_spec(spec)
    with _errors_of(path, file):
        spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config: goat-jax init writes a config file")
    options = parse_options(rest)
    with _errors_of(path, file):
        config = call(module.get_config, options, path)
    if not isinstance(config, RunConfig):
        raise UserError(f"{path}: get_config returns a {type(config).__name__}, not a RunConfig")
    return config


@contextlib.contextmanager
def _errors_of(name: str, file: Path) -> Iterator[None]:
    """Converts any error of a config file's code to a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(frames) if f.filename == str(file)), None)
        line = getattr(error, "lineno", line)
        what = " ".join(str(error).split()) + hint_in_error(str(error))
        where = name if line is None else f"{name}, line {line}"
        raise UserError(f"{where}: {type(error).__name__}: {what}") from error


def parse_options(text: str) -> dict[str, Any]:
    """Parses ``"task=rte,rank=8"`` to a dict; values are read as JSON, or else as strings.

    A comma inside a JSON list, object or string does not end a value.

    Raises:
        UserError: an option is not of the form name=value, or is given twice.

    >>> parse_options("task=rte,rank=8")
    {'task': 'rte', 'rank': 8}
    >>> parse_options('target_modules=["query", "key"],rho=5')
    {'target_modules': ['query', 'key'], 'rho': 5}
    """
    options: dict[str, Any] = {}
    while text:
        name, equals, rest = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise UserError(f"option {text.partition(',')[0]!r} is not of the form name=value")
        if name in options:
            raise UserError(f"option {name} is given twice")
        value, text = _first_value(rest)
        options[name] = read_value(value)
    return options


def _first_value(text: str) -> tuple[str, str]:
    """Splits comma-separated values into the text of the first one and the text after its comma."""
    if text[:1] in ("[", "{", '"'):
        try:
            end = json.JSONDecoder().raw_decode(text)[1]
        except (ValueError, RecursionError):
            end = 0
        if end and text[end : end + 1] in ("", ","):
            return text[:end], text[end + 1 :]
    value, _, after = text.partition(",")
    return value, after
