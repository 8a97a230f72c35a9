"""Markdown tables of our scores beside the published ones."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from goat_jax.text_tables import render_table
from reproduction.published_scores import AVERAGE, Scores

Found = Mapping[str, Mapping[str, Sequence[float]]]
"""Row -> score's name -> our score with each seed."""


def render(
    paper: Scores,
    found: Found,
    columns: Mapping[str, Sequence[str]],
    rows: Sequence[str],
    average: bool = True,
) -> str:
    """Returns a Markdown table: mean and spread of our scores over the seeds, and in brackets the
    published score and the difference. A dash marks a score that is missing.

    Args:
        paper: row -> column -> published score.
        found: row -> score -> our score with each seed.
        columns: column -> the scores whose mean it shows.
        rows: the rows.
        average: whether the mean over several columns is shown as well.

    >>> found = {"lora": {"rte": [84.5]}}
    >>> print(render({"lora": {"rte": 84.0}}, found, {"rte": ["rte"]}, ["lora", "goat"]))
    | method | rte                  |
    | :----- | :------------------- |
    | lora   | 84.50 (84.00, +0.50) |
    | goat   | -                    |
    """
    average = average and len(columns) > 1
    lines = []
    for row in rows:
        own = [_mean_of([found.get(row, {}).get(name, ()) for name in columns[c]]) for c in columns]
        published = [paper.get(row, {}).get(column) for column in columns]
        line = [row, *map(_cell, own, published)]
        if average:
            known = [score for score in published if score is not None]
            printed = statistics.mean(known) if len(known) == len(own) else None
            line.append(_cell(_mean_of(own), paper.get(row, {}).get(AVERAGE, printed)))
        lines.append(line)
    head = ["method", *columns, *([AVERAGE] if average else [])]
    return render_table(head, lines, markdown=True)


def _mean_of(scores: Sequence[Sequence[float]]) -> Sequence[float]:
    """Returns the mean of several scores' means, one score unchanged, nothing if one is missing."""
    if len(scores) == 1 or not all(scores):
        return scores[0] if len(scores) == 1 else []
    return [statistics.mean(map(statistics.mean, scores))]


def _cell(scores: Sequence[float], published: float | None) -> str:
    if not scores:
        return "-" if published is None else f"- ({published:.2f})"
    mean = statistics.mean(scores)
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    beside = "" if published is None else f" ({published:.2f}, {mean - published:+.2f})"
    return f"{mean:.2f}{spread}{beside}"
