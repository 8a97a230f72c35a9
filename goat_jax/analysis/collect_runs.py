"""Run folders as plain data: what pictures and tables over many runs are made of."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from goat_jax.config.run import RunConfig, flatten
from goat_jax.errors import UserError
from goat_jax.files import read_json
from goat_jax.training.checkpoints.run_dir import RESULT, RUN, load_run
from goat_jax.training.logging.metrics_log import FILE_NAME, read_records, training_series
from goat_jax.validation.fields import checked

FOLLOWS = {"alpha", "dropout", "train", "targets"}
"""Fields of an adapter that follow from its other sizes or its model, and tell no runs apart."""


@dataclasses.dataclass(frozen=True)
class Gathered:
    """A run as its folder has it.

    Attributes:
        folder: of the run.
        config: as it was trained.
        records: of its steps (`goat_jax.training.logging.metrics_log`).
        scores: of the exam or the last step; empty while it is not finished.
    """

    folder: Path
    config: RunConfig
    records: Sequence[Mapping[str, Any]] = dataclasses.field(repr=False)
    scores: Mapping[str, float]

    @property
    def task(self) -> str:
        """Its task's name."""
        return self.config.task.name

    def score(self, metric: str | None = None) -> tuple[str, float] | None:
        """Name and value of the metric; without it of the one the run was judged by.

        An exam's scores have their own names, of which the first decides. None if there is none.
        """
        wanted = [metric, self.config.best_by, *self.scores]
        name = next((name for name in wanted if name in self.scores), None)
        return None if name is None else (name, self.scores[name])

    def series(self, field: str) -> tuple[list[int], list[float]]:
        """Steps and values of a field of the training records; gaps (null) are left out."""
        return training_series(self.records, field)

    def last(self, kind: str) -> Mapping[str, Any] | None:
        """Its last record of a kind."""
        return next((r for r in reversed(self.records) if r["kind"] == kind), None)


def gather(roots: Iterable[Path]) -> list[Gathered]:
    """All runs in and below some folders, in the order of their names.

    Raises:
        UserError: no run there, or a folder that cannot be read.
    """
    roots = [Path(root) for root in roots]
    found = sorted({path.parent for root in roots for path in root.rglob(RUN)})
    if not found:
        raise UserError(f"no run in {', '.join(map(str, roots))}: give folders that have a {RUN}")
    return [_read(folder) for folder in found if (folder / FILE_NAME).is_file()]


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
    """Runs by their method: those that differ in no more than seed, task and `apart` are together.

    A label has the method's name and, where methods occur in several forms, what tells them apart.

    Args:
        apart: fields of the adapter that a picture has on its axes.
    """
    groups: dict[str, tuple[dict[str, Any], list[Gathered]]] = {}
    for run in runs:
        own = _traits(run.config, {*apart, *FOLLOWS})
        groups.setdefault(json.dumps(own, sort_keys=True), (own, []))[1].append(run)
    forms = [own for own, _ in groups.values()]
    return {_label(own, forms): members for own, members in groups.values()}


def _traits(config: RunConfig, left_out: set[str]) -> dict[str, Any]:
    """What tells the method of a config from others, sizes as they are, not as they are spelt."""
    adapter, spec = config.adapter, config.adapter.spec()
    given = {key: value for key, value in flatten(adapter).items() if value not in (None, [], {})}
    defaults = given.pop("defaults", {})
    given = {n: value for n, value in defaults.items() if spec.has_option(n)} | given
    given |= given.pop("options", {})
    sizes = ("total_rank", "num_experts", "top_k")
    given |= {name: getattr(spec, name) for name in sizes}
    return {name: value for name, value in given.items() if name not in left_out}


def _label(own: Mapping[str, Any], forms: Sequence[Mapping[str, Any]]) -> str:
    method = own.get("method")
    alike = [form for form in forms if form.get("method") == method]
    names = sorted({name for form in alike for name in form} - {*_WORDS})
    names = [*_WORDS, *names]
    telling = [n for n in names if len({json.dumps(form.get(n)) for form in alike}) > 1]
    parts = [f"{_WORDS.get(name, name)} {own[name]}" for name in telling if name in own]
    return ", ".join([method, *parts] if method else parts) or "all"


_WORDS = {"total_rank": "rank", "num_experts": "experts", "top_k": "top"}
