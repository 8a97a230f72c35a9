"""The "# Params (%)" columns of the paper's tables, from the models' configs alone.

The paper does not say what it divides by. Its figures for one model fit one divisor, which is up to
1.6% off the number of parameters that transformers counts (CLIP's vision tower: 88.8 million there,
87.46 here; RoBERTa-large 353.9 and 355.4), and some are cut, not rounded. So sizes are asserted
exactly, by the paper's own formulas, and shares to 2.1% of themselves.
"""

import numpy as np
import pytest

from goat_jax.adapters.methods import method_spec
from goat_jax.run.shapes import count

PAPER_HYDRA = {"router": "top_k", "aux_loss": "balance", "num_experts": 8, "top_k": 2}
PAPER_ADAMOLE = {"num_experts": 8}

VIT = [  # table 5, total rank 8
    ("lora", {}, 1.49),
    ("lora", {"total_rank": 16}, 2.99),
    ("lora", {"total_rank": 32}, 5.98),
    ("pissa", {}, 1.49),
    ("milora", {}, 1.49),
    ("molora", {}, 2.24),
    ("adamole", PAPER_ADAMOLE, 2.33),
    ("hydralora", PAPER_HYDRA, 1.58),
    ("goat", {}, 2.24),
]
ROBERTA = [  # table 8, total rank 32
    ("lora", {}, 4.00),
    ("dora", {}, 4.00),
    ("pissa", {}, 4.00),
    ("milora", {}, 4.00),
    ("rslora", {}, 4.00),
    ("molora", {}, 4.50),
    ("adamole", PAPER_ADAMOLE, 4.56),
    ("hydralora", PAPER_HYDRA, 2.75),
    ("goat", {}, 4.50),
]
LLAMA = [  # table 7, total rank 32; figures without a router are quoted there from other papers
    (name, {}, 0.84) for name in ("lora", "dora", "pissa", "milora", "lora_dash", "neat", "kasa")
]


def report_of(model, name, options, targets="all-linear"):
    return count(model, method_spec(name, **options), targets)


@pytest.mark.parametrize(("name", "options", "share"), VIT)
def test_shares_of_vit(name, options, share):
    found = report_of("clip-vit-base-patch32", name, {"total_rank": 8, **options})
    np.testing.assert_allclose(100 * found.adapter_share, share, rtol=0.021)


@pytest.mark.parametrize(("name", "options", "share"), ROBERTA)
def test_shares_of_roberta_large(name, options, share):
    found = report_of("roberta-large", name, {"total_rank": 32, **options})
    np.testing.assert_allclose(100 * found.adapter_share, share, rtol=0.021)


@pytest.mark.parametrize(("name", "options", "share"), LLAMA)
def test_shares_of_llama_2_7b(name, options, share):
    """On the five projections that those papers adapt."""
    five = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    found = report_of("llama-2-7b", name, {"total_rank": 32, **options}, five)
    np.testing.assert_allclose(100 * found.adapter_share, share, rtol=0.021)


def test_mixtures_on_llama_2_7b_are_not_of_one_set_of_targets():
    """Table 7 has 0.96 for GOAT and MoLoRA, 0.84 for HydraLoRA: what no one choice gives.

    On five projections they are 0.94 and 0.57, on all seven 1.32 and 0.85.
    """
    five = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
    found = {
        (name, len(targets)): 100
        * report_of("llama-2-7b", name, {"total_rank": 32, **options}, targets).adapter_share
        for name, options in (("goat", {}), ("molora", {}), ("hydralora", PAPER_HYDRA))
        for targets in (five, [*five, "o_proj", "gate_proj"])
    }
    expected = {("goat", 5): 0.9366, ("molora", 5): 0.9366, ("hydralora", 5): 0.5724}
    expected |= {("goat", 7): 1.3217, ("molora", 7): 1.3217, ("hydralora", 7): 0.8486}
    assert {key: round(value, 4) for key, value in found.items()} == expected


@pytest.mark.parametrize(
    ("model", "width", "layers", "rank"),
    [("roberta-large", 1024, 24, 32), ("clip-vit-base-patch32", 768, 12, 8)],
)
def test_sizes_by_the_papers_formulas(model, width, layers, rank):
    """Section 4: 18 H r per block for LoRA, 9 H E more for the routers of a mixture."""
    lora, goat = (report_of(model, name, {"total_rank": rank}) for name in ("lora", "goat"))
    assert lora.adapter_parameters == layers * 18 * width * rank
    assert goat.adapter_parameters == lora.adapter_parameters + layers * 9 * width * 8


@pytest.mark.parametrize(
    ("model", "share"), [("clip-vit-base-patch32", 770), ("roberta-large", 698)]
)
def test_upcycled_experts_multiply_the_model(model, share):
    found = report_of(model, "full_moe", {"num_experts": 8})
    np.testing.assert_allclose(
        100 * found.total_parameters / found.pretrained_parameters, share, rtol=0.021
    )


def test_the_models_are_as_large_as_in_transformers():
    sizes = {
        model: count(model, method_spec("lora")).pretrained_parameters
        for model in ("clip-vit-base-patch32", "llama-2-7b")
    }
    head = 768 * 2 + 2
    assert sizes == {"clip-vit-base-patch32": 87_456_000 + head, "llama-2-7b": 6_738_415_616}
