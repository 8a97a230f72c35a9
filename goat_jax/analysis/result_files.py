"""Result files of a table's runs, which store the scores with everything they depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from goat_jax.config.fields import flatten
from goat_jax.config.run import FREE_TO_CHANGE, RunConfig
from goat_jax.errors import RunFailed, UserError
from goat_jax.evaluation.types import EvalOptions
from goat_jax.files import read_json, user_path, write_whole
from goat_jax.training.checkpoints.run_dir import RESULT
from goat_jax.validation.records import is_record
from goat_jax.validation.renamed import present_names

EDGE = 2**16
"""Number of bytes at a file's beginning and at its end that its stamp reads."""

EMPTY = (None, "", [], {})
"""Values of fields that change nothing."""

COST_ONLY_OPTIONS = {"batch_size", "workers", "run_programs"}
"""Evaluation options that do not change the scores."""
COST_ONLY_JUDGE_OPTIONS = {"key", "attempts", "wait", "timeout", "sleep"}


@dataclasses.dataclass(frozen=True)
class Key:
    """Everything that a result depends on, as JSON.

    Attributes:
        config: the fields of the run's config that its numbers depend on.
        files: the stamps of the files that the config names: model, rows, questions.
        evaluation: the evaluation options; empty if the run was not evaluated separately.
        version: the version of this library.
    """

    config: Mapping[str, Any]
    files: Mapping[str, str]
    evaluation: Mapping[str, Any]
    version: str = metadata.version("goat-jax")

    @classmethod
    def of(cls, config: RunConfig, options: EvalOptions | None = None) -> Key:
        """Makes the key of a run and, if options are given, of its evaluation."""
        values = flatten(config)
        settings = {name: value for name, value in values.items() if name not in FREE_TO_CHANGE}
        places = {name: value for name, value in values.items() if name != "out"}
        return cls(settings, stamps(places), {} if options is None else _traits(options))

    def changed(self, saved: Mapping[str, Any]) -> list[str]:
        """Returns the names of the entries in which a saved key differs from this one.

        A field that the saved key does not have yet is unchanged while it is empty.
        """
        current = json.loads(json.dumps(dataclasses.asdict(self)))
        names = []
        for part, value in current.items():
            other = saved.get(part)
            if isinstance(value, dict) and isinstance(other, dict):
                other = present_names(other)
                both = {**value, **other}
                new = {n for n in value if n not in other and value[n] in EMPTY}
                differing = [n for n in both if value.get(n) != other.get(n) and n not in new]
                names += [f"{part} {n}" for n in differing]
            elif value != other:
                names.append(part)
        return names


def kept_scores(folder: Path, key: Key) -> tuple[dict[str, float] | None, list[str]]:
    """Reads the scores of a run's result file.

    Args:
        folder: the run folder.
        key: the key that the result must have.

    Returns:
        The scores, None if there is no result or its key has changed; and the names of the key's
        entries that have changed.

    Raises:
        UserError: a result of another config, or a file that is not a result.
    """
    path = folder / RESULT
    if not path.is_file():
        return None, []
    saved = read_json(path)
    if not (isinstance(saved, dict) and isinstance(saved.get("scores"), dict)):
        raise UserError(f"{path} is not a result of a run: delete it")
    changed = key.changed(saved.get("key") or {})  # without a key (older releases): every entry
    trained_otherwise = [n.removeprefix("config ") for n in changed if n.startswith("config ")]
    if trained_otherwise:
        raise UserError(
            f"{folder} has a result with other settings ({', '.join(trained_otherwise[:3])}): "
            "give the same or another --out"
        )
    return (None if changed else saved["scores"]), changed


def keep_scores(folder: Path, key: Key, scores: Mapping[str, float], **more: Any) -> None:
    """Writes a run's result file.

    Args:
        folder: the run folder.
        key: everything that the scores depend on.
        scores: the scores by name.
        more: further entries of the file.

    Raises:
        RunFailed: scores that are not finite.
    """
    bad = [name for name, value in scores.items() if not math.isfinite(value)]
    if bad:
        raise RunFailed(f"the run diverged: {bad[0]} is not finite")
    result = {"key": dataclasses.asdict(key), **more, "scores": scores}
    write_whole(folder / RESULT, json.dumps(result, indent=1, allow_nan=False) + "\n")


def stamps(values: Mapping[str, Any]) -> dict[str, str]:
    """Computes a stamp of the content of every file or folder that a config's values name.

    A stamp hashes the names and sizes of the files and the bytes at their beginning and end, not
    all of their bytes. A copy in another place has the same stamp.
    """
    by_name = {}
    for name, value in values.items():
        for text in _texts(value):
            for part in text.split(" || "):
                path = user_path(part)
                if len(part) < 4096 and "\0" not in part and part and path.exists():
                    by_name[f"{name} {path.parent.name}/{path.name}"] = _stamp(path)
    return by_name


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _stamp(path: Path) -> str:
    digest = hashlib.sha256()
    files: Sequence[Path] = [path]
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)} {size}\n".encode(errors="surrogateescape"))
        with file.open("rb") as opened:
            digest.update(opened.read(EDGE))
            if size > EDGE:
                opened.seek(max(EDGE, size - EDGE), os.SEEK_SET)
                digest.update(opened.read())
    return digest.hexdigest()


def _traits(options: EvalOptions) -> dict[str, Any]:
    """Returns the options that an evaluation's scores depend on, long values as digests."""
    values = {name: v for name, v in _plain(options).items() if name not in COST_ONLY_OPTIONS}
    if values.get("judge"):
        values["judge"] = {
            n: v for n, v in values["judge"].items() if n not in COST_ONLY_JUDGE_OPTIONS
        }
    return {name: _short(value) for name, value in values.items()}


def _plain(value: object) -> Any:
    """Converts nested dataclasses, mappings and sequences to JSON values."""
    if is_record(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def _short(value: object) -> Any:
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    text = json.dumps(value)
    return value if len(text) < 100 else hashlib.sha256(text.encode()).hexdigest()
