"""Statistics of the study: paired differences, Holm's correction, ranks and shares of a gap."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from scipy.special import stdtr, stdtrit

from goat_jax.data.metrics import goodness
from goat_jax.training.vmapped_runs import RunResult

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with the half width of its confidence interval.

    Attributes:
        mean: the mean.
        half: half of the interval's width; infinite for a single value.
        chance: the probability of a mean at least as far from 0 if the true mean is 0.
    """

    mean: float
    half: float
    chance: float


def interval(values: Sequence[float]) -> Interval:
    """Returns the mean and its interval by Student's t, for values of independent seeds.

    >>> found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    >>> found.mean, round(found.half, 4)  # 2.7764 * 1.5811 / sqrt(5)
    (3.0, 1.9632)
    >>> round(found.chance, 4)  # of 3 / 0.7071 with 4 degrees of freedom
    0.0132
    """
    count = len(values)
    mean = statistics.fmean(values)
    if count < 2:
        return Interval(mean, float("inf"), 1.0)
    error = statistics.stdev(values) / count**0.5
    half = float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * error
    if not error:
        return Interval(mean, half, float(mean == 0))
    return Interval(mean, half, 2 * float(stdtr(count - 1, -abs(mean) / error)))


def apart_from_0(found: Mapping[str, Interval]) -> set[str]:
    """Returns the names whose means differ from 0, with Holm's correction for their number.

    >>> one, other = (Interval(1.0, 0.9, chance) for chance in (0.03, 0.02))
    >>> sorted(apart_from_0({"a": one})), sorted(apart_from_0({"a": one, "b": other}))
    (['a'], ['a', 'b'])
    >>> sorted(apart_from_0({"a": one, "b": one, "c": one}))
    []
    """
    apart: set[str] = set()
    for name in sorted(found, key=lambda name: found[name].chance):
        if found[name].chance * (len(found) - len(apart)) > 1 - CONFIDENCE:
            break
        apart.add(name)
    return apart


def scores(results: Sequence[RunResult], metric: str) -> dict[int, float]:
    """Returns the scores of the runs that did not diverge, by seed."""
    return {r.variant.seed: r.after[metric] for r in results if r.diverged is None}


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """Returns the mean of one minus other over the seeds of both; None if there is no seed.

    Runs with the same seed have the same order of rows and the same start of the head, so their
    difference varies less than either score.

    >>> paired({1: 0.5, 2: 0.75, 3: 0.1}, {1: 0.25, 2: 0.5})
    Interval(mean=0.25, half=0.0, chance=0.0)
    """
    seeds = sorted(one.keys() & other.keys())
    return interval([one[seed] - other[seed] for seed in seeds]) if seeds else None


def ranks(means: Mapping[str, float], metric: str) -> dict[str, float]:
    """Returns the rank of every method, 1 for the best; equal scores share their mean rank.

    >>> ranks({"a": 0.5, "b": 0.9, "c": 0.5}, "accuracy")
    {'a': 2.5, 'b': 1.0, 'c': 2.5}
    """
    good = {method: goodness(metric, mean) for method, mean in means.items()}
    values = list(good.values())
    return {
        method: sum(other > value for other in values) + (values.count(value) + 1) / 2
        for method, value in good.items()
    }


def gap_closed(mean: float, frozen: float, full: float) -> float:
    """Returns the share of the way from the frozen base to full fine-tuning.

    >>> round(gap_closed(0.8, frozen=0.5, full=0.9), 3)
    0.75
    """
    return (mean - frozen) / (full - frozen)
