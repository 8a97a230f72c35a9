"""Comparison of one quantity (`Check`), the error measures, and all tolerances."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from goat_jax.errors import UserError

GIVEN, OWN = "given", "own"
"""Names of the two initializations: the bundle's factors, and ours from the pretrained weight."""


def of_largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Computes ``max|a - b| / max|b|``; ``max|a - b|`` if b is all zeros. Any NaN gives NaN.

    >>> of_largest(np.array([1.0, 4.5]), np.array([1.0, 4.0]))
    0.125
    """
    ours, theirs = _wide(ours), _wide(theirs)
    largest = np.abs(theirs).max(initial=0.0)
    return float(np.abs(ours - theirs).max(initial=0.0) / (largest or 1.0))


def of_each(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Computes ``max(|a - b| / |b|)`` over entries; ``|a - b|`` where b is 0. Any NaN gives NaN."""
    ours, theirs = _wide(ours), _wide(theirs)
    size = np.where(theirs == 0, 1.0, np.abs(theirs))
    return float((np.abs(ours - theirs) / size).max(initial=0.0))


def of_norm(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Computes ``|a - b| / |b|`` in the 2-norm; ``|a - b|`` if b is zero. Any NaN gives NaN."""
    ours, theirs = _wide(ours), _wide(theirs)
    return float(np.linalg.norm(ours - theirs) / (np.linalg.norm(theirs) or 1.0))


def absolute(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Computes ``max|a - b|``. Any NaN gives NaN."""
    return float(np.abs(_wide(ours) - _wide(theirs)).max(initial=0.0))


def _wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64)


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Tolerance of one quantity.

    Attributes:
        limit: the largest allowed error.
        measure: the error measure, (ours, theirs) -> error.
        svd: the multiple of `align.svd_noise` that is added to the limit from our initialization.
        own: the limit from our initialization, None if it is `limit`.
    """

    limit: float
    measure: Callable[[np.ndarray, np.ndarray], float] = of_largest
    svd: float = 0.0
    own: float | None = None


# From the given factors, errors may not exceed float32 rounding.
#
# From our initialization, two float32 SVDs are compared, PyTorch's and ours. Their singular vectors
# differ by a few times svd_noise = eps * s_1 / gap (measured: up to 5.2 times in 720
# initializations of random kernels). So do the factors and their gradients, which are linear in one
# of them: 10 times is allowed. In the residual, the output and the loss, only the part of a vector
# outside of the experts' segment matters, damped by rho and by E (measured: up to 0.07 times):
# 0.5 times is allowed.
#
# Adam divides a gradient by its magnitude. The sign of a nearly zero gradient is decided by
# rounding, but it still makes a full step. This does not change losses (the gradient is nearly
# zero), but it changes single outputs: from our initialization, where gradients differ by 1e-5
# instead of 1e-7, y_final was off by up to 8e-3 in 175 random cases that were otherwise correct,
# and by 0.3 and more with a wrong scale or segment.
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
"""Quantity of layer cases -> its tolerance."""

_TRAINED = (
    *("A", "B", "router", "threshold_w", "threshold_b", "c", "task_embedding", "gate"),
    *("magnitude", "q", "lam", "encoders", "decoders", "coef"),
)
_AT_START = ("y", "aux", "loss", "grad_x", *(f"grad_{name}" for name in _TRAINED))

# Quantities from an SVD: the published code's float32 SVD is up to 1.6e-5 away from a float64 one,
# and so are initial values, change rates and the gradients of coefficients along its directions.
# Trained tensors have a larger tolerance, because Adam amplifies nearly zero gradients.
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
    # The moments of "full" are in bfloat16.
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
"""Quantity of the cases of other methods -> its tolerance."""

# Tolerances that the format does not set: lr is float32 here and float64 in PyTorch. Trained
# tensors are measured by their norm, so that the sign of one nearly zero gradient does not dominate
# the error. Measured in eight runs: at most 1.4e-5 in logits_after, 1.8e-5 in the tensors, 8e-5
# from our initialization (whose factors are 5e-5 off before the first step).
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
"""Quantity of model runs -> its tolerance."""


@dataclasses.dataclass(frozen=True)
class Check:
    """The comparison of one quantity of one case.

    Attributes:
        bundle: the bundle's folder.
        case: the name of the layer case or model run.
        start: the initialization, `GIVEN` or `OWN`.
        quantity: the name of the quantity.
        error: the measured error; NaN is never within the tolerance.
        tolerance: the largest allowed error.
        where: the module with the largest error, if there are several.
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
        """True if the error is within the tolerance."""
        return bool(self.error <= self.tolerance)


@dataclasses.dataclass(frozen=True)
class Note:
    """A remark on a case for the reader, such as what was not compared, and why.

    Attributes:
        bundle: the bundle's folder.
        case: the name of the layer case or model run.
        text: the remark.
    """

    bundle: str
    case: str
    text: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Makes the checks of one case from one initialization.

    Attributes:
        table: quantity -> its tolerance.
        bundle: the bundle's folder.
        case: the name of the layer case or model run.
        start: the initialization, `GIVEN` or `OWN`.
        svd_noise: the `align.svd_noise` of the kernel.

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
        """Compares two arrays of one quantity.

        Args:
            quantity: the name of the quantity, a key of `table`.
            ours: our array.
            theirs: PyTorch's array.
            where: the name of the module, if the case has several.

        Raises:
            UserError: their shapes differ.
        """
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
        """Makes a note on the case."""
        return Note(self.bundle, self.case, text)

    def with_noise(self, svd_noise: float) -> Comparison:
        """Returns a copy with another `align.svd_noise`."""
        return dataclasses.replace(self, svd_noise=svd_noise)


def worst(checks: Sequence[Check]) -> Check:
    """Returns the check with the largest ratio of error to tolerance; a failed one comes first.

    >>> checks = [Check("", "", "", "y", error, 1.0) for error in (0.5, float("nan"), 0.7)]
    >>> worst(checks).error
    nan
    """
    return max(checks, key=lambda one: (not one.ok, one.error / (one.tolerance or 1.0)))
