"""Header of a run: what is trained, on what and where, before the first step."""

from __future__ import annotations

import jax
import numpy as np

from goat_jax.config.memory import device_memory
from goat_jax.config.run import RunConfig
from goat_jax.data.pipeline.dataset import Rows
from goat_jax.text_tables import human_bytes, human_count
from goat_jax.training.data import TaskData, training_buckets
from goat_jax.training.setup import TrainSetup
from goat_jax.training.task_types import task_type_of


def header(setup: TrainSetup, data: TaskData) -> str:
    """Returns a line each for model, trained parameters, notes, rows, lengths, steps and devices.

    Args:
        setup: the run's model.
        data: the run's rows, with its config.
    """
    config, report = data.config, setup.inject_report
    share = report.trained_parameters / report.total_parameters
    quantized = [] if setup.quantize_report is None else [str(setup.quantize_report)]
    lines = [
        ("model", f"{config.model.path}, {setup.kind}, {config.model.dtype}"),
        (
            "trained",
            f"{human_count(report.trained_parameters)} of "
            f"{human_count(report.total_parameters)} parameters ({share:.2%}), "
            f"{config.adapter.method}",
        ),
        ("notes", "; ".join([*setup.notes, *quantized])),
        ("rows", "; ".join(data.notes)),
        ("lengths", _lengths(config, data.rows)),
        ("steps", _steps(config, len(data.rows))),
        ("devices", _devices()),
        ("folder", config.out),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines if text)


def _lengths(config: RunConfig, rows: Rows) -> str:
    """Describes the rows' lengths; "" for a task whose rows have no tokens."""
    if task_type_of(config.task).unit != "tokens":
        return ""
    padded = ", ".join(map(str, training_buckets(config, rows)))
    return (
        f"{np.median(rows.lengths):.0f} tokens (median) to {rows.lengths.max()}, padded to {padded}"
    )


def _steps(config: RunConfig, rows: int) -> str:
    train = config.train
    epochs = train.total_steps / max(1, rows // train.batch_size)
    parts = f" in {train.grad_accum_steps} micro-batches" if train.grad_accum_steps > 1 else ""
    return (
        f"{train.total_steps:,} of {train.batch_size} rows{parts} ({epochs:.1f} epochs), learning "
        f"rate {config.optimizer.learning_rate:g}"
    )


def _devices() -> str:
    devices = jax.devices()
    kind = devices[0].device_kind
    return f"{len(devices)} {kind}, {human_bytes(device_memory())} of memory each"
