"""A changed number in a layer bundle has to be seen, and the quantity named."""

import json
import re
import shutil

import numpy as np
import pytest

from corrupted import change_array, raise_the_largest
from goat_jax.parity.report import main, replay
from kinds import write_npz

NAME = "case"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, make_layer_case, write_layers):
    folder = tmp_path_factory.mktemp("sound")
    return write_layers(folder, [make_layer_case(NAME, init_type="pissa_scale", eta=0.5)], seed=4)


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "changed")


def failing(folder, capsys):
    """Exit code, and the quantities that the failure lines name."""
    code = main([folder])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED ")]
    assert all(str(folder) in line and NAME in line for line in lines)
    found = [re.search(r"(given|own) start: (.+?) is off by (\S+), tolerance", x) for x in lines]
    assert all(found)
    return code, {match[2] for match in found if match}


def test_the_sound_bundle_passes(bundle, capsys):
    assert failing(bundle, capsys) == (0, set())


EXPECTED = ("y", "aux", "loss", "grad_x", "grad_A", "grad_B", "grad_router", "adamw_losses",
            "y_final", "W_res")  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_a_changed_expectation_is_named(name, copy, capsys):
    change_array(copy / f"layer_{NAME}.npz", name, raise_the_largest)
    code, quantities = failing(copy, capsys)
    assert code == 1
    assert name in quantities
    if name != "W_res":  # the frozen weight goes into everything else
        assert quantities == {name}


@pytest.mark.parametrize("name", EXPECTED)
def test_not_a_number_never_passes(name, copy, capsys):
    change_array(
        copy / f"layer_{NAME}.npz", name, lambda array: array.reshape(-1).__setitem__(0, np.nan)
    )
    code, quantities = failing(copy, capsys)
    assert (code, name in quantities) == (1, True)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("W0", {"W_res", "init A", "init B"}),
        ("bias", {"y", "adamw_losses"}),
        ("A0", {"y", "init A", "grad_B"}),
        ("B0", {"y", "init B", "grad_A"}),
        ("router0", {"y", "aux", "grad_router"}),
        ("x", {"y", "grad_A"}),
        ("target", {"loss"}),
    ],
)
def test_a_changed_input_is_seen(name, seen, copy, capsys):
    change_array(copy / f"layer_{NAME}.npz", name, raise_the_largest)
    code, quantities = failing(copy, capsys)
    assert code == 1
    assert seen <= quantities


SETTINGS = {
    "scaling": lambda case: {"scaling": [*case["scaling"][:3], case["scaling"][3] * 1.01]},
    "eta": lambda case: {"eta": 0.51},
    "rho": lambda case: {"rho": 10.1},
    "init_cof": lambda case: {"init_cof": 0.26},
    "top_k": lambda case: {"top_k": 3},
    "init_type": lambda case: {"init_type": "goat"},
    "aux_coef": lambda case: {"aux_coef": 0.002},
    "lr": lambda case: {"adamw": {**case["adamw"], "lr": 0.0101}},
    "betas": lambda case: {"adamw": {**case["adamw"], "betas": [0.9, 0.99]}},
    "weight_decay": lambda case: {"adamw": {**case["adamw"], "weight_decay": 0.1}},
}
NAMED = {"scaling": "scale", "eta": "scale", "rho": "init A", "init_cof": "W_res", "top_k": "y",
         "init_type": "init A", "aux_coef": "loss", "lr": "y_final", "betas": "y_final",
         "weight_decay": "y_final"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("key", SETTINGS)
def test_a_changed_setting_is_seen(key, copy, capsys):
    case = json.loads((copy / "layers.json").read_text())[0]
    (copy / "layers.json").write_text(json.dumps([case | SETTINGS[key](case)]))
    code, quantities = failing(copy, capsys)
    assert code == 1
    assert NAMED[key] in quantities


def test_a_changed_scale_is_seen_where_the_name_does_not_settle_it(
    tmp_path, make_layer_case, write_layers, capsys
):
    """There the published code allows an override, so the scale itself proves nothing."""
    folder = write_layers(tmp_path / "goat", [make_layer_case(NAME)], seed=4)
    case = json.loads((folder / "layers.json").read_text())[0]
    case["scaling"] = [8.08] * 4
    (folder / "layers.json").write_text(json.dumps([case]))
    code, quantities = failing(folder, capsys)
    assert code == 1
    assert {"y", "init A", "W_res"} <= quantities


@pytest.mark.slow
def test_one_bad_case_does_not_hide_behind_good_ones(shared, tmp_path):
    folder = tmp_path / "golden"
    folder.mkdir()
    names = ("goat", "molora")
    cases = json.loads((shared / "golden" / "layers.json").read_text())
    cases = [case for case in cases if case["name"] in names]
    for name in names:
        shutil.copy(shared / "golden" / f"layer_{name}.npz", folder)
    with np.load(folder / "layer_molora.npz", allow_pickle=False) as file:
        arrays = {key: np.array(file[key]) for key in file.files}
    arrays["y_final"][3, 5] += 0.01
    write_npz(folder / "layer_molora.npz", arrays)
    (folder / "layers.json").write_text(json.dumps(cases))
    report = replay([folder])
    assert [(check.case, check.start, check.quantity) for check in report.failed] == [
        ("molora", "given", "y_final")
    ]
    assert report.exit_code == 1
