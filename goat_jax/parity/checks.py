"""One comparison (`Check`), the tolerances, and how errors are measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

GIVEN, OWN = "given", "own"
"""Starts: the bundle's factors; our own initialisation from the pretrained weight."""


def of_largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max|a - b| / max|b|; max|a - b| where b is all zeros. NaN anywhere gives NaN.

    >>> of_largest(np.array([1.0, 4.1]), np.array([1.0, 4.0]))
    0.024999999999999911
    """
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    largest = np.abs(theirs).max(initial=0.0)
    return float(np.abs(ours - theirs).max(initial=0.0) / (largest or 1.0))


def of_each(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max(|a - b| / |b|) entry by entry; |a - b| where b is zero. NaN anywhere gives NaN."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    size = np.where(theirs == 0, 1.0, np.abs(theirs))
    return float((np.abs(ours - theirs) / size).max(initial=0.0))


def absolute(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max|a - b|."""
    return float(np.abs(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)).max())


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How near a quantity has to be.

    Attributes:
        limit: the largest error allowed.
        measure: how the error is measured.
        svd: in our own start, so many times `align.svd_noise` is added to the limit.
    """

    limit: float
    measure: Callable[[np.ndarray, np.ndarray], float] = of_largest
    svd: float = 0.0


LAYER: Mapping[str, Tolerance] = {
    "scale": Tolerance(1e-6, of_each),
    "W_res": Tolerance(1e-5),
    "init A": Tolerance(1e-5),
    "init B": Tolerance(1e-5),
    "y": Tolerance(1e-5),
    "aux": Tolerance(1e-5),
    "loss": Tolerance(1e-5),
    "grad_x": Tolerance(1e-5),
    "grad_A": Tolerance(1e-5),
    "grad_B": Tolerance(1e-5),
    "grad_router": Tolerance(1e-5),
    "adamw_losses": Tolerance(1e-4),
    "y_final": Tolerance(1e-4),
}
MODEL: Mapping[str, Tolerance] = {
    "trained parameters": Tolerance(0.0, absolute),
    "lr": Tolerance(1e-6),
    "scale": Tolerance(1e-6, of_each),
    "W_res": Tolerance(1e-5, svd=0.5),
    "init A": Tolerance(1e-5, svd=10.0),
    "init B": Tolerance(1e-5, svd=10.0),
    "logits_first": Tolerance(1e-4, absolute),
    "task_loss": Tolerance(1e-4, of_each),
    "aux_loss": Tolerance(1e-4, of_each),
    "loss": Tolerance(1e-4, of_each),
    "grad_norm": Tolerance(5e-4, of_each),
    "logits_after": Tolerance(1e-3, absolute),
    "loss_after": Tolerance(1e-4, of_each),
    "final A": Tolerance(1e-3),
    "final B": Tolerance(1e-3),
    "final router": Tolerance(1e-3),
    "final BA": Tolerance(1e-3),
    "final head": Tolerance(1e-3),
}


@dataclasses.dataclass(frozen=True)
class Check:
    """One quantity of one case, compared.

    Attributes:
        bundle: the folder.
        case: layer case or model run.
        start: `GIVEN` or `OWN`.
        quantity: what was compared.
        error, tolerance: measured and allowed; an error that is not a number is never ok.
        where: where the error is largest, if that says anything.
    """

    bundle: str
    case: str
    start: str
    quantity: str
    error: float
    tolerance: float
    where: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance."""
        return bool(self.error <= self.tolerance)


def compare(
    table: Mapping[str, Tolerance],
    label: tuple[str, str, str],
    quantity: str,
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    svd_noise: float = 0.0,
    where: str = "",
) -> Check:
    """Compares one quantity.

    Args:
        table: `LAYER` or `MODEL`.
        label: bundle, case and start.
        quantity: key of the table.
        ours, theirs: arrays of one shape.
        svd_noise: see `Tolerance.svd`; 0 where the start was given.
        where: of `Check`.
    """
    tolerance = table[quantity]
    error = tolerance.measure(ours, theirs)
    extra = tolerance.svd * svd_noise if tolerance.svd else 0.0
    return Check(*label, quantity, error, tolerance.limit + extra, where)


def worst(checks: Sequence[Check]) -> Check:
    """The check that is furthest over its tolerance, or nearest to it."""
    return max(checks, key=lambda check: (not check.ok, check.error / check.tolerance))
