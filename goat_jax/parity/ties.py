"""A token that sits between two experts goes to one of them by rounding, and a run with it.

Where a router's k-th and next logits differ in their last bit only, any correct float32 program may
choose either expert; from then on there are two runs, both right. To tell this from an error, the
run is made again from routers moved by one rounding: if that changes the choice, and the other run
agrees with PyTorch in every number and within the same tolerances, then the choice was all that was
different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from goat_jax.interop.modules import Start
from goat_jax.parity.align import agreeing_steps
from goat_jax.parity.checks import Check, Comparison, Note
from goat_jax.parity.training import Outcome, Trainer

ATTEMPTS = 8
"""How often the routers are moved; a single tie goes the other way in about every second run."""

Rows = list[Check | Note]


def settle_ties(
    trainer: Trainer,
    starts: Mapping[str, Start],
    judge: Callable[[Outcome], Iterable[Check | Note]],
    compare: Comparison,
) -> tuple[Outcome, Rows]:
    """Trains from the starts; where that fails, from ones a rounding away that choose otherwise.

    Args:
        trainer: of the run.
        starts: adapters by module.
        judge: compares an outcome with what is expected.
        compare: makes the note that a tie was met.

    Returns:
        the first outcome that agrees and its rows, or those of the starts as they are.
    """
    outcome = trainer.train(starts)
    rows = list(judge(outcome))
    if _agrees(rows):
        return outcome, rows
    for attempt in range(ATTEMPTS):
        other = trainer.train(moved(starts, attempt))
        step = agreeing_steps(other.loads, outcome.loads)
        if step == len(outcome.loads):
            continue  # the same choices, so the same run
        found = list(judge(other))
        if _agrees(found):
            text = (
                f"{compare.start} start: at step {step} a token is tied between experts, which "
                "routers moved by one rounding show; compared is the run that chooses as PyTorch"
            )
            return other, [*found, compare.note(text)]
    return outcome, rows


def _agrees(rows: Rows) -> bool:
    return all(row.ok for row in rows if isinstance(row, Check))


def moved(starts: Mapping[str, Start], seed: int) -> dict[str, Start]:
    """The same starts with every number of the routers one float32 up or down, at random.

    >>> router = np.ones((2, 2), np.float32)
    >>> start = Start(np.ones((2, 2)), {"router": router}, np.ones(2))
    >>> other = moved({"layer": start}, 0)["layer"].factors["router"]
    >>> bool((other != router).all()), bool(np.allclose(other, router, rtol=1.2e-7))
    (True, True)
    """
    rng = np.random.default_rng(seed)
    found = {}
    for name, start in starts.items():
        router = start.factors["router"]
        ends = np.where(rng.random(router.shape) < 0.5, -np.inf, np.inf).astype(router.dtype)
        factors = {**start.factors, "router": np.nextafter(router, ends)}
        found[name] = start._replace(factors=factors)
    return found
