"""Predictions over a data mesh: the same rows in the same order, continued byte for byte."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import goat_jax
from goat_jax.cli.main import main
from goat_jax.data.sources.read import read_rows
from goat_jax.sharding.config import MeshConfig
from goat_jax.training.logging.progress_bar import TrainProgress
from ports import free_port

COUNT = 40
"""Rows: a chunk of four batches of eight, and a part of another one."""


@pytest.fixture(scope="module")
def run_folder(light_finished):
    return light_finished[0].out


@pytest.fixture(scope="module")
def unlabeled(run_folder, tmp_path_factory):
    rows = read_rows(goat_jax.load(run_folder).config.task.evaluation)[:COUNT]
    path = tmp_path_factory.mktemp("rows") / "new.jsonl"
    path.write_text("".join(json.dumps({"sentence": row["sentence"]}) + "\n" for row in rows))
    return path


def words(run_folder, unlabeled, out, mesh):
    options = ["--mesh.data", mesh, "--batch-size", "8", "--quiet"]
    return ["predict", str(run_folder), "--data", str(unlabeled), "--out", str(out), *options]


@pytest.fixture(scope="module")
def on_mesh(run_folder, unlabeled, tmp_path_factory):
    """The file that eight devices write."""
    out = tmp_path_factory.mktemp("mesh") / "new.csv"
    assert main(words(run_folder, unlabeled, out, "8")) == 0
    return out


def killed(run_folder, unlabeled, out):
    """The command of eight devices, killed after its first chunk."""

    def interrupt(bar, done):
        if done:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainProgress, "update", interrupt)
        with pytest.raises(KeyboardInterrupt):
            main(words(run_folder, unlabeled, out, "8"))


@pytest.mark.slow
def test_rows_are_shared_out_and_keep_their_order(run_folder, unlabeled, on_mesh):
    rows = read_rows(on_mesh)
    found = goat_jax.load(run_folder).predict([row["sentence"] for row in read_rows(unlabeled)])
    assert [row["prediction"] for row in rows] == found.labels.tolist()
    shares = [[float(row[f"probability_{name}"]) for name in found.classes] for row in rows]
    np.testing.assert_allclose(shares, found.probabilities, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_killed_command_goes_on_with_the_same_bytes(run_folder, unlabeled, on_mesh, tmp_path):
    whole, out = on_mesh.read_bytes(), tmp_path / "new.csv"
    killed(run_folder, unlabeled, out)
    assert whole.startswith(out.read_bytes()) and len(read_rows(out)) == 32
    with out.open("r+b") as file:
        file.truncate(len(whole) // 2)  # in the middle of a row
    assert main(words(run_folder, unlabeled, out, "8")) == 0
    assert out.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


@pytest.mark.slow
def test_another_mesh_does_not_go_on(run_folder, unlabeled, on_mesh, tmp_path, capsys):
    out = tmp_path / "new.csv"
    killed(run_folder, unlabeled, out)
    assert main([*words(run_folder, unlabeled, out, "4"), "--tensor", "2"]) == 2
    assert "was begun with another batch size, mesh or sampling" in capsys.readouterr().err


def test_a_batch_that_the_mesh_cannot_share_out(run_folder, unlabeled, tmp_path, capsys):
    given = words(run_folder, unlabeled, tmp_path / "new.csv", "8")
    given[given.index("8", given.index("--batch-size"))] = "12"
    assert main(given) == 2
    assert "the batch size 12 is not divisible by the 8 parts" in capsys.readouterr().err


def by_two(words, settings):
    """Runs a command in two processes with two devices each; returns what they print."""
    command = [sys.executable, "-m", "goat_jax", *words, "--processes", "2"]
    command += ["--coordinator", f"127.0.0.1:{free_port()}", "--process"]
    started = [
        subprocess.Popen([*command, index], env=settings, stdout=subprocess.PIPE, text=True)
        for index in "01"
    ]
    texts = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return [re.sub(r"^\[Gloo\].*\n", "", text, flags=re.M) for text in texts]


@pytest.mark.nightly
def test_two_processes_write_one_file_and_continue_it(
    run_folder, unlabeled, on_mesh, tmp_path, without_torch
):
    flags = re.sub(r"device_count=\d+", "device_count=2", os.environ["XLA_FLAGS"])
    settings, out = without_torch | {"XLA_FLAGS": flags}, tmp_path / "new.csv"
    given = words(run_folder, unlabeled, out, "4")
    assert by_two(given, settings) == [f"{out}: {COUNT} rows\n", ""]
    whole = out.read_bytes()
    labels = [[row["prediction"] for row in read_rows(path)] for path in (out, on_mesh)]
    assert labels[0] == labels[1]

    # As after a kill: half of the file, with the stamp of the same command.
    killed(run_folder, unlabeled, tmp_path / "other.csv")
    stamp = (tmp_path / "other.csv.unfinished").read_text()
    eight, four = (json.dumps(MeshConfig(data=parts).given) for parts in (8, 4))
    assert eight in stamp
    (tmp_path / "new.csv.unfinished").write_text(stamp.replace(eight, four))
    out.write_bytes(whole[: len(whole) // 2])
    assert "of them were there already" in by_two(given, settings)[0]
    assert out.read_bytes() == whole
