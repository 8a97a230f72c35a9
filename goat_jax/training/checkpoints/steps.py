"""Steps of a run that have checkpoints, and the best of them, without importing Orbax (slow)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from goat_jax.data.metrics import goodness

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints inside a run folder; each checkpoint is named by its step."""


def best_of(scores: Mapping[int, float], metric: str) -> int | None:
    """Returns the step with the best finite score, the first of equals; None if there is none.

    Args:
        scores: step -> its value of the metric.
        metric: the metric's name, which says whether higher is better.

    >>> best_of({5: 0.5, 10: 0.9, 15: 0.9, 20: float("nan")}, "accuracy")
    10
    >>> best_of({5: 3.0, 10: 2.0}, "perplexity"), best_of({}, "accuracy")
    (10, None)
    """
    finite = [
        (goodness(metric, score), -step) for step, score in scores.items() if math.isfinite(score)
    ]
    return -max(finite)[1] if finite else None


def steps_in(root: Path) -> list[int]:
    """Returns the steps of a folder's complete checkpoints, damaged or not, the newest first."""
    names = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def listed(damaged: Mapping[int, str]) -> str:
    """Formats damaged steps with their reasons for a message."""
    return ", ".join(f"step {step}: {reason}" for step, reason in damaged.items())
