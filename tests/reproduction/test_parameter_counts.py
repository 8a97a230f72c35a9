"""The "# Params (%)" columns of the paper's tables, from the models' configs alone.

The paper does not say what it divides by. Its figures for one model fit one divisor, which is up to
1.6% off the number of parameters that transformers counts (CLIP's vision tower: 88.8 million there,
87.46 here; RoBERTa-large 353.9 and 355.4), and some are cut, not rounded. So sizes are asserted
exactly, by the paper's own formulas, and shares to 2% of what is printed.
"""

import json

import pytest

from goat_jax.adapters.methods import method_spec
from goat_jax.data.tasks.benchmarks.commonsense import FOLDERS
from goat_jax.training.abstract_run import count
from reproduction.experiments import EXPERIMENTS
from reproduction.sweep import PaperRun

PRINTED = {
    "table1": {
        "full": 100, "full_moe": 770, "lora": 1.49, "lora@16": 2.99, "lora@32": 5.98,
        "dora": 1.49, "pissa": 1.49, "milora": 1.49, "molora": 2.24, "adamole": 2.33,
        "hydralora": 1.58, "goat": 2.24,
    },
    "table3": {
        "lora": 0.84, "dora": 0.84, "pissa": 0.84, "milora": 0.84, "lora_dash": 0.84,
        "neat": 0.84, "kasa": 0.84, "molora": 0.96, "hydralora": 0.84, "goat": 0.96,
    },
    "table4": {
        "full": 100, "full_moe": 698, "lora": 4.00, "dora": 4.00, "pissa": 4.00, "milora": 4.00,
        "rslora": 4.00, "molora": 4.50, "adamole": 4.56, "hydralora": 2.75, "goat": 4.50,
    },
}  # fmt: skip
EXCEPTIONS = {
    ("table1", "dora"): (1.612, "printed as LoRA's, without the magnitudes, one per output"),
    ("table1", "hydralora"): (1.612, "2.04% off: the larger divisor gives 1.588, printed cut"),
    ("table3", "molora"): (0.937, "no one choice of targets gives 0.96 and 0.84"),
    ("table3", "goat"): (0.937, "no one choice of targets gives 0.96 and 0.84"),
    ("table3", "hydralora"): (0.572, "0.84 is its share on all seven projections"),
}
"""Rows that are not within 2% of the printed share: what they are, and why."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Commonsense170K and its eight sets by name, without rows."""
    root = tmp_path_factory.mktemp("files")
    for parts in FOLDERS.values():
        (root / parts[0]).mkdir()
        (root / parts[0] / "test.json").write_text("[]")
    (root / "commonsense_170k.json").write_text(json.dumps([]))
    return root


def config_of_row(table, label, files):
    """The config that the table's program trains a row with."""
    experiment = EXPERIMENTS[table]
    options = f"folder={files}" if table == "table3" else ""
    return PaperRun(experiment.tasks[0], label, 0).config(options)


@pytest.mark.slow
def test_shares_of_every_row_are_the_printed_ones(files):
    rows = {table: EXPERIMENTS[table].rows for table in PRINTED}
    off = {}
    for table, printed in PRINTED.items():
        assert list(printed) == list(rows[table]) and len(printed) >= 10
        for label, share in printed.items():
            config = config_of_row(table, label, files)
            found = count(config.model.path, config.adapter.spec(), config.adapter.target_modules)
            own = 100 * found.trained_parameters / found.pretrained_parameters
            if abs(own / share - 1) > 0.02:
                off[table, label] = own
    assert off.keys() == EXCEPTIONS.keys(), off
    for row, own in off.items():
        assert own == pytest.approx(EXCEPTIONS[row][0], abs=6e-4), row


def test_mixtures_on_llama_2_7b_are_not_of_one_set_of_targets(files):
    """Table 3 has 0.96 for GOAT and MoLoRA, 0.84 for HydraLoRA: what no one choice gives.

    On five projections they are 0.94 and 0.57, on all seven 1.32 and 0.85.
    """
    five = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
    found = {
        (name, len(targets)): 100 * count("llama-2-7b", adapter.spec(), targets).adapter_share
        for name in ("goat", "molora", "hydralora")
        for adapter in [config_of_row("table3", name, files).adapter]
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
    lora, goat = (count(model, method_spec(name, total_rank=rank)) for name in ("lora", "goat"))
    assert lora.adapter_parameters == layers * 18 * width * rank
    assert goat.adapter_parameters == lora.adapter_parameters + layers * 9 * width * 8


def test_the_models_are_as_large_as_in_transformers():
    sizes = {
        model: count(model, method_spec("lora")).pretrained_parameters
        for model in ("clip-vit-base-patch32", "llama-2-7b")
    }
    head = 768 * 2 + 2
    assert sizes == {"clip-vit-base-patch32": 87_456_000 + head, "llama-2-7b": 6_738_415_616}
