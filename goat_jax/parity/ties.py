"""Handles tokens that are tied between two experts, so that rounding decides the rest of a run.

If a router's k-th and next logits differ only in their last bit, any correct float32 program may
choose either expert. From then on there are two different runs, both correct. To distinguish this
from an error, the run is repeated from routers perturbed by one rounding. If that changes the
choice, and the other run agrees with PyTorch in every number within the same tolerances, then the
choice was the only difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

import numpy as np

from goat_jax.interop.modules import ModuleStart
from goat_jax.parity.align import agreeing_steps
from goat_jax.parity.checks import Check, Comparison, Note

ATTEMPTS = 8
"""Number of perturbed runs; a single tie goes the other way in about half of them."""

Rows = list[Check | Note]


class Outcome(Protocol):
    """Results of a run with loads: the share of tokens at every expert, (steps, ...)."""

    @property
    def loads(self) -> np.ndarray: ...


T = TypeVar("T", bound=Outcome)


def settle_ties(
    train: Callable[[Mapping[str, ModuleStart]], T],
    starts: Mapping[str, ModuleStart],
    judge: Callable[[T], Iterable[Check | Note]],
    compare: Comparison,
) -> tuple[T, Rows]:
    """Trains from the given adapters; if a check fails, also from perturbed routers.

    Args:
        train: function from initial adapters by module to the outcome of a run.
        starts: the initial adapters by module.
        judge: the function that compares an outcome with the expected results.
        compare: the comparison that makes the note about a tie.

    Returns:
        The first outcome that agrees with PyTorch and its checks, or those of the unperturbed run
        if none agrees.
    """
    outcome = train(starts)
    rows = list(judge(outcome))
    if _agrees(rows):
        return outcome, rows
    for attempt in range(ATTEMPTS):
        other = train(moved(starts, attempt))
        step = agreeing_steps(other.loads, outcome.loads)
        if step == len(outcome.loads):
            continue  # the same choices, so the same run
        checks = list(judge(other))
        if _agrees(checks):
            text = (
                f"{compare.start} start: at step {step} a token is tied between experts, which "
                "routers moved by one rounding show; compared is the run that chooses as PyTorch"
            )
            return other, [*checks, compare.note(text)]
    return outcome, rows


def _agrees(rows: Rows) -> bool:
    return all(row.ok for row in rows if isinstance(row, Check))


def moved(starts: Mapping[str, ModuleStart], seed: int) -> dict[str, ModuleStart]:
    """Perturbs every number of the routers to the next float32 up or down, at random.

    >>> router = np.ones((2, 2), np.float32)
    >>> start = ModuleStart(np.ones((2, 2)), {"router": router}, np.ones(2))
    >>> other = moved({"layer": start}, 0)["layer"].factors["router"]
    >>> bool((other != router).all()), bool(np.allclose(other, router, rtol=1.2e-7))
    (True, True)
    """
    rng = np.random.default_rng(seed)
    perturbed = {}
    for name, start in starts.items():
        router = start.factors["router"]
        ends = np.where(rng.random(router.shape) < 0.5, -np.inf, np.inf).astype(router.dtype)
        factors = {**start.factors, "router": np.nextafter(router, ends)}
        perturbed[name] = start._replace(factors=factors)
    return perturbed
