"""Runs of the study: which are needed, their training, and the files with their results.

A method's learning rate is chosen by runs with one seed that are scored on validation rows. Runs
with other seeds at this rate are scored on the test rows. So no test row has a part in a choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from goat_jax.analysis.run_results import Runs, complete_runs, file_name, standing
from goat_jax.cli.verbs.compare import with_parameters_of
from goat_jax.config.run import RunConfig
from goat_jax.training.vmapped_runs import (
    RunResult,
    RunVariant,
    train_vmapped,
    with_variant,
)
from studies.tasks import EFFECTS, FROZEN, FULL, SIZE, StudyTask, on_validation

CHOOSING, TEST, EQUAL, SAME_RATE = STAGES = "rates", "test", "equal", "same_rate"
"""Stages: choice of the rate, scores at equal rank, at equal trained parameters, and at the
learning rate of the method that a variant changes."""

Stages = Mapping[str, Sequence[RunResult]]
"""Stage -> the results of a method's runs."""

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
        seeds: the seeds of the runs on the test rows.
        kept: method -> results that count as done if a stage is complete.
    """

    name: str
    task: StudyTask
    data: Path
    out: Path
    runs_per_step: int
    seeds: Sequence[int] = SEEDS
    kept: Mapping[str, Stages] = dataclasses.field(default_factory=dict)

    def train(self, method: str, say: Callable[[str], None]) -> None:
        """Trains all runs of a method whose results are not there yet."""
        if method == FROZEN and not self.task.head:
            self.score_untrained()
            say(f"{self.name}: {method}: scored without training")
            return
        config = self.task.config(method, self.data)
        rate = self.chosen_rate(method)
        say(f"{self.name}: {method}: learning rate {rate:g} of {len(self.task.rates_of(method))}")
        self.complete(method, TEST, config, self.variants(rate))
        if method in EFFECTS:
            same = self.chosen_rate(EFFECTS[method].method)
            if same != rate:
                self.complete(method, SAME_RATE, config, self.variants(same))
        elif self.task.equal_parameters and method not in (FROZEN, FULL):
            equal = with_parameters_of(config, self.task.config(SIZE, self.data))
            if equal.adapter.spec() != config.adapter.spec():
                self.complete(method, EQUAL, equal, self.variants(rate))

    def score_untrained(self) -> None:
        """Scores the pretrained model once, for all seeds, with a learning rate of 0."""
        if self.kept.get(FROZEN, {}).get(TEST):
            return
        config = self.task.config(FROZEN, self.data)
        one_step = dataclasses.replace(config.train, steps=1)
        config = dataclasses.replace(config, train=one_step)
        runs = Runs(config, self.variants(0.0), result_file(self.out / self.name, FROZEN, TEST))
        if runs.missing():
            trained = with_variant(config, RunVariant(self.seeds[0], self.task.rates[0]))
            (result,) = train_vmapped([trained])
            result = dataclasses.replace(result, losses=(), trained_parameters=0)
            runs.keep({each: dataclasses.replace(result, variant=each) for each in runs.variants})

    def chosen_rate(self, method: str) -> float:
        """Returns a method's best learning rate, after training the runs that are missing."""
        config = self.task.config(method, self.data)
        validated = on_validation(config, self.task.validation)
        variants = [RunVariant(CHOOSING_SEED, rate) for rate in self.task.rates_of(method)]
        return best_rate(self.complete(method, CHOOSING, validated, variants), config.best_by)

    def variants(self, rate: float) -> list[RunVariant]:
        """Returns the runs on the test rows with a learning rate, one for each seed."""
        return [RunVariant(seed, rate) for seed in self.seeds]

    def complete(
        self, method: str, stage: str, config: RunConfig, variants: Sequence[RunVariant]
    ) -> list[RunResult]:
        """Trains the runs of one stage that are missing; returns the results of all.

        Runs at a rate that was chosen before the grid grew are dropped.
        """
        kept = {run.variant: run for run in self.kept.get(method, {}).get(stage, ())}
        if kept.keys() >= set(variants):
            return [kept[variant] for variant in variants]
        runs = Runs(config, variants, result_file(self.out / self.name, method, stage))
        ((_, results),) = complete_runs([runs], self.runs_per_step)
        runs.keep(dict(zip(variants, results, strict=True)))
        return results


def result_file(folder: Path, method: str, stage: str) -> Path:
    """Returns the file with the results of a method's runs at one stage.

    >>> result_file(Path("runs"), "goat, alpha/r", "test").name
    'goat--alpha-r-d8f57351.test.json'
    """
    return folder / f"{file_name(method)}.{stage}.json"


def best_rate(tried: Sequence[RunResult], metric: str) -> float:
    """Returns the learning rate of the best result; of equal scores the lower loss decides."""

    def place(result: RunResult) -> tuple[tuple[int, float], float]:
        return standing([result], metric), -result.after.get("loss", float("inf"))

    return max(tried, key=place).variant.learning_rate
