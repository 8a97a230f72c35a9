"""Results of compared runs: saved to disk as they come, ranked and formatted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from goat_jax.analysis.result_files import Key
from goat_jax.config.run import RunConfig
from goat_jax.data.metrics import goodness
from goat_jax.errors import UserError
from goat_jax.files import read_json, write_whole
from goat_jax.training.vmapped_runs import RunResult, RunVariant, train_vmapped, with_variant
from goat_jax.validation.checks import check_number

LONGEST_NAME = 120
"""Most bytes of a file name made from a label.

File systems allow 255 bytes, and suffixes need some of them.
"""


@dataclasses.dataclass(frozen=True)
class Runs:
    """A config at several seeds and learning rates, with the file that stores their results.

    Attributes:
        config: the config that the runs share.
        variants: the seed and learning rate of each run.
        path: the file with the runs' results.
    """

    config: RunConfig
    variants: Sequence[RunVariant]
    path: Path

    def kept(self) -> dict[RunVariant, RunResult]:
        """Reads the results in the file; empty if there is no file.

        Raises:
            UserError: the file belongs to other settings or does not hold results.
        """
        if not self.path.is_file():
            return {}
        saved = read_json(self.path)
        try:
            changed = Key.of(self.config).changed(saved.get("key") or {})
            results = [] if changed else [result_of(run) for run in saved["runs"]]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(
                f"{self.path} does not hold runs: delete it or give another --out"
            ) from None
        if changed:
            names = ", ".join(name.removeprefix("config ") for name in changed[:3])
            raise UserError(
                f"{self.path} holds runs of another config ({names}): give another --out"
            )
        return {result.variant: result for result in results}

    def missing(self) -> list[RunVariant]:
        """Returns the variants whose results the file lacks."""
        kept = self.kept()
        return [variant for variant in self.variants if variant not in kept]

    def keep(self, results: Mapping[RunVariant, RunResult]) -> None:
        """Writes results to the file, replacing its content."""
        runs = [dataclasses.asdict(each) for each in results.values()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        key = dataclasses.asdict(Key.of(self.config))
        text = json.dumps({"key": key, "runs": runs}, allow_nan=False)
        write_whole(self.path, text + "\n")


def read_results(path: Path) -> list[RunResult]:
    """Reads the results of a file of `Runs`, whatever their settings."""
    return [result_of(run) for run in read_json(path)["runs"]]


def result_of(saved: Mapping[str, Any]) -> RunResult:
    """Makes a result from its fields as JSON has them."""
    parsed = {"variant": RunVariant(**saved["variant"]), "losses": tuple(saved["losses"])}
    return RunResult(**{**saved, **parsed})


def complete_runs(
    entries: Sequence[Runs], runs_per_step: int
) -> Iterator[tuple[Runs, list[RunResult]]]:
    """Trains the runs whose results the files lack; yields each entry once it is complete.

    Args:
        entries: the configs with their variants and files.
        runs_per_step: the largest number of runs per compiled step.

    Yields:
        An entry of `entries`, and its results in the order of its variants.
    """
    # All files are read before any run is trained, since one may belong to other settings.
    kept = [runs.kept() for runs in entries]
    missing = [
        (number, variant)
        for number, runs in enumerate(entries)
        for variant in runs.variants
        if variant not in kept[number]
    ]
    configs = [with_variant(entries[number].config, variant) for number, variant in missing]
    trained = zip(missing, train_vmapped(configs, runs_per_step), strict=True)
    for number, runs in enumerate(entries):
        while not kept[number].keys() >= set(runs.variants):
            (entry, variant), result = next(trained)
            kept[entry][variant] = result
            entries[entry].keep(kept[entry])
        yield runs, [kept[number][variant] for variant in runs.variants]


def finite(group: Sequence[RunResult]) -> list[RunResult]:
    """Returns the results of the runs that did not diverge."""
    return [result for result in group if result.diverged is None]


def standing(group: Sequence[RunResult], metric: str) -> tuple[int, float]:
    """Returns a sort key that is higher for better groups: by the mean score of the finite runs.

    A group with more diverged runs is below every group with fewer of them.

    >>> first = RunResult(RunVariant(0, 0.1), (), {"accuracy": 0.5}, 1, 0.1, 1.0, 1)
    >>> second = dataclasses.replace(first, after={}, diverged=3)
    >>> standing([first], "accuracy") > standing([first, second], "accuracy")
    True
    """
    left = finite(group)
    mean = statistics.fmean(goodness(metric, o.after[metric]) for o in left) if left else 0.0
    return len(left) - len(group), mean


def score_in_words(group: Sequence[RunResult], name: str) -> str:
    """Formats a score's mean and spread over a group's finite runs, with the number diverged."""
    left, count = finite(group), len(group)
    if not left:
        return "diverged"
    note = f" ({count - len(left)} of {count} diverged)" if len(left) < count else ""
    return mean_and_spread([result.after[name] for result in left]) + note


def mean_and_spread(values: Sequence[float]) -> str:
    """Formats the mean, with the sample standard deviation if there is more than one value.

    >>> mean_and_spread([0.5, 0.7])
    '0.6000 ± 0.1414'
    """
    mean = statistics.fmean(values)
    return f"{mean:.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def check_all_different(flag: str, values: Sequence[float], **limits: Any) -> None:
    """Checks that the numbers of a list are within limits and all different.

    Args:
        flag: the command-line flag, named in the error message.
        values: the numbers.
        limits: the limits, as for `check_number`.

    Raises:
        UserError: a number that occurs twice or is out of the limits.

    >>> check_all_different("--seeds", [0, 1, 0])
    Traceback (most recent call last):
    goat_jax.errors.UserError: --seeds 0 1 0: 0 is given twice
    """
    for value in values:
        check_number(flag, value, **limits)
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise UserError(f"{flag} {' '.join(map(str, values))}: {twice[0]} is given twice")


def file_name(label: str) -> str:
    """Converts a label to a part of a file name of at most `LONGEST_NAME` bytes.

    Labels that had to be shortened or that have unusual characters get a digest, so that
    different labels rarely have the same name.

    >>> file_name("goat:rho=5"), file_name("a/b")
    ('goat-rho-5', 'a-b-c14cddc0')
    """
    name = "".join(c if c.isalnum() or c in "_-." else "-" for c in label)
    plain = all(c.isalnum() or c in "_-.:=, " for c in label)
    if plain and len(name.encode()) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(label.encode()).hexdigest()[:8]
    return f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}-{digest}"
