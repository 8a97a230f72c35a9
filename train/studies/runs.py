"""Runs of the study: which are needed, their training, and the files with their results.

A method's learning rate is chosen by runs with one seed that are scored on validation rows. Runs
with other seeds at this rate are scored on the test rows. So no test row has a part in a choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from goat_jax.analysis.run_results import Runs, complete_runs, file_name, standing
from goat_jax.cli.verbs.compare import with_parameters_of
from goat_jax.config.run import RunConfig
from goat_jax.training.vmapped_runs import RunResult, RunVariant
from studies.tasks import FROZEN, FULL, RATES, SIZE, StudyTask, on_validation

CHOOSING, TEST, EQUAL = "rates", "test", "equal"
"""Stages: choice of the rate, scores at equal rank, scores at equal trained parameters."""

CHOOSING_SEED = 0
SEEDS = (1, 2, 3, 4, 5)


@dataclasses.dataclass(frozen=True)
class Study:
    """The study's runs of one task.

    Attributes:
        name: the task's name, which is that of the folder with the results.
        task: the task.
        data: the folder of data sets.
        out: the folder of all results.
        runs_per_step: the largest number of runs in one compiled step.
        rates: the peak learning rates to choose from.
        seeds: the seeds of the runs on the test rows.
    """

    name: str
    task: StudyTask
    data: Path
    out: Path
    runs_per_step: int
    rates: Sequence[float] = RATES
    seeds: Sequence[int] = SEEDS

    def train(self, method: str, say: Callable[[str], None]) -> None:
        """Trains all runs of a method whose results are not there yet."""
        config = self.task.config(method, self.data)
        tried = self.complete(
            method,
            CHOOSING,
            on_validation(config, self.task.validation),
            [RunVariant(CHOOSING_SEED, rate) for rate in self.rates],
        )
        rate = best_rate(tried, config.best_by)
        say(f"{self.name}: {method}: learning rate {rate:g} of {len(tried)}")
        variants = [RunVariant(seed, rate) for seed in self.seeds]
        self.complete(method, TEST, config, variants)
        if not self.task.equal_parameters or method in (FROZEN, FULL):
            return
        equal = with_parameters_of(config, self.task.config(SIZE, self.data))
        if equal.adapter.spec() != config.adapter.spec():
            self.complete(method, EQUAL, equal, variants)

    def complete(
        self, method: str, stage: str, config: RunConfig, variants: Sequence[RunVariant]
    ) -> list[RunResult]:
        """Trains the runs of one stage that are missing; returns the results of all."""
        runs = Runs(config, variants, result_file(self.out / self.name, method, stage))
        ((_, results),) = complete_runs([runs], self.runs_per_step)
        return results


def result_file(folder: Path, method: str, stage: str) -> Path:
    """Returns the file with the results of a method's runs at one stage.

    >>> result_file(Path("runs"), "goat, alpha/r", "test").name
    'goat--alpha-r-00a3e4d5.test.json'
    """
    return folder / f"{file_name(method)}.{stage}.json"


def best_rate(tried: Sequence[RunResult], metric: str) -> float:
    """Returns the learning rate of the best result; of equal scores the lower loss decides."""

    def place(result: RunResult) -> tuple[tuple[int, float], float]:
        return standing([result], metric), -result.after.get("loss", float("inf"))

    return max(tried, key=place).variant.learning_rate
