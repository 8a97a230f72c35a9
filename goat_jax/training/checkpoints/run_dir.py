"""Identity of a run folder: run.json describes the run, and a restart must match it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.config.fields import config_from_json, flatten
from goat_jax.config.run import FREE_TO_CHANGE, RunConfig
from goat_jax.errors import UserError
from goat_jax.files import read_json, write_whole
from goat_jax.optim.optimizer import schedule_of
from goat_jax.training.checkpoints.lock import LOCK, locked
from goat_jax.training.checkpoints.steps import CHECKPOINTS, steps_in
from goat_jax.training.data import TaskData
from goat_jax.training.setup import TrainSetup
from goat_jax.validation.fields import Natural, check_fields, construct

RUN = "run.json"
RESULT = "result.json"  # the scores of a run that is part of a table
# A recomputed SVD differs by rounding only (1e-7); another segment, seed or rho differs by more.
NORM_TOLERANCE = 1e-5
LIBRARIES = {
    "goat_jax": "goat-jax",
    "jax": "jax",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "transformers": "transformers",
    "grain": "grain",
}
"""Name in run.json -> name of a package whose version may change a run's numbers."""


@dataclasses.dataclass(frozen=True)
class RowsIdentity:
    """Identity of one split's rows.

    Attributes:
        rows: the number of rows.
        sha256: the digest of all rows.
    """

    rows: Natural
    sha256: str


@dataclasses.dataclass(frozen=True)
class RunFile:
    """Entries of run.json, with their types; those with a default were added in later versions.

    Attributes:
        config: the fields of the `RunConfig` by their dotted names.
        base_sha256: the digest of the pretrained weights.
        residual_norms: module name pattern -> norms of its frozen kernels, one per layer.
        trained_parameters: the number of trained parameters.
        versions: library -> the version with which the run began.
        rows: split -> identity of its rows.
        earlier_rows: the identities of the rows before accepted changes, the oldest first.
        command: the command line that started the run.
    """

    config: Mapping[str, Any]
    base_sha256: str
    residual_norms: Mapping[str, tuple[float, ...]]
    trained_parameters: Natural
    versions: Mapping[str, str]
    rows: Mapping[str, RowsIdentity] = dataclasses.field(default_factory=dict)
    earlier_rows: tuple[Mapping[str, Any], ...] = ()
    command: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@contextlib.contextmanager
def acquired(folder: Path, config: RunConfig) -> Iterator[bool]:
    """Locks a run folder for this run; yields True if the run had already begun there.

    All checks here are cheap, because they come before weights are loaded. `identify` compares
    what has to be computed first.

    Raises:
        UserError: the folder cannot be written to, holds other files or another run, or another
            process is training there.
    """
    folder = Path(folder)
    try:
        missing = not folder.exists()
        _check_content(folder)  # before a lock file is created in a folder that is not a run folder
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UserError(_unusable(folder, error)) from None
    with contextlib.ExitStack() as held:
        if missing:
            held.callback(_remove_unless_used, folder)
        try:
            held.enter_context(locked(folder))
        except OSError as error:
            raise UserError(_unusable(folder, error)) from None
        begun = _check_content(folder)  # again, as another process may have used it meanwhile
        if begun:
            check_same_config(folder, read_run(folder), config)
        yield begun


def _unusable(folder: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or error
    return f"{folder} cannot be a run folder ({reason}): choose another --out"


def _check_content(folder: Path) -> bool:
    """Returns True if a run had begun in the folder; `UserError` if it holds other files."""
    if (folder / RUN).is_file():
        return True
    # A process that is killed early leaves its lock file, or a partly written run.json.
    others = [
        path
        for path in (folder.iterdir() if folder.exists() else ())
        if path.name != LOCK and not (path.name.startswith(".") and path.name.endswith(".part"))
    ]
    if others:
        raise UserError(f"{folder} holds other files and no {RUN}: choose another --out")
    return False


def _remove_unless_used(folder: Path) -> None:
    """Removes the folder that this process created, if no run has begun in it."""
    if [path.name for path in folder.iterdir()] == [LOCK]:
        with contextlib.suppress(OSError):  # another process may have started to use the folder
            (folder / LOCK).unlink()
            folder.rmdir()


def identify(folder: Path, setup: TrainSetup, data: TaskData, command: str | None = None) -> None:
    """Writes run.json for a new run; for a continued one, checks that it is the same run.

    A continued run may change its length and, if the config accepts it, its rows; run.json is then
    updated.

    Args:
        folder: the run folder, locked by `acquired`.
        setup: the run's model.
        data: the run's rows, with its config.
        command: the command line that starts the run; kept in run.json.

    Raises:
        UserError: the model or the rows are not those that the run began with.
    """
    path = Path(folder) / RUN
    if not path.is_file():
        saved = describe(setup, data) | ({"command": command} if command else {})
    else:
        before = read_run(folder)
        check_same_model(folder, before, setup)
        saved = before | rows_of(folder, before, data)
        saved["config"] = saved["config"] | {"train.steps": data.config.train.steps}
        if saved == before:
            return
    write_whole(path, json.dumps(saved, indent=1) + "\n")


def describe(setup: TrainSetup, data: TaskData) -> dict[str, Any]:
    """Returns the facts that identify a run, as JSON."""
    return {
        "config": flatten(data.config),
        "base_sha256": setup.base_fingerprint,
        "residual_norms": setup.residual_norms,
        "trained_parameters": setup.inject_report.trained_parameters,
        "rows": data.identity,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of goat_jax and of the packages that its numbers depend on.

    >>> list(versions())
    ['goat_jax', 'jax', 'flax', 'optax', 'orbax', 'transformers', 'grain']
    """
    by_name = {}
    for name, package in LIBRARIES.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            by_name[name] = metadata.version(package)
    return by_name


def read_run(folder: Path) -> dict[str, Any]:
    """Reads the run.json of a run folder.

    Raises:
        UserError: the folder has none, or it is not valid.
    """
    path = Path(folder) / RUN
    if not path.is_file():
        raise UserError(
            f"{folder} is not a run folder: it has no {RUN}; give the folder that goat-jax train "
            "named, such as runs/reviews"
        )
    try:
        saved = read_json(path)
    except UserError as error:
        raise UserError(f"{error}: restore it from a backup, or train with another --out") from None
    if not isinstance(saved, dict):
        raise UserError(f"{path} is not valid: it holds a {type(saved).__name__}, not an object")
    known = {field.name for field in dataclasses.fields(RunFile)}
    with _named(path):
        construct("it", RunFile, {name: value for name, value in saved.items() if name in known})
    return saved


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns errors of a file's content into a `UserError` that begins with the file's name."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is not valid: {reason}") from None


def load_run(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Reads the config of a run folder; returns it with all of run.json.

    Raises:
        UserError: the folder has no run.json, or it is not valid.
    """
    saved = read_run(folder)
    with _named(Path(folder) / RUN):
        config = config_from_json(saved["config"])
        check_fields(config.task, "task.")
    return config, saved


def check_same_config(folder: Path, saved: dict[str, Any], config: RunConfig) -> None:
    """Raises `UserError` if a config differs from a run's in fields that must not change."""
    with _named(Path(folder) / RUN):
        recorded = config_from_json(saved["config"])
    before = flatten(recorded)  # from the config, so fields that are newer have their defaults
    free = {*FREE_TO_CHANGE, "train.steps", "train.epochs"}
    for name, value in flatten(config).items():
        if name not in free and before.get(name) != value:
            raise UserError(
                f"{folder} holds a run with {name} = {before.get(name)!r}, now {value!r}: "
                "give the same or another --out"
            )
    if config.train.epochs is None:  # else the steps are compared when the rows are known
        _check_length(folder, recorded, config)


def _check_length(folder: Path, before: RunConfig, now: RunConfig) -> None:
    """Raises `UserError` if another number of steps would have changed the steps already done."""
    planned, requested = before.train.total_steps, now.train.total_steps
    done = max(steps_in(folder / CHECKPOINTS), default=0)
    if requested == planned:
        return
    why = None
    if requested < done:
        why = f"{done} steps are done"
    elif now.adapter.spec().transform.length_matters:
        why = "the method's schedule depends on train.steps"
    elif not _same_rates(before, now):
        why = f"the {now.optimizer.schedule} schedule depends on it, only a constant one does not"
    if why is not None:
        raise UserError(
            f"{folder} holds a run with train.steps = {planned}, now {requested} ({why}): give the "
            "same or another --out"
        )


def _same_rates(one: RunConfig, other: RunConfig) -> bool:
    """True if the learning rates agree over the length of the shorter run."""
    steps = np.arange(min(one.train.total_steps, other.train.total_steps))
    new, saved = (
        schedule_of(each.optimizer, each.train.total_steps)(steps) for each in (one, other)
    )
    return np.array_equal(np.asarray(new), np.asarray(saved))


def check_same_rows(folder: Path, data: TaskData) -> None:
    """Raises `UserError` if a run had begun in the folder with other rows, or with a length that
    may not change; reads no model."""
    if (folder / RUN).is_file():
        saved = read_run(folder)
        rows_of(folder, saved, data)
        check_same_config(folder, saved, data.config)


def rows_of(folder: Path, saved: dict[str, Any], data: TaskData) -> dict[str, Any]:
    """Returns run.json's entries about the rows, with the earlier rows if a change is accepted.

    Raises:
        UserError: the rows have changed, and the config does not accept it.
    """
    before = saved.get("rows", {})  # empty in a run.json of older versions, which had no digests
    changed = [split for split, rows in data.identity.items() if before.get(split, rows) != rows]
    if not changed:
        return {"rows": data.identity}
    if data.config.train.changed_rows == "stop":
        counts = [f"{each[changed[0]]['rows']:,}" for each in (before, data.identity)]
        raise UserError(
            f"the {' and '.join(changed)} rows of {folder} have changed since the run began "
            f"({counts[0]} rows then, {counts[1]} now): restore them, give another --out, or "
            "accept the change with --train.changed-rows accept"
        )
    until = max(steps_in(folder / CHECKPOINTS), default=0)
    earlier = [*saved.get("earlier_rows", []), {"until_step": until, **before}]
    return {"rows": data.identity, "earlier_rows": earlier}


def check_same_model(folder: Path, saved: dict[str, Any], setup: TrainSetup) -> None:
    """Raises `UserError` unless a model has the frozen kernels that a run began with."""
    recorded, current = saved["base_sha256"], setup.base_fingerprint
    if recorded != current:
        raise UserError(
            f"{folder} belongs to a run on another base model (its weights are {recorded[:12]}, "
            f"these are {current[:12]}): give the same model or another --out"
        )
    for name, norms in setup.residual_norms.items():
        before = saved["residual_norms"].get(name, [])
        alike = len(before) == len(norms)
        if not alike or not np.allclose(before, norms, rtol=NORM_TOLERANCE, atol=0):
            raise UserError(
                f"{folder}: the rebuilt frozen kernel of {name} is not the one it was trained on: "
                "the library's SVD start has changed, start again with another --out"
            )
