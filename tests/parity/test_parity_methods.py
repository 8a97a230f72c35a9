"""The original code of the other methods: its numbers are met, and changed ones are seen."""

import json
import re
import shutil

import numpy as np
import pytest

from corrupted import change_array, raise_the_largest
from goat_jax.adapters.methods import METHODS
from goat_jax.parity.checks import Check, Note
from goat_jax.parity.methods.cases import read_entries
from goat_jax.parity.methods.replay import REPLAYS, replay_entry
from goat_jax.parity.report import main, replay
from kinds import present
from tiers import each

NAMES = ("adamole", "mole", "hydralora", "loramoe", "multilora", "moelora", "lora", "rslora",
         "dora", "pissa", "kasa", "kasa_aux", "neat_depth0", "neat_depth1", "adalora",
         "adalora_trajectory", "loraplus", "lora_pro", "lora_dash", "lora_ga", "lorahub",
         "molora")  # fmt: skip

ALWAYS = {"y", "aux", "loss", "grad_x", "grad_A", "grad_B", "adamw_losses", "y_final", "scale"}
"""Quantities that are compared in every case of one layer."""

OWN = {
    "adamole": {"grad_router", "grad_threshold_w", "grad_threshold_b"},
    "moelora": {"grad_task_embedding", "grad_gate"},
    "multilora": {"grad_c"},
    "dora": {"grad_magnitude"},
    "pissa": {"W_res", "BA_init"},
    "loraplus": {"A_final", "B_final"},
    "kasa": {"grad_q", "W_res"},
    "adalora": {"grad_lam"},
    "neat_depth1": {"grad_encoders", "grad_decoders"},
    "lora_ga": {"W_res", "AtA_init", "BBt_init"},
    "lora_dash": {"change_rate", "top_index", "directions", "grad_coef_switch", "y_p2",
                  "grad_coef_p2", "coef_final"},
}  # fmt: skip
WITHOUT_LAYER = {
    "kasa_aux": {"aux_peft", "aux_reference", "grad_peft_A", "grad_reference_B"},
    "lorahub": {"A_hat", "B_hat", "delta_W", "y", "y_single", "loss", "aux"},
    "lora_pro": {"y", "loss", "grad_A", "adj_A_sylvester", "adj_B_zero", "sgd_losses",
                 "adamw_losses", "adamw_A_final", "full_losses", "full32_B_final"},
    "adalora_trajectory": {"losses", "budget", "mask_now", "kept", "lam_steps", "score_steps",
                           "A_final", "B_final", "y_final"},
}  # fmt: skip


@pytest.fixture(scope="module")
def entries(shared):
    return {entry.name: entry for entry in read_entries(shared / "golden" / "methods")}


def test_the_cases_are_all_here(entries):
    assert set(entries) == set(NAMES)
    assert {entry.formula for entry in entries.values()} | {"neat"} == set(REPLAYS)


@pytest.mark.parametrize("name", each(NAMES, ["lora", "dora", "mole", "neat_depth1"]))
def test_the_numbers_of_the_original_code_are_met(entries, name):
    found = replay_entry(entries[name])
    checks = [one for one in found if isinstance(one, Check)]
    assert [check for check in checks if not check.ok] == []
    quantities = {check.quantity for check in checks}
    notes = [one.text for one in found if isinstance(one, Note)]
    assert WITHOUT_LAYER.get(name, ALWAYS | OWN.get(name, set())) <= quantities
    assert ["adj_symmetry is not compared" in note for note in notes] == [True] * (
        name == "lora_pro"
    )


def test_every_trained_row_is_compared_with_original_code(entries):
    """Methods without a golden case change GOAT's scale or segments, or are full fine-tuning."""
    without = {"goat", "goat_plus", "milora", "full", "full_moe"}
    renamed = {"mole": "molora", "molora": "molora_soft", "loraplus": "lora_plus"}
    covered = {renamed.get(entry.formula, entry.formula) for entry in entries.values()}
    assert set(METHODS) - covered == without


def copy_case(shared, folder, name, change_entry=lambda entry: None):
    """A bundle of one case, which may be changed."""
    source = shared / "golden" / "methods"
    found = [e for e in json.loads((source / "methods.json").read_text()) if e["name"] == name]
    change_entry(found[0])
    folder.mkdir(exist_ok=True)
    (folder / "methods.json").write_text(json.dumps(found))
    shutil.copy(source / f"{name}.npz", folder)
    return folder


def failing(folder, capsys):
    """Exit code, and the quantities that the failure lines name."""
    code = main([folder])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED ")]
    assert all(str(folder) in line for line in lines)
    return code, {present(re.search(r"start: (\w+)", line))[1] for line in lines}


CHANGED = [
    ("dora", "magnitude0", "y"), ("dora", "grad_magnitude", "grad_magnitude"),
    ("dora", "y_final", "y_final"), ("adamole", "aux", "aux"),
    ("adamole", "threshold_b0", "grad_threshold_w"), ("adamole", "W0", "y"),
    ("kasa", "W_res", "W_res"), ("kasa", "adamw_losses", "adamw_losses"),
    ("lora_ga", "G", "AtA_init"), ("loramoe", "grad_router", "grad_router"),
    ("kasa_aux", "grad_reference_A_1", "grad_reference_A"),
    ("lorahub", "y_single", "y_single"), ("lorahub", "coef", "A_hat"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "array", "quantity"), CHANGED)
def test_a_changed_number_is_named(shared, tmp_path, capsys, name, array, quantity):
    folder = copy_case(shared, tmp_path / "bundle", name)
    change_array(folder / f"{name}.npz", array, raise_the_largest)
    code, quantities = failing(folder, capsys)
    assert code == 1
    assert quantity in quantities
    if array == quantity and array != "W_res":
        assert quantities == {quantity}


def test_a_swapped_task_type_is_seen(shared, tmp_path, capsys):
    folder = copy_case(shared, tmp_path / "bundle", "loramoe")
    change_array(
        folder / "loramoe.npz", "task_types", lambda types: np.subtract(1, types, out=types)
    )
    code, quantities = failing(folder, capsys)
    assert (code, "aux" in quantities, "y" in quantities) == (1, True, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "array", "quantity"),
    [("lora_dash", "top_index", "top_index"), ("lora_dash", "coef_final", "coef_final"),
     ("adalora_trajectory", "lam_steps", "lam_steps"), ("adalora_trajectory", "budget", "budget")],
)  # fmt: skip
def test_a_changed_number_of_a_trajectory_is_named(shared, tmp_path, capsys, name, array, quantity):
    folder = copy_case(shared, tmp_path / "bundle", name)
    change_array(folder / f"{name}.npz", array, lambda values: np.add(values, 1, out=values))
    assert failing(folder, capsys) == (1, {quantity})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("lora", {"formula": "loro"}, "formula 'loro' is not known (did you mean 'lora'?)"),
        ("lora", {"rank": 0}, "rank is 0, not a whole number"),
        ("mole", {"threshold": 0.2}, "no router has a fixed threshold"),
        ("lora_ga", {"direction": "ArB"}, "direction 'ArB' is not known"),
        ("neat_depth0", {"activation": "gelu"}, "activation 'gelu' is not known"),
        ("dora", {"trainable": {"mu": [40]}}, "trainable has 'mu', this method has: A, B"),
        # Read where the steps begin, after all that is compared before them.
        pytest.param(
            "dora", {"optimizer": {}}, "optimizer lacks 'lr', 'betas'", marks=pytest.mark.slow
        ),
    ],
)
def test_what_cannot_be_read_is_said(shared, tmp_path, name, change, message):
    folder = copy_case(shared, tmp_path / "bundle", name, lambda entry: entry.update(change))
    report = replay([folder])
    assert (report.exit_code, len(report.errors)) == (2, 1)
    assert message in report.errors[0] and str(folder) in report.errors[0]
