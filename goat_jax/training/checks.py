"""Checks of a config that need neither rows nor weights, and the model's config."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import nnx

from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.injection.selection import check_choices
from goat_jax.injection.targets import ALL_LINEAR, matches
from goat_jax.models.registry import TIED, Architecture, architecture_of
from goat_jax.pretrained.resolve import find_model, open_checkpoint
from goat_jax.training.phase_change import check_phase_change
from goat_jax.training.shardings import sharding_rules_of
from goat_jax.training.task_types import check_model, task_type_of
from goat_jax.training.tokens import tokens_of


def check(config: RunConfig) -> Any:
    """Checks everything that needs neither rows nor weights, including the model's shapes.

    Returns:
        The config of the model's architecture.

    Raises:
        UserError: anything in the config that does not fit.
    """
    spec = config.adapter.spec()
    sharding_rules_of(config)
    if config.train.steps is not None:  # else `load_data` checks it when the rows are known
        check_phase_change(spec.phases, config.train.steps)
    architecture, model_config = model_config_of(config)
    shapes = nnx.eval_shape(lambda: architecture.build(model_config, rngs=nnx.Rngs(0)))
    adapter = config.adapter
    check_choices(shapes, spec, adapter.target_modules, adapter.overrides, adapter.modules_to_save)
    return model_config


def model_config_of(config: RunConfig) -> tuple[Architecture, Any]:
    """Returns the architecture of a run's model, and its config with the run's options.

    Raises:
        UserError: no such model, one that does not fit the task, or an invalid option.
    """
    options, path = model_options(config), find_model(config.model.path)
    hf, _ = open_checkpoint(path)
    architecture = architecture_of(hf, path)
    check_model(config.task, architecture.kind, str(path))
    try:
        model_config = architecture.config_of(hf, **options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    tokens = tokens_of(config, getattr(model_config, "vocab_size", None))
    if tokens is not None:
        model_config = dataclasses.replace(model_config, vocab_size=tokens.size)
    return architecture, model_config


def model_options(config: RunConfig) -> dict[str, Any]:
    """Returns fields of the model's config: those fixed by the task, dropout and the user's.

    Raises:
        UserError: the user set a field that the task fixes.
    """
    settled = task_type_of(config.task).model_options(config.task)
    for name in config.model.options:
        if name in settled:
            raise UserError(f"model.options has {name}, which follows from the task: remove it")
    dropout = {"dropout": config.model.dropout} if config.model.dropout else {}
    targets = config.adapter.target_modules
    # An adapter changes one of two tied modules alone.
    adapted = targets != ALL_LINEAR and any(matches(name, targets) for name in TIED)
    untied = {"untied": True} if adapted else {}
    return settled | dropout | untied | dict(config.model.options)
