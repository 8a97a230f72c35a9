"""The report of the study: a page of tables, and figures."""

from __future__ import annotations

from pathlib import Path

from goat_jax.files import write_whole
from goat_jax.plots.compare import plot_comparison
from goat_jax.plots.save import save_figure
from studies.movement import movement_file, read_movements
from studies.movement_report import movement_figure, movement_table
from studies.rates_report import rates_figure
from studies.records import Records
from studies.runs import EQUAL, TEST
from studies.tables import effects_table, summary, task_table
from studies.tasks import EFFECTS, METHODS, SIZE, TASKS

TABLES, RATES_FIGURE, OPTIONS_FIGURE = "results.md", "rates.png", "rates_options.png"


def write_report(records: Records, out: Path) -> list[Path]:
    """Writes the tables and the figures; returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / TABLES, tables(records, out))
    save_figure(rates_figure(records, METHODS), out / RATES_FIGURE)
    written = [out / TABLES, out / RATES_FIGURE]
    if of_options := {task: found for task, found in records.items() if {*found} & {*EFFECTS}}:
        changed = {*EFFECTS, *(row.method for row in EFFECTS.values())}
        save_figure(rates_figure(of_options, changed), out / OPTIONS_FIGURE)
        written.append(out / OPTIONS_FIGURE)
    for task, methods in only_compared(records).items():
        losses = {
            method: [run.losses for run in stages[TEST]]
            for method, stages in methods.items()
            if any(run.losses for run in stages.get(TEST, ()))
        }
        if losses:
            path = out / f"losses_{task}.png"
            plot_comparison(losses, path, title=f"{TASKS[task].title}: training loss")
            written.append(path)
    return written + [
        _write_movement(task, out) for task in records if movement_file(out, task).is_file()
    ]


def _write_movement(task: str, out: Path) -> Path:
    path = out / f"movement_{task}.png"
    found = read_movements(movement_file(out, task))
    save_figure(movement_figure(found, f"{TASKS[task].title}: how kernels move"), path)
    return path


def only_compared(records: Records) -> Records:
    """Returns the records of the methods that are compared, without those of `EFFECTS`."""
    return {
        task: {method: stages for method, stages in methods.items() if method in METHODS}
        for task, methods in records.items()
    }


def tables(records: Records, out: Path) -> str:
    """Returns the summary over tasks and one section for each task, in Markdown.

    Args:
        records: the results.
        out: the folder of the movements that are kept.
    """
    compared = only_compared(records)
    sections = ["## Over all tasks", summary(compared)]
    for task, methods in compared.items():
        sections += [f"## {TASKS[task].title}", task_table(methods, TASKS[task], TEST)]
        if any(stages.get(EQUAL) for stages in methods.values()):
            note = f"At as many trained parameters of adapters as {SIZE}:"
            sections += [note, task_table(methods, TASKS[task], EQUAL)]
        if len(records[task]) > len(methods):
            note = "One option changed, with a learning rate of its own, and at that of the method:"
            sections += [note, effects_table(records[task], TASKS[task])]
        if movement_file(out, task).is_file():
            note = "How the kernels move, beside full fine-tuning:"
            sections += [note, movement_table(read_movements(movement_file(out, task)))]
    return "\n\n".join(sections) + "\n"
