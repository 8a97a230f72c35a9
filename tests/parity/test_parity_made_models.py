"""Model runs written here by transformers and torch, of families and settings golden/ lacks."""

from pathlib import Path

import pytest

from goat_jax.parity.report import main
from parity_runs import block, write_run
from tiers import first_of_each

RUNS = {
    "bert_linear": ("bert", block("bert"), {"schedule": "linear with warm-up", "num_experts": 2}),
    "bert_pooler": (
        "bert",
        [*block("bert", [1]), "bert.pooler.dense"],
        {"init_type": "goat_mini", "schedule": "constant", "warmup": 0, "clip": None, "labels": 2},
    ),
    "distilbert_lora": (
        "distilbert",
        block("distilbert"),
        {"init_type": "lora", "num_experts": 8, "top_k": 3,
         "train_extra": ["pre_classifier", "classifier"]},
    ),
    "distilbert_theory": (
        "distilbert",
        block("distilbert"),
        {"init_type": "pissa_scale", "eta": 0.1, "train_extra": ["classifier"]},
    ),
    "roberta_regression": (
        "roberta",
        block("roberta"),
        {"init_type": "milora", "top_k": 1, "labels": 1, "aux_coef": 0.01},
    ),
    "roberta_frozen_head": (
        "roberta",
        block("roberta"),
        {"init_type": "pissa", "top_k": 4, "train_extra": [], "alpha": 5},
    ),
    "roberta_single": (
        "roberta",
        block("roberta"),
        {"init_type": "goat", "num_experts": 1, "top_k": 1, "rank": 4, "rho": 3.0},
    ),
    "modernbert_thirty_steps": (
        "modernbert",
        block("modernbert", range(3)),
        {"steps": 30, "train_extra": ["head", "classifier"]},
    ),
    "qwen3_thirty_steps": ("qwen3", block("qwen3"), {"steps": 30, "train_extra": []}),
    "mixtral_thirty_steps": ("mixtral", block("mixtral"), {"steps": 30, "train_extra": []}),
}  # fmt: skip


def only_here(name):
    """Traits that the golden runs lack; made layers try the starts, a changed run the settings."""
    _, _, options = RUNS[name]
    return ["regression"] if options.get("labels") == 1 else []


@pytest.mark.parametrize("name", first_of_each(RUNS, only_here))
def test_a_made_model_run_passes(name: str, tmp_path: Path, published_linear, make_scale, capsys):
    family, modules, options = RUNS[name]
    folder = write_run(tmp_path / name, family, modules, published_linear, make_scale, **options)
    code = main([folder])
    assert code == 0, capsys.readouterr().out
