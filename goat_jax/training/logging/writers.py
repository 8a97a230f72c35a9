"""Metric writers: copy a run's scalars to TensorBoard and Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from goat_jax.extras import import_extra

TENSORBOARD_FOLDER = "tensorboard"


class MetricWriter(Protocol):
    """Metric writer: gets the finite scalars of each record."""

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Writes scalars by tag, such as ``train/loss``."""
        ...

    def resume(self, step: int) -> None:
        """Prepares for a run that continues after `step`; called before its first `add`."""
        ...

    def close(self) -> None:
        """Closes the writer after the last record."""
        ...


class TensorBoard:
    """Writes event files to `folder/tensorboard`, flushed after every record.

    It does not use tensorboardX's `SummaryWriter`: that one's thread dies if the disk is full or
    if the clock jumps back by a month, and the run would then wait for the thread forever.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """

    def __init__(self, folder: Path):
        import_extra("tensorboardX", "writing them")
        self._folder = folder / TENSORBOARD_FOLDER
        self._purge_step: int | None = None
        self._events: Any = None  # an EventsWriter, made at the first scalar

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        if self._events is None:
            self._events = self._open()
        from tensorboardX.summary import scalar

        proto = importlib.import_module("tensorboardX.proto.event_pb2")
        for tag, value in scalars.items():
            summary = scalar(tag, value)
            self._events.write_event(proto.Event(wall_time=time.time(), step=step, summary=summary))
        self._events.flush()

    def resume(self, step: int) -> None:
        self.close()
        if any(self._folder.glob("*.tfevents.*")):
            self._purge_step = step + 1  # TensorBoard hides this step and those after it

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def _open(self) -> Any:
        from tensorboardX.event_file_writer import EventsWriter

        proto = importlib.import_module("tensorboardX.proto.event_pb2")
        # The file's name has the time in whole seconds, and the file is opened with "w". Without a
        # count, a restart within a second would overwrite the events of the previous run.
        count = len(list(self._folder.glob("*.tfevents.*")))
        self._folder.mkdir(parents=True, exist_ok=True)
        events = EventsWriter(str(self._folder / "events"), f".{count:04d}")
        if self._purge_step is not None:
            began = proto.SessionLog(status=proto.SessionLog.START)
            events.write_event(
                proto.Event(wall_time=time.time(), step=self._purge_step, session_log=began)
            )
        return events


class WeightsAndBiases:
    """Writes to a run of a Weights & Biases project; a continued run is identified by its folder.

    Args:
        folder: the run folder.
        project: the project's name.
        config: the run's config by dotted names.

    Raises:
        MissingExtra: wandb is not installed.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]):
        wandb = import_extra("wandb", "logging.wandb")
        name = str(folder.absolute())
        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=hashlib.sha256(name.encode()).hexdigest()[:16],
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )
        # A separate step axis: that of wandb may only grow, but a continued run goes back.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log({**scalars, "step": step})

    def resume(self, step: int) -> None:
        pass  # values that are logged again at a step are drawn over the earlier ones

    def close(self) -> None:
        self._run.finish()
