"""A config file and what the command line changes in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from goat_jax.config import RunConfig, load_config


def read_config(source: str, overrides: Sequence[str], prog: str) -> RunConfig:
    """The config of a file (``FILE[:OPTION=VALUE,...]``) with fields overridden.

    Args:
        overrides: ``--field value ...``, typed by the dataclasses.
        prog: shown in usage messages.
    """
    return tyro.cli(
        RunConfig,
        default=load_config(source),
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
