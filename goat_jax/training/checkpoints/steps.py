"""The steps of a run that have checkpoints, and the best of them; needs no Orbax, which is slow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from goat_jax.data.metrics import goodness

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in a run folder, each named by its step."""


def best_of(scores: Mapping[int, float], metric: str) -> int | None:
    """The step with the best score: the first of equals, never one that is not finite.

    Args:
        scores: step -> its value of the metric.

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
    """The steps that a folder has complete checkpoints of, damaged or not, the newest first."""
    names = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def listed(damaged: Mapping[int, str]) -> str:
    """Damaged steps with the reasons, for a message."""
    return ", ".join(f"step {step}: {reason}" for step, reason in damaged.items())
