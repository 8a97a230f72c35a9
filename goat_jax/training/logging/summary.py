"""`Summary`: what a run came to, as an object and as a table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from goat_jax.text_tables import html_table, render_table
from goat_jax.training.setup import TrainSetup

HEADERS = ("held out", "before", "after")


@dataclasses.dataclass(frozen=True, repr=False)
class Summary:
    """Result of `fit` or `begin`; printed as a table of the scores.

    Attributes:
        folder: the run folder.
        step: the number of optimizer steps done.
        stopped: why the run ended: "finished", "no better METRIC for N evaluations", the name of
            the signal that stopped it, or "imported" for a run made by `begin`.
        before: the scores at step 0.
        after: the scores of the last evaluation after step 0, empty if there was none; the scores
            of step 0 for a run made by `begin`.
        best_step: the step of the best checkpoint on disk; None if no checkpoint has a score.
        best_score: the best checkpoint's score; None if no checkpoint has one.
        notes: one-line remarks about the rows, the run's length and the pretrained checkpoint.
        setup: the run's model, jitted steps and reports.
    """

    folder: Path
    step: int
    stopped: str
    before: dict[str, float] | None
    after: dict[str, float]
    best_step: int | None
    best_score: float | None
    notes: tuple[str, ...]
    setup: TrainSetup

    def __repr__(self) -> str:
        return f"{self.table()}\n\n{self._end()}"

    def _repr_html_(self) -> str:
        """Returns the table in HTML, which a notebook shows."""
        return html_table(HEADERS, self._rows()) + self._end()

    def table(self) -> str:
        """Returns the scores before and after as a table."""
        return render_table(HEADERS, self._rows())

    @property
    def best(self) -> str:
        """The best checkpoint in words."""
        if self.best_step is None:
            return "no checkpoint has a score yet"
        return f"best step {self.best_step} ({self.best_score:.4f})"

    def _rows(self) -> list[list[str]]:
        before = self.before or {}
        names = dict.fromkeys([*before, *self.after])
        return [[name, _number(before.get(name)), _number(self.after.get(name))] for name in names]

    def _end(self) -> str:
        return f"{self.stopped} at step {self.step}; {self.best}; in {self.folder}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
