"""Metrics log of a run: `metrics.jsonl`, with one JSON object per line.

Every record has `kind` and `step` (optimizer updates made so far). The other fields depend on the
kind:

- train: `loss`, `task_loss`, `aux_loss`, `grad_norm` (before clipping), `update_norm`,
  `router_entropy` (mean, in nats), `learning_rate`, `tokens_per_second`, `padding_share` (0 to 1),
  `flops_per_second` (of the matrix products, with what is recomputed), `utilization` (that over
  the devices' peak), `mfu` (the same without what is recomputed), `host_peak_bytes`,
  `device_peak_bytes` (if the device reports it), and `seconds` since the previous record without
  evaluations, of which `data_seconds` went into getting batches (the device works on the previous
  step meanwhile), `device_seconds` into waiting for the device (0 means that the device waits for
  the host) and `checkpoint_seconds` into starting checkpoints
- layers: `entropy` (of the router), `grad_norm`, `update_norm`: {path pattern: one per layer}
- eval: `split`, `loss`, the task's metrics such as `accuracy`, `seconds`
- load: `modules`, {path pattern: for each layer a row with the fraction of tokens per expert}; `{}`
  in the pattern stands for the layer, and the fractions of a row sum to 1

JSON has no NaN: a number that is not finite is written as `null` and read back as None. The JSON
file is authoritative. The metric writers get a copy of its finite scalars, with tags such as
`train/loss` and `eval/evaluation/accuracy`.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self, SupportsInt

import numpy as np

from goat_jax.errors import RunFailed, UserError
from goat_jax.files import parse_json
from goat_jax.training.logging.writers import MetricWriter

FILE_NAME = "metrics.jsonl"
KINDS = ("train", "layers", "eval", "load")


class MetricsLog:
    """Writes the records of one run; a context manager.

    Each record is flushed to the operating system when `write` returns, so a killed run loses at
    most part of a line. A run that restarts calls `resume` first. In a multi-process run only one
    process may write.

    Args:
        folder: the run's folder; it is created if it does not exist.
        writers: the metric writers that get a copy of the scalars.

    >>> import tempfile
    >>> scratch = tempfile.TemporaryDirectory()
    >>> folder = scratch.name
    >>> with MetricsLog(folder) as records:
    ...     records.write("train", 1, loss=np.float32(0.7), grad_norm=np.nan)
    {'kind': 'train', 'step': 1, 'loss': 0.7, 'grad_norm': None}
    >>> read_records(folder, "train")[0]["loss"]
    0.7
    >>> scratch.cleanup()
    """

    def __init__(self, folder: str | os.PathLike[str], writers: Sequence[MetricWriter] = ()):
        self.folder = Path(folder)
        self.path = self.folder / FILE_NAME
        self._writers = writers
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        if _ends_in_half_a_line(self.path):
            _rewrite(self.path, last_step=None)
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
        for writer in self._writers:
            writer.close()

    def write(self, kind: str, step: SupportsInt, **values: Any) -> dict[str, Any]:
        """Appends one record and returns it as it will be read back.

        Args:
            kind: one of `KINDS`.
            step: optimizer updates made so far.
            values: numbers (Python, NumPy or JAX; a JAX array is waited for), strings, None, and
                lists, arrays and mappings of them.

        Raises:
            UserError: unknown kind, a value that JSON cannot hold, or not inside `with`.
            RunFailed: the record could not be written, for example because the disk is full.
        """
        if kind not in KINDS:
            raise UserError(f"unknown kind of record {kind!r}: choose one of {', '.join(KINDS)}")
        if self._file is None:
            raise UserError(
                f"{self.path} is not open: write inside `with MetricsLog(folder) as ...`"
            )
        record = {"kind": kind, "step": int(step)}
        record |= {name: _to_json(value, name) for name, value in values.items()}
        try:
            # One write that includes the newline, so that a kill can only truncate the last line.
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
            scalars = _scalars(record)
            for writer in self._writers if scalars else ():
                writer.add(scalars, record["step"])
        except OSError as error:
            raise RunFailed(
                f"a record could not be written to {self.folder} ({error}): free some space and "
                "start the same command again"
            ) from error
        return record

    def resume(self, step: int) -> None:
        """Drops the records that a killed run wrote after the state it continues from.

        Removes the records of steps after `step` and an incomplete last line, by writing the rest
        to a temporary file that replaces the log, and notifies the metric writers. A restart calls
        it before its first `write`; without a log it changes no file.

        Args:
            step: the restored step; -1 for a run without a checkpoint, which drops all records.
        """
        restore_run = self._file is not None
        self._close()
        if self.path.exists():
            _rewrite(self.path, last_step=step)
        for writer in self._writers:
            writer.resume(step)
        if restore_run:
            self.__enter__()

    def _close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # `write` has already raised for that record
                self._file.close()
            self._file = None


def read_records(folder: str | os.PathLike[str], kind: str | None = None) -> list[dict[str, Any]]:
    """Reads the records of a run in the order written.

    An incomplete last line is skipped, since the run may have been killed or be still writing.

    Args:
        folder: the run's folder.
        kind: one of `KINDS`, or None for all.

    Raises:
        UserError: unknown kind, a folder without records, or an invalid complete line, which the
            message names as `file:line`.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"unknown kind of record {kind!r}: choose one of {', '.join(KINDS)}")
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise UserError(f"no {FILE_NAME} in {folder}: give the folder of a run that has started")
    return [record for _, record in _lines(path) if kind in (None, record["kind"])]


def training_series(
    records: Iterable[Mapping[str, Any]], field: str
) -> tuple[list[int], list[float]]:
    """Returns steps and values of a field of the training records; gaps (null) are left out.

    >>> training_series([{"kind": "train", "step": 5, "loss": 0.5}, {"kind": "eval"}], "loss")
    ([5], [0.5])
    """
    points = {
        record["step"]: record[field]
        for record in records
        if record["kind"] == "train" and record.get(field) is not None
    }
    return sorted(points), [points[step] for step in sorted(points)]


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a record by tag."""
    split = record.get("split")
    prefix = f"{record['kind']}/{split}" if split else record["kind"]
    return {
        f"{prefix}/{name}": value
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
    }


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields complete lines, newline included, with the records on them."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record = _parse(line)
            if record is not None:
                yield line.rstrip(b"\n") + b"\n", record
            elif line.endswith(b"\n"):
                raise UserError(f"{path}:{number}: not a record: correct or delete that line")


def _parse(line: bytes) -> dict[str, Any] | None:
    """Parses and checks the record on a line, so that readers need not; None if it is invalid."""
    try:
        record = parse_json(line, FILE_NAME)
    except UserError:
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 0:
        return None
    fits, kind = _SHAPES.get(str(record.get("kind"))), record.get("kind")
    values = {name: value for name, value in record.items() if name not in ("kind", "step")}
    return record if isinstance(kind, str) and (fits is None or fits(values)) else None


def _is_number(value: object) -> bool:
    # Booleans count as numbers, as in Python. The bound excludes integers too large for a float.
    return value is None or (isinstance(value, int | float) and abs(value) < 1e308)


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _is_table(value: object) -> bool:
    """True if a value is a list of rows of numbers, all of one length."""
    if not isinstance(value, list) or not value or not all(map(_are_numbers, value)):
        return False
    return len(value[0]) > 0 and len({len(row) for row in value}) == 1


def _of_layers(values: Mapping[str, Any]) -> bool:
    return all(
        isinstance(each, dict) and all(map(_are_numbers, each.values())) for each in values.values()
    )


_SHAPES: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "train": lambda values: all(_is_number(v) or _are_numbers(v) for v in values.values()),
    "eval": lambda values: (
        isinstance(values.get("split", ""), str)
        and all(_is_number(value) for name, value in values.items() if name != "split")
    ),
    "load": lambda values: (
        isinstance(values.get("modules"), dict) and all(map(_is_table, values["modules"].values()))
    ),
    "layers": _of_layers,
}
"""Kind of a record -> whether its values have the shape that readers rely on."""


def _ends_in_half_a_line(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _rewrite(path: Path, last_step: int | None) -> None:
    """Keeps only the complete lines, up to `last_step` if given."""
    aside = path.with_name(path.name + ".aside")
    with aside.open("wb") as file:
        for line, record in _lines(path):
            if last_step is None or record["step"] <= last_step:
                file.write(line)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _to_json(value: object, name: str) -> Any:
    """Returns a value as Python values that JSON can hold; `name` is only for the error."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _to_json(part, f"{name}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(part, name) for part in value]
    array = np.asarray(value)
    if array.ndim:
        return [_to_json(part, name) for part in array]
    if array.dtype == bool or np.issubdtype(array.dtype, np.integer):
        return array.item()
    try:
        number = float(array)
    except (TypeError, ValueError):
        raise UserError(
            f"record field {name} is a {type(value).__name__}: give numbers, strings or lists"
        ) from None
    if not math.isfinite(number):
        return None
    # The shortest decimal of a narrow float (0.1, not 0.10000000149011612) reads back as the same.
    return number if array.dtype.itemsize >= 8 else float(str(array[()]))
