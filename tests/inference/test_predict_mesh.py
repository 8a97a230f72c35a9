"""Predictions over a data mesh: the same rows in the same order, continued byte for byte."""

import json

import numpy as np
import pytest

import goat_jax
from goat_jax.cli.main import main
from goat_jax.data.sources.read import read_rows
from goat_jax.training.logging.progress_bar import TrainProgress

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
