"""A config file and what the command line changes in it."""

from __future__ import annotations

from collections.abc import Sequence

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
