"""Metric writers: copy a run's scalars to TensorBoard and to experiment trackers (`TRACKERS`)."""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
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
        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=_id_of(folder),
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


class Trackio:
    """Writes to a run of a Trackio project; a continued run is identified by its folder.

    Trackio finds a run by its name alone, so the name ends with digits that follow from the folder.

    Args:
        folder: the run folder.
        project: the project's name.
        config: the run's config by dotted names.

    Raises:
        MissingExtra: trackio is not installed.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]):
        trackio = import_extra("trackio", "logging.trackio")
        name = f"{folder.name}-{_id_of(folder)[:6]}"
        self._run = trackio.init(project=project, name=name, config=dict(config), resume="allow")

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def resume(self, step: int) -> None:
        pass  # values that are logged again at a step are drawn over the earlier ones

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """Writes to a run of an MLflow experiment; a continued run is identified by its folder.

    Args:
        folder: the run folder.
        project: the experiment's name; MLFLOW_TRACKING_URI names the server or the folder.
        config: the run's config by dotted names, which become the run's parameters.

    Raises:
        MissingExtra: mlflow is not installed.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]):
        mlflow = import_extra("mlflow", "logging.mlflow")
        self._entities = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        experiment = mlflow.set_experiment(project).experiment_id
        tag = _id_of(folder)
        runs = self._client.search_runs([experiment], f"tags.goat_jax_folder = '{tag}'")
        if runs:
            self._run = runs[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {"goat_jax_folder": tag}
        created = self._client.create_run(experiment, run_name=folder.name, tags=tags)
        self._run = created.info.run_id
        params = [self._entities.Param(name, str(value)[:500]) for name, value in config.items()]
        for first in range(0, len(params), 100):  # the server takes no more at once
            self._client.log_batch(self._run, params=params[first : first + 100])

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(*one, now, step) for one in scalars.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def resume(self, step: int) -> None:
        pass  # values that are logged again at a step are kept beside the earlier ones

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _id_of(folder: Path) -> str:
    return hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]


TRACKERS: Mapping[str, Callable[[Path, str, Mapping[str, Any]], MetricWriter]] = MappingProxyType(
    {"wandb": WeightsAndBiases, "trackio": Trackio, "mlflow": MLflow}
)
"""Field of `LoggingConfig` that names a project -> the writer, made of folder, project, config."""
