"""Layer cases written here by torch, of shapes, starts and scales that golden/ lacks."""

import json

import numpy as np
import pytest
import torch

from goat_jax.parity.checks import Check, Note
from goat_jax.parity.layer_bundle import read_cases
from goat_jax.parity.layers import replay_case
from tiers import each

MADE = {
    "one_expert": {"num_experts": 1, "top_k": 1, "rank": 4},
    "all_experts": {"num_experts": 4, "top_k": 4},
    "unequal_scales": {"scaling": [4.0, 2.0, 1.0, 0.5]},
    "no_bias_wide": {"bias": False, "out_features": 24, "in_features": 72},
    "both_ends": {"init_type": "pissa_milora", "num_experts": 2, "rank": 12},
    "pissa": {"init_type": "pissa", "top_k": 3},
    "lora_scale": {"init_type": "lora_scale", "eta": 0.1},
    "lora_rs": {"init_type": "lora_rs", "rank": 16},
    "mole": {"init_type": "mole", "num_experts": 3, "rank": 6},
    "square_mini": {"init_type": "goat_mini", "out_features": 40, "num_experts": 5, "rank": 10},
    "other_residual": {"init_cof": 0.5, "rho": 4},
    "rank_remainder": {"rank": 10},
    "weight_decay": {
        "adamw": {"lr": 0.01, "steps": 6, "betas": [0.8, 0.99], "eps": 1e-6, "weight_decay": 2.0}
    },
    "no_balance_loss": {"aux_coef": 0.0, "tokens": 7},
}


@pytest.mark.parametrize("name", each(MADE, ["unequal_scales", "pissa", "other_residual"]))
def test_a_made_layer_agrees_from_both_starts(name, tmp_path, make_layer_case, write_layers):
    folder = write_layers(tmp_path, [make_layer_case(name, **MADE[name])], seed=2)
    found = replay_case(read_cases(folder)[0])
    checks = [one for one in found if isinstance(one, Check)]
    assert [check for check in checks if not check.ok] == []
    assert {check.start for check in checks} == {"given", "own"}
    notes = [one.text for one in found if isinstance(one, Note)]
    assert len(notes) == (name == "unequal_scales")
    assert all("is not 8, what rank and alpha give" in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["goat", "goat_wide", "goat_mini", "minor", "molora"])
def test_the_torch_layer_of_these_tests_is_the_published_one(shared, name, published_linear):
    """The same numbers as golden/, from its factors: bundles made by this code can be trusted."""
    cases = {case["name"]: case for case in json.loads((shared / "golden/layers.json").read_text())}
    with np.load(shared / "golden" / f"layer_{name}.npz", allow_pickle=False) as file:
        golden = {key: torch.tensor(file[key]) for key in file.files}
    bias = golden["bias"] if golden["bias"].numel() else None
    layer = published_linear(golden["W0"], bias, cases[name], torch.Generator())
    torch.testing.assert_close(layer.residual, golden["W_res"], rtol=0, atol=1e-5)
    with torch.no_grad():
        layer.residual.copy_(golden["W_res"])
        for own, theirs in (("a", "A0"), ("b", "B0"), ("router", "router0")):
            getattr(layer, own).copy_(golden[theirs])
    y = layer(golden["x"])
    loss = (y - golden["target"]).square().mean() + cases[name]["aux_coef"] * layer.aux
    loss.backward()
    pairs = [(y, "y"), (layer.aux, "aux"), (loss, "loss"), (layer.a.grad, "grad_A"),
             (layer.b.grad, "grad_B"), (layer.router.grad, "grad_router")]  # fmt: skip
    for ours, theirs in pairs:
        scale = float(golden[theirs].abs().max()) or 1.0
        torch.testing.assert_close(ours.detach(), golden[theirs], rtol=0, atol=1e-5 * scale)


@pytest.mark.slow
def test_a_spectrum_without_gaps_is_said_and_not_compared(tmp_path, make_layer_case, write_layers):
    """Singular vectors of equal values are arbitrary: only the given start can be replayed."""
    case = make_layer_case("equal", in_features=32, out_features=32, tokens=9)
    folder = write_layers(tmp_path, [case], weight=lambda m, n: torch.eye(m, n))
    found = replay_case(read_cases(folder)[0])
    assert {one.start for one in found if isinstance(one, Check)} == {"given"}
    assert all(one.ok for one in found if isinstance(one, Check))
    assert ["too near each other" in one.text for one in found if isinstance(one, Note)] == [True]
