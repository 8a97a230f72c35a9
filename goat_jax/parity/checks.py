"""One comparison (`Check`), how errors are measured, and every tolerance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from goat_jax.errors import UserError

GIVEN, OWN = "given", "own"
"""The two starts: the bundle's factors; our own initialisation of the pretrained weight."""


def of_largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """``max|a - b| / max|b|``; ``max|a - b|`` where b is all zeros. NaN anywhere gives NaN.

    >>> of_largest(np.array([1.0, 4.5]), np.array([1.0, 4.0]))
    0.125
    """
    ours, theirs = _wide(ours), _wide(theirs)
    largest = np.abs(theirs).max(initial=0.0)
    return float(np.abs(ours - theirs).max(initial=0.0) / (largest or 1.0))


def of_each(ours: np.ndarray, theirs: np.ndarray) -> float:
    """``max(|a - b| / |b|)`` entry by entry; ``|a - b|`` where b is zero. NaN gives NaN."""
    ours, theirs = _wide(ours), _wide(theirs)
    size = np.where(theirs == 0, 1.0, np.abs(theirs))
    return float((np.abs(ours - theirs) / size).max(initial=0.0))


def of_norm(ours: np.ndarray, theirs: np.ndarray) -> float:
    """``|a - b| / |b|`` in the Euclidean norm; ``|a - b|`` where b is all zeros. NaN gives NaN."""
    ours, theirs = _wide(ours), _wide(theirs)
    return float(np.linalg.norm(ours - theirs) / (np.linalg.norm(theirs) or 1.0))


def absolute(ours: np.ndarray, theirs: np.ndarray) -> float:
    """``max|a - b|``. NaN anywhere gives NaN."""
    return float(np.abs(_wide(ours) - _wide(theirs)).max(initial=0.0))


def _wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64)


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How near a quantity has to be.

    Attributes:
        limit: the largest error allowed.
        measure: how the error is measured.
        svd: from our own start, so many times `align.svd_noise` is added to the limit.
        own: the limit from our own start, where it is another one.
    """

    limit: float
    measure: Callable[[np.ndarray, np.ndarray], float] = of_largest
    svd: float = 0.0
    own: float | None = None


# From the given factors, everything is held to float32 rounding.
#
# From our own start two float32 SVDs meet, torch's and ours. Their singular vectors differ by a few
# times svd_noise = eps * s_1 / gap (measured: up to 5.2 times in 720 starts of random kernels), and
# so do the factors and what is linear in one of them, their gradients: 10 times is allowed. In the
# residual, the output and the loss only the part of a vector that leaves the experts' segment
# counts, damped by rho and by E (measured: up to 0.07 times): 0.5 times is allowed.
#
# Adam divides a gradient by its own size, so where that is nearly zero, its sign, a matter of
# rounding, makes a whole step. Losses do not feel it (the gradient is nearly zero), single outputs
# do: from our own start, where gradients differ by 1e-5 and not 1e-7, y_final was off by up to 8e-3
# in 175 random cases that were otherwise right, and by 0.3 and more with a wrong scale or segment.
LAYER: Mapping[str, Tolerance] = {
    "scale": Tolerance(1e-6, of_each),
    "W_res": Tolerance(1e-5, svd=0.5),
    "init A": Tolerance(1e-5, svd=10.0),
    "init B": Tolerance(1e-5, svd=10.0),
    "y": Tolerance(1e-5, svd=0.5),
    "aux": Tolerance(1e-5),
    "loss": Tolerance(1e-5, svd=0.5),
    "grad_x": Tolerance(1e-5, svd=0.5),
    "grad_A": Tolerance(1e-5, svd=10.0),
    "grad_B": Tolerance(1e-5, svd=10.0),
    "grad_router": Tolerance(1e-5, svd=10.0),
    "adamw_losses": Tolerance(1e-4, svd=5.0),
    "y_final": Tolerance(1e-4, own=2e-2),
}
"""Tolerances of layer cases by quantity."""

_TRAINED = (
    *("A", "B", "router", "threshold_w", "threshold_b", "c", "task_embedding", "gate"),
    *("magnitude", "q", "lam", "encoders", "decoders", "coef"),
)
_AT_START = ("y", "aux", "loss", "grad_x", *(f"grad_{name}" for name in _TRAINED))

# From an SVD: the published code's own float32 one is up to 1.6e-5 away from a float64 one, and so
# are starts, change rates and the gradients of coefficients along its directions. Trained tensors:
# Adam makes much of nearly zero gradients.
METHOD: Mapping[str, Tolerance] = {
    "scale": Tolerance(1e-6, of_each),
    **{name: Tolerance(1e-5) for name in _AT_START},
    **{f"{name}_{phase}": Tolerance(1e-5) for name in _AT_START for phase in ("switch", "p2")},
    **{f"grad_coef_{phase}": Tolerance(5e-5) for phase in ("switch", "p2")},
    **{f"{name}_final": Tolerance(1e-3) for name in _TRAINED},
    **{name: Tolerance(1e-3) for name in ("A_switch", "B_switch")},
    **{name: Tolerance(1e-4) for name in ("adamw_losses", "losses", "y_final")},
    **{name: Tolerance(5e-5) for name in ("W_res", "BA_init", "AtA_init", "BBt_init")},
    **{
        f"{prefix}_{name}": Tolerance(1e-3 if name[0] in "AB" else 1e-4)
        for prefix in ("sgd", "sgd_zero", "adamw", "full32")
        for name in ("losses", "y_final", "A_final", "B_final")
    },
    # Its moments are in bfloat16.
    **{f"full_{name}": Tolerance(1e-2) for name in ("losses", "y_final", "A_final", "B_final")},
    **{f"adj_{name}_{x}": Tolerance(1e-5) for name in "AB" for x in ("sylvester", "zero")},
    **{name: Tolerance(5e-5) for name in ("sigma", "change_rate", "directions")},
    **{name: Tolerance(0.0, absolute) for name in ("top_index", "budget", "mask_now", "kept")},
    **{name: Tolerance(1e-3) for name in ("lam_steps", "score_steps")},
    **{name: Tolerance(1e-5) for name in ("A_hat", "B_hat", "delta_W", "y_single")},
    **{name: Tolerance(1e-5) for name in ("aux_peft", "aux_reference")},
    **{
        f"grad_{form}_{name}": Tolerance(1e-5)
        for form in ("peft", "reference")
        for name in ("A", "B", "q")
    },
}
"""Tolerances of the cases of other methods by quantity."""

# What the format does not set: lr is float32 against float64. Trained tensors are measured in their
# norm, so that the sign of one nearly zero gradient is not all there is to see. Measured in
# eight runs: at most 1.4e-5 in logits_after, 1.8e-5 in the tensors, 8e-5 from our own start (whose
# factors are 5e-5 off before the first step).
MODEL: Mapping[str, Tolerance] = {
    "trained parameters": Tolerance(0.0, absolute),
    "scale": Tolerance(1e-6, of_each),
    "lr": Tolerance(1e-6),
    "W_res": Tolerance(1e-5, svd=0.5),
    "init A": Tolerance(1e-5, svd=10.0),
    "init B": Tolerance(1e-5, svd=10.0),
    "logits_first": Tolerance(1e-4, absolute),
    "loss": Tolerance(1e-4, of_each),
    "task_loss": Tolerance(1e-4, of_each),
    "aux_loss": Tolerance(1e-4, of_each),
    "grad_norm": Tolerance(5e-4, of_each),
    "logits_after": Tolerance(5e-4, absolute),
    "loss_after": Tolerance(1e-4, of_each),
    "final A": Tolerance(2e-4, of_norm, own=1e-3),
    "final B": Tolerance(2e-4, of_norm, own=1e-3),
    "final BA": Tolerance(2e-4, of_norm, own=1e-3),
    "final router": Tolerance(2e-4, of_norm, own=1e-3),
    "final head": Tolerance(2e-4, of_norm, own=1e-3),
}
"""Tolerances of model runs by quantity."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One quantity of one case, compared.

    Attributes:
        bundle: the folder.
        case: layer case or model run.
        start: `GIVEN` or `OWN`.
        quantity: what was compared.
        error, tolerance: measured and allowed; an error that is not a number is never ok.
        where: the module where the error is largest, if there are several.
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


@dataclasses.dataclass(frozen=True)
class Note:
    """Something about a case that the reader must know: what was not compared, and why."""

    bundle: str
    case: str
    text: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Makes the checks of one case from one start.

    >>> label = {"bundle": "golden", "case": "goat", "start": OWN}
    >>> one = Comparison(LAYER, **label, svd_noise=1e-5)
    >>> one.check("init A", np.array([1.0, 2.0]), np.array([1.0, 2.0001])).ok
    True
    """

    table: Mapping[str, Tolerance]
    bundle: str
    case: str
    start: str
    svd_noise: float = 0.0

    def check(self, quantity: str, ours: np.ndarray, theirs: np.ndarray, where: str = "") -> Check:
        """Compares two arrays; `UserError` if their shapes differ."""
        if np.shape(ours) != np.shape(theirs):
            raise UserError(
                f"{self.bundle}: {self.case}: {quantity} has shape {np.shape(theirs)}, the replay "
                f"gives {np.shape(ours)}"
            )
        tolerance = self.table[quantity]
        limit = tolerance.limit
        if self.start == OWN:
            limit = limit if tolerance.own is None else tolerance.own
            limit += tolerance.svd * self.svd_noise if tolerance.svd else 0.0
        error = tolerance.measure(ours, theirs)
        return Check(self.bundle, self.case, self.start, quantity, error, limit, where)

    def note(self, text: str) -> Note:
        """A note on the case."""
        return Note(self.bundle, self.case, text)

    def with_noise(self, svd_noise: float) -> Comparison:
        """The same with another `align.svd_noise`."""
        return dataclasses.replace(self, svd_noise=svd_noise)


def worst(checks: Sequence[Check]) -> Check:
    """The check that is furthest over its tolerance, or nearest to it.

    >>> checks = [Check("", "", "", "y", error, 1.0) for error in (0.5, float("nan"), 0.7)]
    >>> worst(checks).error
    nan
    """
    return max(checks, key=lambda one: (not one.ok, one.error / (one.tolerance or 1.0)))
