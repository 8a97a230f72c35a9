"""Several labels a row, and tags of words: from a file to predictions and scores."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from goat_jax.cli.main import main
from goat_jax.data.sources.formats import read_jsonl
from tiny_run import BAD, GOOD, write_checkpoint

FIELDS = {
    "adapter.method": "lora",
    "adapter.total-rank": 4,
    "adapter.target-modules": ".*query",
    "adapter.dropout": 0,
    "optimizer.learning-rate": 0.03,
    "optimizer.schedule": "constant",
    "train.batch-size": 12,
    "train.eval-batch-size": 8,
    "train.num-buckets": 1,
    "train.max-length": 16,
    "train.steps": 16,
}


def run(folder, data, *more):
    """Trains on a file, predicts and scores it, and returns the rows of the scored file."""
    fields = [word for name, value in FIELDS.items() for word in (f"--{name}", str(value))]
    out, model = str(folder / "run"), str(write_checkpoint(folder / "model"))
    start = ["train", "--model", model, "--data", str(data), "--out", out, "--quiet"]
    assert main([*start, *fields, *more]) == 0
    predicted, scored = folder / "predicted.jsonl", folder / "scored.jsonl"
    assert main(["predict", out, "--data", str(data), "--out", str(predicted), "--quiet"]) == 0
    score = ["evaluate", out, "--data", str(data), "--out", str(scored), "--quiet"]
    assert main(score) == 0
    rows = read_jsonl(scored)
    assert [row["prediction"] for row in rows] == [
        row["prediction"] for row in read_jsonl(predicted)
    ]
    return rows


@pytest.mark.nightly
def test_several_labels_a_row(tmp_path):
    data = tmp_path / "topics.csv"
    texts = {"bright": "good", "dull": "bad", "bright dull": "good; bad", "film": ""}
    lines = [f"the {text} story,{topics}" for text, topics in texts.items()]
    data.write_text("\n".join(["text,topics", *lines * 6]) + "\n")
    rows = run(tmp_path, data, "--task.separator", ";")
    assert [row["expected"] for row in rows[:4]] == [["good"], ["bad"], ["bad", "good"], []]
    assert [row["prediction"] for row in rows] == [row["expected"] for row in rows]

    assert main(["export", str(tmp_path / "run"), str(tmp_path / "hf"), "--to", "merged"]) == 0
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
    assert theirs.config.problem_type == "multi_label_classification"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        shares = torch.sigmoid(theirs(**batch).logits).numpy()
    ours = [[row["probability_bad"], row["probability_good"]] for row in rows]
    np.testing.assert_allclose(ours, shares, atol=1e-5)


@pytest.mark.nightly
def test_a_tag_for_each_word(tmp_path):
    data = tmp_path / "names.jsonl"
    words = [f"{GOOD[n % 5]}-{BAD[n % 4]}" for n in range(12)]  # three tokens each
    names = [["the", word, "is", "people", "cities"][: 5 - n % 3] for n, word in enumerate(words)]
    tags = [["O", "B-ONE", "I-ONE", "O", "B-TWO"][: len(row)] for row in names]
    lines = [
        json.dumps({"tokens": row, "ner_tags": marks}) + "\n"
        for row, marks in zip(names, tags, strict=True)
    ]
    data.write_text("".join(lines * 2))
    rows = run(tmp_path, data)
    assert [row["expected"] for row in rows] == tags * 2
    assert [row["prediction"] for row in rows] == tags * 2
