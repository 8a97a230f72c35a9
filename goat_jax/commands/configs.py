"""A config file and what the command line changes in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from goat_jax.config import RunConfig, load_config
from goat_jax.run.folder import load_run


def read_config(source: str, overrides: Sequence[str], prog: str) -> RunConfig:
    """The config of a file (``FILE[:OPTION=VALUE,...]``) with fields overridden.

    Args:
        overrides: ``--field value ...``, typed by the dataclasses.
        prog: shown in usage messages.
    """
    return override(load_config(source), overrides, prog)


def read_run_config(folder: Path, overrides: Sequence[str], prog: str) -> RunConfig:
    """The config of a run that has begun, with fields overridden; it goes on where it is."""
    config = dataclasses.replace(load_run(folder)[0], out=str(folder))
    return override(config, overrides, prog)


def override(config: RunConfig, overrides: Sequence[str], prog: str) -> RunConfig:
    """A config with fields changed by the command line."""
    return tyro.cli(
        RunConfig,
        default=config,
        args=list(overrides),
        prog=prog,
        config=(tyro.conf.AvoidSubcommands,),  # the kind of task is the config file's
    )


def with_adapter(config: RunConfig, options: Mapping[str, Any]) -> RunConfig:
    """The config with other fields of its adapter, or options of the adapter's parts.

    Raises:
        UserError: the method has no such option, or it does not fit.
    """
    named = {field.name for field in dataclasses.fields(config.adapter)}
    fields = {name: value for name, value in options.items() if name in named}
    others = {name: value for name, value in options.items() if name not in named}
    own = {**config.adapter.options, **others}
    adapter = dataclasses.replace(config.adapter, **fields, options=own)
    adapter.spec()  # what does not fit is said before anything is trained
    return dataclasses.replace(config, adapter=adapter)
