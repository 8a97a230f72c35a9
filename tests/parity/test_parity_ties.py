"""A tie between experts may go either way; nothing else may."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from goat_jax.interop.modules import ModuleStart
from goat_jax.parity.checks import GIVEN, MODEL, Check, Comparison, Note
from goat_jax.parity.report import main
from goat_jax.parity.ties import ATTEMPTS, moved, settle_ties

COMPARE = Comparison(MODEL, "folder", "run", GIVEN)
STARTS = {
    "layer": ModuleStart(np.ones((2, 2)), {"router": np.ones((2, 4), np.float32)}, np.ones(2))
}


@dataclasses.dataclass
class FakeRun:
    """An outcome: the experts' load at every step, and a number to judge."""

    loads: np.ndarray
    number: float


class FakeTrainer:
    """Gives the outcomes of a list one by one, then repeats the last."""

    def __init__(self, *outcomes):
        self.outcomes, self.starts = list(outcomes), []

    def train(self, starts):
        self.starts.append(starts)
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]


def run_with(number, tied_step=None):
    loads = np.full((5, 4), 0.25)
    if tied_step is not None:
        loads[tied_step:, 0] += 0.01
    return FakeRun(loads, number)


def judge(outcome):
    return [Check("folder", "run", GIVEN, "loss", outcome.number, 1e-4)]


def test_a_run_that_agrees_is_taken_as_it_is():
    trainer = FakeTrainer(run_with(0.0))
    _, rows = settle_ties(trainer.train, STARTS, judge, COMPARE)
    assert rows == judge(run_with(0.0)) and trainer.starts == [STARTS]


def test_the_run_that_chooses_as_torch_did_is_compared_and_the_step_is_told():
    right = run_with(0.0, tied_step=3)
    trainer = FakeTrainer(run_with(1.0), run_with(1.0), run_with(1.0, 3), right)
    outcome, rows = settle_ties(trainer.train, STARTS, judge, COMPARE)
    assert outcome is right and rows[0] == judge(right)[0]
    assert isinstance(rows[1], Note) and "at step 3 a token is tied" in rows[1].text


@pytest.mark.parametrize(
    "other",
    [run_with(1.0, tied_step=3), run_with(0.0)],
    ids=["another choice does not agree either", "the choice was the same, so it is not a tie"],
)
def test_an_error_is_not_taken_for_a_tie(other):
    trainer = FakeTrainer(run_with(1.0), other)
    outcome, rows = settle_ties(trainer.train, STARTS, judge, COMPARE)
    assert outcome is not other
    assert rows == judge(run_with(1.0)) and len(trainer.starts) == 1 + ATTEMPTS


def test_starts_are_moved_by_one_rounding_each_time_another_way():
    routers = [moved(STARTS, seed)["layer"].factors["router"] for seed in range(3)]
    assert len({router.tobytes() for router in routers}) == 3
    for router in routers:
        assert router.dtype == np.float32
        np.testing.assert_array_max_ulp(router, np.ones((2, 4), np.float32), 1)


@pytest.mark.nightly  # CI changes runs of RoBERTa: test_parity_corrupted_models.py
@pytest.mark.parametrize("change", ["labels", "kernel"])
def test_a_changed_clip_is_no_tie(change, shared, tmp_path, capsys):
    folder = shutil.copytree(
        shared / "golden" / "tiny_clip", tmp_path / "run", copy_function=shutil.copyfile
    )
    if change == "labels":
        with np.load(folder / "batches.npz") as file:
            arrays = dict(file)
        arrays["labels_20"] = (arrays["labels_20"] + 1) % 5
        np.savez(folder / "batches.npz", **arrays)
    else:
        tensors = load_file(folder / "model.safetensors")
        tensors["vision_model.encoder.layers.1.mlp.fc2.bias"] += 0.01
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert main([folder]) == 1
    assert re.search(r"FAILED .* given start: loss is off", capsys.readouterr().out)
