"""MetricsLog survive kills and restarts, and TensorBoard can read its copy."""

import importlib
import json
import math
import struct
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.config.fields import with_fields
from goat_jax.config.run import ModelConfig, RunConfig
from goat_jax.data.tasks.registry import reviews
from goat_jax.errors import UserError
from goat_jax.training.distributed import processes
from goat_jax.training.logging.metrics_log import MetricsLog, read_records
from goat_jax.training.logging.writers import (
    TRACKERS,
    MLflow,
    TensorBoard,
    Trackio,
    WeightsAndBiases,
)


def event_messages():
    """TensorBoard's messages, which protobuf makes when the module is imported."""
    return importlib.import_module("tensorboardX.proto.event_pb2")


def scalars(folder):
    """[(tag, step, value)] of every event file, in the order TensorBoard reads them."""
    found = []
    for path in sorted((folder / "tensorboard").glob("*.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])  # then 4 bytes of checksum, on both sides
            event = event_messages().Event.FromString(data[12 : 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[16 + length :]
    return found


def restarts(folder):
    """Steps from which TensorBoard is told to hide what it has read so far."""
    messages = event_messages()
    found = []
    for path in sorted((folder / "tensorboard").glob("*.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = messages.Event.FromString(data[12 : 12 + length])
            if event.session_log.status == messages.SessionLog.START:
                found.append(event.step)
            data = data[16 + length :]
    return found


def write_steps(folder, steps, writers=()):
    with MetricsLog(folder, writers) as records:
        for step in steps:
            records.write("train", step, loss=1.0 / step)


def test_round_trip_of_every_kind(tmp_path):
    with MetricsLog(tmp_path / "new" / "run") as records:
        written = [
            records.write("train", np.int32(3), loss=np.float32(0.1), note=None, warm=np.True_),
            records.write("eval", 3, split="validation", accuracy=jnp.float32(0.75), count=277),
            records.write("load", 3, modules={"a.{}.q": jnp.array([[0.5, 0.5], [0.25, 0.75]])}),
        ]
    assert read_records(tmp_path / "new" / "run") == written
    assert written[0] == {"kind": "train", "step": 3, "loss": 0.1, "note": None, "warm": True}
    assert written[1]["accuracy"] == 0.75 and written[1]["count"] == 277
    assert written[2]["modules"] == {"a.{}.q": [[0.5, 0.5], [0.25, 0.75]]}
    assert read_records(tmp_path / "new" / "run", "eval") == [written[1]]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16])
def test_floats_read_back_as_the_same_number(tmp_path, dtype):
    value = np.asarray(1 / 3, dtype)
    with MetricsLog(tmp_path) as records:
        records.write("train", 1, loss=value)
    loss = read_records(tmp_path)[0]["loss"]
    assert np.asarray(loss).astype(dtype) == value
    assert len(str(loss)) <= len(str(value))  # and a narrow one in few digits


def test_not_finite_is_null_in_valid_json(tmp_path):
    with MetricsLog(tmp_path) as records:
        records.write("train", 1, a=jnp.float32(jnp.nan), b=math.inf, c=[1, -np.inf])

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert record == {"kind": "train", "step": 1, "a": None, "b": None, "c": [1, None]}


def test_each_line_is_there_before_the_run_ends(tmp_path):
    with MetricsLog(tmp_path) as records:
        records.write("train", 1, loss=0.5)
        assert [record["step"] for record in read_records(tmp_path)] == [1]


def test_a_kill_anywhere_in_the_last_line_loses_that_line_only(tmp_path):
    write_steps(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        only_the_newline_is_missing = end == len(whole) - 1
        expected = [1, 2, 3] if only_the_newline_is_missing else [1, 2]
        assert [record["step"] for record in read_records(tmp_path)] == expected
        write_steps(tmp_path, [4])  # must not be glued to the half line
        assert [record["step"] for record in read_records(tmp_path)] == [*expected, 4]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    write_steps(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for broken in ("{half\n", "[1]\n", '{"kind": "train"}\n', '{"step": 2}\n', "\n"):
        path.write_text(lines[0] + broken + lines[2])
        with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a record"):
            read_records(tmp_path)


def test_resume_drops_what_came_after_the_restored_step(tmp_path):
    write_steps(tmp_path, range(1, 10))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind": "tra')
    with MetricsLog(tmp_path) as records:
        records.resume(5)
        records.write("train", 6, loss=9.0)
    steps_and_losses = [(record["step"], record["loss"]) for record in read_records(tmp_path)]
    assert steps_and_losses == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4), (5, 1 / 5), (6, 9.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_resume_before_anything_was_written(tmp_path):
    records = MetricsLog(tmp_path)
    records.resume(0)
    with records:
        records.resume(0)
        records.write("train", 1, loss=1.0)
    assert len(read_records(tmp_path)) == 1
    assert restarts(tmp_path) == []


def test_tensorboard_gets_the_finite_scalars(tmp_path):
    with MetricsLog(tmp_path, [TensorBoard(tmp_path)]) as records:
        records.write("train", 1, loss=0.5, grad_norm=math.nan, learning_rate=jnp.float32(1e-3))
        records.write("eval", 2, split="train", loss=0.25)
        records.write("load", 2, modules={"a.{}.q": [[0.5, 0.5]]})
    assert scalars(tmp_path) == [
        ("train/loss", 1, 0.5),
        ("train/learning_rate", 1, pytest.approx(1e-3)),
        ("eval/train/loss", 2, 0.25),
    ]


def test_tensorboard_hides_the_steps_that_are_run_again(tmp_path):
    write_steps(tmp_path, [1, 2, 3], [TensorBoard(tmp_path)])
    # Within the same second: the files must not be one.
    with MetricsLog(tmp_path, [TensorBoard(tmp_path)]) as records:
        records.resume(2)
        records.write("train", 3, loss=7.0)
    assert restarts(tmp_path) == [3]
    assert [(step, value) for _, step, value in scalars(tmp_path)] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
        (3, 7.0),
    ]


def test_bad_use_is_one_line_with_the_fix(tmp_path):
    with MetricsLog(tmp_path) as records:
        with pytest.raises(UserError, match="'trian': choose one of train, layers, eval, load"):
            records.write("trian", 1)
        with pytest.raises(UserError, match=r"field batch.ids is a object"):
            records.write("train", 1, batch={"ids": object()})
    with pytest.raises(UserError, match="not open: write inside"):
        records.write("train", 1)
    assert read_records(tmp_path) == []
    with pytest.raises(UserError, match="choose one of"):
        read_records(tmp_path, "trian")
    with pytest.raises(UserError, match=r"no metrics.jsonl in"):
        read_records(tmp_path / "nothing")


class FakeRun:
    def __init__(self, started):
        self.started, self.axes, self.logged, self.finished = started, [], [], False

    def define_metric(self, name, **options):
        self.axes.append((name, options))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


def test_weights_and_biases_gets_the_scalars_of_one_run_again(tmp_path, monkeypatch):
    runs = []
    fake = types.SimpleNamespace(init=lambda **options: runs.append(FakeRun(options)) or runs[-1])
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (1, 2):
        write_steps(tmp_path, [step], [WeightsAndBiases(tmp_path, "goats", {"rank": 8})])
    first, second = runs
    assert first.logged == [{"train/loss": 1.0, "step": 1}] and first.finished
    assert first.axes == [("step", {}), ("*", {"step_metric": "step"})]
    assert first.started["project"] == "goats" and first.started["config"] == {"rank": 8}
    assert first.started["id"] == second.started["id"] and first.started["resume"] == "allow"


def test_trackio_gets_the_scalars_of_one_run_again(tmp_path, monkeypatch):
    started, logged = [], []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((values, step)), finish=lambda: logged.append("end")
    )
    fake = types.SimpleNamespace(init=lambda **options: started.append(options) or run)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    for step in (1, 2):
        write_steps(tmp_path, [step], [Trackio(tmp_path, "goats", {"rank": 8})])
    assert logged == [({"train/loss": 1.0}, 1), "end", ({"train/loss": 0.5}, 2), "end"]
    assert started[0] == started[1] and started[0]["name"].startswith(f"{tmp_path.name}-")
    assert started[0]["project"] == "goats" and started[0]["config"] == {"rank": 8}
    assert started[0]["resume"] == "allow"


class FakeMlflow:
    """MLflow's client on a dict: what it is told by run."""

    def __init__(self):
        self.runs = {}

    def search_runs(self, experiments, query):
        tag = query.split("'")[1]
        runs = [run for run in self.runs if self.runs[run]["tags"]["goat_jax_folder"] == tag]
        return [types.SimpleNamespace(info=types.SimpleNamespace(run_id=run)) for run in runs]

    def create_run(self, experiment, run_name, tags):
        run = f"run{len(self.runs)}"
        self.runs[run] = {"name": run_name, "tags": tags, "params": [], "metrics": []}
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run))

    def log_batch(self, run, metrics=(), params=()):
        self.runs[run]["params"] += params
        self.runs[run]["metrics"] += [(name, value, step) for name, value, _, step in metrics]

    def update_run(self, run, status):
        self.runs[run]["status"] = status

    def set_terminated(self, run):
        self.runs[run]["status"] = "FINISHED"


def test_mlflow_gets_the_scalars_of_one_run_again(tmp_path, monkeypatch):
    client = FakeMlflow()
    entities = types.SimpleNamespace(Metric=lambda *given: given, Param=lambda *given: given)
    experiment = types.SimpleNamespace(experiment_id="7")
    fake = types.SimpleNamespace(
        MlflowClient=lambda: client, set_experiment=lambda name: experiment
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for folder in (tmp_path / "a", tmp_path / "b", tmp_path / "a"):
        step = 1 + len(client.runs)
        write_steps(folder, [step], [MLflow(folder, "goats", {"rank": 8})])
    first, second = client.runs.values()
    assert first["metrics"] == [("train/loss", 1.0, 1), ("train/loss", pytest.approx(1 / 3), 3)]
    assert second["metrics"] == [("train/loss", 0.5, 2)]
    assert first["params"] == [("rank", "8")] and first["name"] == "a"
    assert first["status"] == second["status"] == "FINISHED"


@pytest.mark.parametrize("name", TRACKERS)
def test_a_run_makes_the_trackers_that_its_config_names(name, tmp_path, monkeypatch):
    config = RunConfig(ModelConfig("m"), reviews(), out=str(tmp_path / "run"))
    config = with_fields(config, {f"logging.{name}": "goats"})
    made = []
    fakes = {one: lambda *given, one=one: made.append((one, *given)) for one in TRACKERS}
    monkeypatch.setattr(processes, "TRACKERS", fakes)
    processes.records_of(config)
    ((tracker, folder, project, values),) = made
    assert (tracker, folder, project) == (name, tmp_path / "run", "goats")
    assert values["train.batch_size"] == 32
