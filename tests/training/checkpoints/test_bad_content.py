"""Files of a run folder with anything in them: one line that names the file, never a traceback."""

import json
import shutil

import pytest

from checkpoints import Batches, save, state_of, without_checksums
from goat_jax.analysis.collect_runs import gather
from goat_jax.cli.verbs.inspect import score_table
from goat_jax.config.fields import flatten
from goat_jax.config.run import RunConfig
from goat_jax.errors import UserError
from goat_jax.training.checkpoints.checkpoint import Checkpoints
from goat_jax.training.checkpoints.run_dir import load_run
from goat_jax.training.logging.metrics_log import read_records
from goat_jax.training.loop import from_notes

DEEP = "[" * 100_000
NO_JSON = [b"", b"\xff\xfe\x00", b"{", DEEP.encode(), b"NaN", b'{"a": 1e999}', b"9" * 5000]
NO_OBJECT = [b"[]", b"null", b"3", b'"run"', b"true"]
WRONG = [None, True, -1, 1.5, 10**400, "", "x", [], [1], {}, {"a": 1}, [[None]]]


@pytest.fixture
def run(config, tmp_path):
    """A folder with a run.json, and its content."""
    saved = {
        "config": flatten(config),
        "base_sha256": "0" * 64,
        "residual_norms": {"bert.a": [1.0, 2.0]},
        "trained_parameters": 5,
        "rows": {"training": {"rows": 3, "sha256": "0"}},
        "versions": {"jax": "0.10.2"},
        "command": "goat-jax train",
    }
    (tmp_path / "run.json").write_text(json.dumps(saved))
    return tmp_path, saved


def refused(folder, action, file):
    with pytest.raises(UserError) as error:
        action(folder)
    assert "\n" not in str(error.value) and f"{folder / file}" in str(error.value)


@pytest.mark.parametrize("content", NO_JSON + NO_OBJECT, ids=range(len(NO_JSON + NO_OBJECT)))
def test_a_run_json_that_is_none(run, content):
    folder, _ = run
    assert isinstance(load_run(folder)[0], RunConfig)
    (folder / "run.json").write_bytes(content)
    refused(folder, load_run, "run.json")


@pytest.mark.parametrize("name", ["config", "base_sha256", "residual_norms", "rows", "versions"])
def test_entries_of_run_json_have_their_types(run, name):
    folder, saved = run
    for value in (None, True, -1, "x" if name != "base_sha256" else 5, [1], {"a": [None]}):
        (folder / "run.json").write_text(json.dumps(saved | {name: value}))
        refused(folder, load_run, "run.json")
    del saved[name]
    (folder / "run.json").write_text(json.dumps(saved))
    if name != "rows":  # of which older versions knew nothing
        refused(folder, load_run, "run.json")


@pytest.mark.slow
def test_every_field_of_the_config_is_checked(run):
    folder, saved = run
    for name in saved["config"]:
        for value in WRONG:
            config = saved["config"] | {name: value}
            (folder / "run.json").write_text(json.dumps(saved | {"config": config}))
            try:
                assert isinstance(load_run(folder)[0], RunConfig)
            except UserError as error:
                assert "\n" not in str(error) and str(folder) in str(error)
    config = {key: value for key, value in saved["config"].items() if key != "model.path"}
    for other in (config, saved["config"] | {"model": 3}, saved["config"] | {"train.nosuch": 1}):
        (folder / "run.json").write_text(json.dumps(saved | {"config": other}))
        refused(folder, load_run, "run.json")


GOOD = '{"kind": "train", "step": 1, "loss": 0.5}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        DEEP.encode(),
        b'{"kind": "train", "step": 1, "loss": NaN}',
        b'{"kind": "train", "step": 1, "loss": "low"}',
        b'{"kind": "train", "step": 1, "loss": {"a": 1}}',
        b'{"kind": "train", "step": true}',
        b'{"kind": "train", "step": -1}',
        b'{"kind": ["train"], "step": 1}',
        b'{"kind": "eval", "step": 1, "split": 3}',
        b'{"kind": "eval", "step": 1, "accuracy": [0.5]}',
        b'{"kind": "eval", "step": 1, "accuracy": 1' + b"0" * 400 + b"}",
        b'{"kind": "load", "step": 1}',
        b'{"kind": "load", "step": 1, "modules": []}',
        b'{"kind": "load", "step": 1, "modules": {"a": [[0.5, 0.5], [1.0]]}}',
        b'{"kind": "load", "step": 1, "modules": {"a": [[]]}}',
        b'{"kind": "load", "step": 1, "modules": {"a": 0.5}}',
        b'{"kind": "layers", "step": 1, "entropy": 0.5}',
        b'{"kind": "layers", "step": 1, "entropy": {"a": ["x"]}}',
    ],
    ids=lambda line: line[:60].decode("utf-8", "replace").replace('"', "'"),
)
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(GOOD.encode() + line + b"\n" + GOOD.encode())
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a record"):
        read_records(tmp_path)


def test_scores_that_were_not_finite_are_shown_as_none():
    records = [{"step": 0, "loss": None}, {"step": 10, "accuracy": 0.5}]
    assert "-" in score_table(records)


@pytest.mark.parametrize("content", [*NO_JSON, b"[]", b"{}", b'{"scores": [1]}'])
def test_a_result_that_is_none(run, content):
    folder, _ = run
    (folder / "metrics.jsonl").write_text(GOOD)
    (folder / "result.json").write_bytes(content)
    refused(folder, lambda folder: gather([folder]), "result.json")


@pytest.fixture(scope="module")
def unchecked(tmp_path_factory):
    """A folder with one checkpoint, as an older version wrote it."""
    folder = tmp_path_factory.mktemp("unchecked")
    checkpoints = Checkpoints(folder, "accuracy")
    save(checkpoints, 10)
    checkpoints.close()
    without_checksums(folder / "checkpoints" / "10")
    return folder


@pytest.mark.parametrize("item", ["data", "notes"])
@pytest.mark.parametrize("content", [*NO_JSON[:4], b"[]", b'{"next_index": "a"}', b'{"x": 1}'])
def test_other_states_of_data_and_notes(unchecked, tmp_path, item, content):
    folder = shutil.copytree(unchecked, tmp_path / "run")
    (folder / "checkpoints" / "10" / item / "metadata").write_bytes(content)
    checkpoints = Checkpoints(folder, "accuracy", read_only=True)
    with pytest.raises(UserError) as error:
        from_notes(checkpoints.restore(state_of(0), Batches()).notes, 10, str(folder))
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert len(str(error.value)) < 700
    checkpoints.close()


@pytest.mark.parametrize("value", [{"next_index": -1}, {"next_index": 1.5}, {"next_index": None}])
def test_positions_that_are_none(unchecked, tmp_path, value):
    folder = shutil.copytree(unchecked, tmp_path / "run")
    (folder / "checkpoints" / "10" / "data" / "metadata").write_text(json.dumps(value))
    checkpoints = Checkpoints(folder, "accuracy", read_only=True)
    with pytest.raises(UserError, match="position in the data cannot be restored"):
        checkpoints.restore(state_of(0), Batches())
    checkpoints.close()


@pytest.mark.parametrize("value", WRONG, ids=range(len(WRONG)))
def test_notes_of_another_shape(value):
    best = {"step": 10, "score": 0.5, "worse": 0}
    good = {"best": best, "before": None, "after": {"loss": 1.0}}
    assert from_notes(good, 10, "run")[1:] == (None, {"loss": 1.0})
    for notes in (value, good | {"best": value}, good | {"after": {"loss": [value]}}):
        with pytest.raises(UserError, match="notes in the checkpoint of step 10 in run"):
            from_notes(notes, 10, "run")
