"""``goat-jax train``: trains or continues a run, then prints a summary and draws its plots."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import sys
from functools import partial
from pathlib import Path

from goat_jax.cli.arguments.config import propose_config, read_config, read_run_config
from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.extras import skipped_without_extra
from goat_jax.injection.svd_cache import AUTO
from goat_jax.plots import plot_expert_load, plot_training
from goat_jax.training.distributed.processes import is_first
from goat_jax.training.logging.metrics_log import read_records
from goat_jax.training.logging.summary import Summary
from goat_jax.training.trainer import fit

PICTURES = ("training.png", "expert_load.png")

OUT_OF_TIME = 75
"""Exit code of a run that got a stop signal and could not save in time (EX_TEMPFAIL)."""


@dataclasses.dataclass(frozen=True)
class Start:
    """The origin of a run's config.

    Attributes:
        config: the config file with its options, or None.
        run: the folder of the run to continue, or None.
        model: the pretrained model, if the config follows from it and from data.
        data: the source of the training rows.
        held_out: the source of the evaluation rows, or None.
    """

    config: str | None = None
    run: Path | None = None
    model: str | None = None
    data: str | None = None
    held_out: str | None = None

    def __post_init__(self) -> None:
        ways = (self.config, self.run, self.model or self.data)
        if sum(way is not None for way in ways) != 1:
            raise UserError(
                "train takes --model NAME --data FILE, or --config FILE, or --run RUN to "
                "continue a run: give one of them"
            )
        if (self.model is None) != (self.data is None):
            raise UserError("--model and --data go together: give both")
        if self.data is None and self.held_out is not None:
            raise UserError(
                "--held-out needs --model and --data; with a config, give --task.evaluation"
            )

    def read(self, overrides: list[str]) -> tuple[RunConfig, tuple[str, ...]]:
        """Returns the config with fields overridden, and lines about what was chosen."""
        prog = "goat-jax train"
        if self.config is not None:
            return read_config(self.config, overrides, prog), ()
        if self.run is not None:
            return read_run_config(self.run, overrides, prog), ()
        assert self.model is not None and self.data is not None
        chosen = propose_config(self.model, self.data, self.held_out, overrides, prog)
        return chosen.config, chosen.lines

    def words(self) -> list[str]:
        """Returns the words of the command line that name the origin."""
        return [
            word
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
            for word in (f"--{field.name.replace('_', '-')}", str(value))
        ]


def train(
    start: Start, overrides: list[str], *, progress: bool = True, cache: Path | None = None
) -> int:
    """Trains from a config and overrides; prints a summary and draws the plots.

    Args:
        start: the origin of the config.
        overrides: ``--field value ...``, which override the config.
        progress: whether to draw a progress bar.
        cache: the user's cache folder, or None.

    Returns:
        The exit code: 0 if finished, 143 or 130 if saved after SIGTERM or Ctrl-C. The process ends
        with 75 (`OUT_OF_TIME`) if saving took longer than ``train.grace_seconds``.
    """
    config, lines = start.read(overrides)
    if lines and is_first():
        print("\n".join(lines), flush=True)
    if config.svd.folder == AUTO and cache is not None:
        svd = dataclasses.replace(config.svd, folder=str(cache / "svd"))
        config = dataclasses.replace(config, svd=svd)
    command = shlex.join(["goat-jax", "train", *start.words(), *overrides])
    say = partial(print, flush=True)
    summary = fit(config, progress=progress, say=say, expired=give_up, command=command)
    if is_first():
        draw(summary.folder)
        print(report(config, summary))
    if summary.stopped.startswith("SIG"):
        print(f"{summary.stopped}: saved step {summary.step}; the same command continues.")
        return 128 + signal.Signals[summary.stopped]
    return 0


def give_up() -> None:
    """Ends the process at once; the last complete checkpoint remains."""
    print(
        "goat-jax: error: the last save took longer than train.grace_seconds; the checkpoint "
        "before it is kept, and the same command continues from there",
        file=sys.stderr,
        flush=True,
    )
    os._exit(OUT_OF_TIME)


def draw(folder: Path) -> None:
    """Draws the run's training curves and, if it has experts, their load, from its records."""
    records = read_records(folder)
    with skipped_without_extra(" and ".join(PICTURES)):
        plot_training(records, folder / PICTURES[0], title=f"Training run {folder.name}")
        loads = [record for record in records if record["kind"] == "load"]
        if loads:
            plot_expert_load(loads, folder / PICTURES[1], title=f"Expert load, {folder.name}")


def report(config: RunConfig, summary: Summary) -> str:
    """Returns the summary of a finished run as text: scores and files."""
    drawn = [picture for picture in PICTURES if (summary.folder / picture).exists()]
    lines = [
        "",
        f"{config.adapter.method} on {config.task.name}: {summary.stopped} at step {summary.step}",
        "",
        summary.table(),
        "",
        f"{summary.best}; {', '.join(['records', 'checkpoints', *drawn])} in {summary.folder}",
    ]
    return "\n".join(lines)
