"""Reads a config file and applies the command line's overrides to it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from goat_jax.cli.arguments.field_help import describe_fields
from goat_jax.cli.arguments.words import split_fields
from goat_jax.config.fields import field_kinds, with_fields
from goat_jax.config.files import load_config
from goat_jax.config.guess import DEPENDED_ON, Proposal, propose
from goat_jax.config.run import RunConfig
from goat_jax.data.sources.read import AND, OR
from goat_jax.data.tasks.registry import Task
from goat_jax.training.checkpoints.run_dir import load_run
from goat_jax.validation.fields import read_words
from goat_jax.validation.renamed import check_present

HELP = {"-h", "--help"}


def read_config(source: str, overrides: Sequence[str], prog: str) -> RunConfig:
    """Returns the config of a file with fields overridden.

    Args:
        source: the config file and its options: ``FILE[:OPTION=VALUE,...]``.
        overrides: ``--field value ...``, with the types of the dataclass fields.
        prog: the command, for the help.
    """
    return override(load_config(source), overrides, prog)


def read_run_config(folder: Path, overrides: Sequence[str], prog: str) -> RunConfig:
    """Returns the config of an existing run with fields overridden, to continue it in its folder.

    Args:
        folder: the run folder.
        overrides: ``--field value ...``, with the types of the dataclass fields.
        prog: the command, for the help.
    """
    config = dataclasses.replace(load_run(folder)[0], out=str(folder))
    return override(config, overrides, prog)


def propose_config(
    model: str,
    data: str,
    held_out: str | None,
    overrides: Sequence[str],
    prog: str,
) -> Proposal:
    """Returns the config that a model and data give, with fields overridden.

    Args:
        model: the pretrained model.
        data: the source of the training rows.
        held_out: the source of the evaluation rows, or None.
        overrides: ``--field value ...``, with the types of the dataclass fields.
        prog: the command, for the help.
    """
    first = {
        name: read_words(name, words, DEPENDED_ON[name])
        for name, words in split_fields([word for word in overrides if word not in HELP])
        if name in DEPENDED_ON
    }
    proposal = propose(model, data, held_out, first)
    config = override(proposal.config, overrides, prog)
    return dataclasses.replace(proposal, config=config)


def override(config: RunConfig, overrides: Sequence[str], prog: str) -> RunConfig:
    """Returns a config with fields changed by the words of a command line: ``--NAME VALUE ...``.

    Names have dashes or underscores. A list takes several words, or one in JSON; a mapping takes
    ``KEY=VALUE`` words and keeps its other keys; ``--GROUP.no-NAME`` is false, ``none`` is None.
    ``--help`` prints every field and ends the process.

    Args:
        config: the config to change.
        overrides: the words of the command line.
        prog: the command, for the help.

    Raises:
        UserError: a word that names no field, or a value that is not valid.
    """
    if HELP & set(overrides):
        print(describe_fields(config, prog))
        raise SystemExit(0)
    values = read_fields(config, overrides)
    changed = with_fields(config, values)
    if "task.name" in values:
        return changed
    return dataclasses.replace(changed, task=named_by_data(config.task, changed.task))


def named_by_data(before: Task, after: Task) -> Task:
    """Renames a task after its training file if its rows were replaced, since the old name no
    longer describes them.

    >>> from goat_jax.data.tasks.registry import reviews
    >>> own = dataclasses.replace(reviews(), train="letters/train.jsonl")
    >>> named_by_data(reviews(), own).name
    'letters-train'
    """
    same = (after.train, after.evaluation) == (before.train, before.evaluation)
    if same:
        return after
    place = Path(after.train.partition(AND)[0].partition(OR)[0].partition("@")[0])
    parts = [place.parent.name, place.stem]
    name = re.sub(r"[^\w.-]+", "-", "-".join(filter(None, parts))).strip("-")
    return dataclasses.replace(after, name=name or after.name)


def read_fields(config: RunConfig, words: Sequence[str]) -> dict[str, Any]:
    """Returns the values that the words of a command line give to config fields, by dotted name."""
    kinds = field_kinds(config)
    values: dict[str, Any] = {}
    for name, values_typed in split_fields(words):
        check_present(name)
        kind = kinds.get(name, Any)
        group, _, last = name.rpartition(".")
        positive = f"{group}.{last.removeprefix('no_')}"
        if last.startswith("no_") and not values_typed and kinds.get(positive) is bool:
            values[positive] = False
        elif name not in kinds and len(values_typed) != 1:
            values[name] = tuple(values_typed)  # mostly an unknown field, which is then the error
        else:
            values[name] = read_words(name, values_typed, kind)
    return values


def with_adapter(config: RunConfig, options: Mapping[str, Any]) -> RunConfig:
    """Returns the config with changed fields of its adapter, or options of the adapter's parts.

    Args:
        config: the config to change.
        options: name of a field or option -> its value.

    Raises:
        UserError: an option that the method does not have, or a value that does not fit.
    """
    return with_fields(config, {f"adapter.{name}": value for name, value in options.items()})
