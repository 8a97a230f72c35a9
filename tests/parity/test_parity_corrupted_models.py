"""A changed number in a model run has to be seen, and the quantity named."""

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from goat_jax.parity.report import main
from kinds import write_npz
from parity_runs import block, write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, published_linear, make_scale):
    """A run of few steps: what a check does not accept is trained anew with every moved router."""
    folder = tmp_path_factory.mktemp("made") / "run"
    options = {"steps": 4, "warmup": 1}
    return write_run(folder, "roberta", block("roberta"), published_linear, make_scale, **options)


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "run")


def test_the_run_itself_passes(bundle, capsys):
    assert failing(bundle, capsys) == (0, set())


def failing(folder, capsys):
    """Exit code, and the quantities that the failure lines name."""
    code = main([folder])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED ")]
    found = [re.search(r"(given|own) start: (.+?)( \(.*\))? is off by", line) for line in lines]
    return code, {match[2] for match in found if match}


def change_npz(folder, file, name, change):
    path = folder / file
    with np.load(path, allow_pickle=False) as stored:
        arrays = {key: np.array(stored[key]) for key in stored.files}
    arrays[name] = change(arrays[name])
    write_npz(path, arrays)


def change_tensor(folder, file, name, factor=1.02):
    tensors = load_file(folder / file)
    tensors[name] = (tensors[name] * factor).astype(tensors[name].dtype)
    save_file(tensors, folder / file, {"format": "pt"})


def one_more(array):
    changed = array.copy()
    changed.reshape(-1)[-1] *= 1.01
    return changed


@pytest.mark.parametrize(
    "name",
    ["task_loss", "aux_loss", "grad_norm", "lr", "logits_first", "logits_after", "loss_after"],
)
def test_a_changed_expectation_is_named(name, copy, capsys):
    change_npz(copy, "expected.npz", name, one_more)
    code, quantities = failing(copy, capsys)
    assert code == 1
    assert quantities - {"loss"} == {name}


MODULE = "roberta.encoder.layer.1.attention.self.query"


@pytest.mark.parametrize(
    ("tensor", "seen"),
    [
        (f"{MODULE}.lora_A.3.weight", "init A"),
        (f"{MODULE}.lora_B.0.weight", "init B"),
        (f"{MODULE}.lora_gating.weight", "aux_loss"),
        ("classifier.out_proj.weight", "logits_first"),
    ],
)
def test_a_changed_start_is_seen(tensor, seen, copy, capsys):
    change_tensor(copy, "adapter_init.safetensors", tensor)
    code, quantities = failing(copy, capsys)
    assert code == 1
    assert seen in quantities


@pytest.mark.parametrize(
    ("tensor", "seen"),
    [
        (f"{MODULE}.lora_A.3.weight", {"final A", "final BA"}),
        (f"{MODULE}.lora_B.0.weight", {"final B", "final BA"}),
        (f"{MODULE}.lora_gating.weight", {"final router"}),
        ("classifier.dense.bias", {"final head"}),
    ],
)
def test_a_changed_result_is_named(tensor, seen, copy, capsys):
    change_tensor(copy, "adapter_final.safetensors", tensor)
    assert failing(copy, capsys) == (1, seen)


def test_a_changed_weight_is_seen(copy, capsys):
    change_tensor(copy, "model.safetensors", f"{MODULE}.weight", 1.001)
    code, quantities = failing(copy, capsys)
    assert code == 1
    assert "init A" in quantities


def test_a_changed_batch_is_seen(copy, capsys):
    change_npz(copy, "batches.npz", "labels_2", lambda labels: (labels + 1) % 3)
    code, quantities = failing(copy, capsys)
    assert code == 1
    assert {"loss", "task_loss"} <= quantities
    assert "logits_first" not in quantities


# CI tries those that only a model's training has; a layer's: test_parity_corrupted_layers.py.
SETTINGS = [
    ({"clip": 0.5}, "final head"),
    ({"trainable_params": 1}, "trained parameters"),
]
AT_NIGHT = [
    ({"lr": 0.00201}, "lr"),
    ({"aux_coef": 0.002}, "final router"),
    ({"schedule": "linear"}, "lr"),
    ({"top_k": 1}, "aux_loss"),
    ({"scaling": 7.9}, "init A"),
    ({"rho": 10.1}, "init A"),
    ({"init_cof": 0.26}, "logits_first"),
    ({"init_type": "goat_mini"}, "init A"),
]


@pytest.mark.parametrize(
    "case",
    [*SETTINGS, *(pytest.param(case, marks=pytest.mark.nightly) for case in AT_NIGHT)],
    ids=str,
)
def test_a_changed_setting_is_seen(case, copy, capsys):
    change, seen = case
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps(meta | change))
    code, quantities = failing(copy, capsys)
    assert code == 1
    assert seen in quantities
