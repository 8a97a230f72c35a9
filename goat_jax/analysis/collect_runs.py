"""Collects run folders as plain data, for figures and tables over many runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from goat_jax.config.fields import flatten
from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.files import read_json
from goat_jax.training.checkpoints.run_dir import RESULT, RUN, load_run
from goat_jax.training.logging.metrics_log import FILE_NAME, read_records, training_series
from goat_jax.validation.fields import checked

FOLLOWS = {"alpha", "dropout", "modules_to_save", "target_modules"}
"""Adapter fields that follow from other fields or the model, so they do not separate series."""


@dataclasses.dataclass(frozen=True)
class Gathered:
    """A run, read from its folder.

    Attributes:
        folder: the run folder.
        config: the config that the run was trained with.
        records: the run's records (`goat_jax.training.logging.metrics_log`).
        scores: the scores in the folder's result file, or else those of the last step; empty while
            the run is not finished.
    """

    folder: Path
    config: RunConfig
    records: Sequence[Mapping[str, Any]] = dataclasses.field(repr=False)
    scores: Mapping[str, float]

    @property
    def task(self) -> str:
        """Name of the run's task."""
        return self.config.task.name

    def score(self, metric: str | None = None) -> tuple[str, float] | None:
        """Returns the name and the value of a score; None if the run has none.

        The first of these that exists is used: `metric`, the config's `best_by` metric, and the
        first score, since the scores of an eval task have other names.
        """
        candidates = [metric, self.config.best_by, *self.scores]
        name = next((name for name in candidates if name in self.scores), None)
        return None if name is None else (name, self.scores[name])

    def series(self, field: str) -> tuple[list[int], list[float]]:
        """Returns steps and values of a field of the training records; gaps (null) are left out."""
        return training_series(self.records, field)

    def last(self, kind: str) -> Mapping[str, Any] | None:
        """Returns the last record of a kind; None if there is none."""
        return next((r for r in reversed(self.records) if r["kind"] == kind), None)


def gather(roots: Iterable[Path]) -> list[Gathered]:
    """Reads all runs in and below some folders, in the order of their paths.

    Runs that have written no records yet are left out.

    Raises:
        UserError: no run there, or a folder that cannot be read.
    """
    roots = [Path(root) for root in roots]
    folders = sorted({path.parent for root in roots for path in root.rglob(RUN)})
    if not folders:
        raise UserError(
            f"no run in {', '.join(map(str, roots))}: give folders that contain a {RUN}"
        )
    return [_read(folder) for folder in folders if (folder / FILE_NAME).is_file()]


def _read(folder: Path) -> Gathered:
    config, _ = load_run(folder)
    records = read_records(folder)
    return Gathered(folder, config, records, _scores(folder, config, records))


def _scores(folder: Path, config: RunConfig, records: Sequence[Mapping]) -> dict[str, float]:
    result = folder / RESULT
    if result.is_file():
        saved = read_json(result)
        if not isinstance(saved, dict) or "scores" not in saved:
            raise UserError(f"{result} is not valid: it has no scores")
        return dict(checked(f"{result}: scores", saved["scores"], Mapping[str, float]))
    ends = [r for r in records if r["kind"] == "eval" and r["step"] == config.train.steps]
    skipped = {"kind", "step", "split", "seconds"}
    last = ends[-1] if ends else {}
    return {name: v for name, v in last.items() if name not in skipped and v is not None}


def by_series(runs: Iterable[Gathered], apart: Iterable[str] = ()) -> dict[str, list[Gathered]]:
    """Groups runs whose adapter settings agree, except for the fields in `apart`.

    A group's label is the method's name; if several groups share a method, the label also has the
    settings in which they differ.

    Args:
        runs: the runs to group.
        apart: fields of the adapter that a figure has on its axes.

    Returns:
        label -> the group's runs.
    """
    groups: dict[str, tuple[dict[str, Any], list[Gathered]]] = {}
    for run in runs:
        traits = _traits(run.config, {*apart, *FOLLOWS})
        groups.setdefault(json.dumps(traits, sort_keys=True), (traits, []))[1].append(run)
    forms = [traits for traits, _ in groups.values()]
    return {_label(traits, forms): members for traits, members in groups.values()}


def _traits(config: RunConfig, left_out: set[str]) -> dict[str, Any]:
    """Returns the settings that identify a config's method.

    Sizes come from the spec, so that two ways to write the same size count as equal.
    """
    adapter, spec = config.adapter, config.adapter.spec()
    traits = {key: value for key, value in flatten(adapter).items() if value not in (None, [], {})}
    defaults = traits.pop("defaults", {})
    traits = {n: value for n, value in defaults.items() if spec.has_option(n)} | traits
    traits |= traits.pop("options", {})
    sizes = ("total_rank", "num_experts", "top_k")
    traits |= {name: getattr(spec, name) for name in sizes}
    return {name: value for name, value in traits.items() if name not in left_out}


def _label(traits: Mapping[str, Any], forms: Sequence[Mapping[str, Any]]) -> str:
    method = traits.get("method")
    alike = [form for form in forms if form.get("method") == method]
    names = sorted({name for form in alike for name in form} - {*_WORDS})
    names = [*_WORDS, *names]
    telling = [n for n in names if len({json.dumps(form.get(n)) for form in alike}) > 1]
    parts = [f"{_WORDS.get(name, name)} {traits[name]}" for name in telling if name in traits]
    return ", ".join([method, *parts] if method else parts) or "all"


_WORDS = {"total_rank": "rank", "num_experts": "experts", "top_k": "top"}
