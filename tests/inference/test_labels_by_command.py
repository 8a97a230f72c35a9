"""Labels on a Llama and on ModernBERT by command: trained, scored, predicted, and as in torch."""

import json

import numpy as np
import pytest
import torch
import transformers

from goat_jax.cli.main import main
from goat_jax.data.sources.formats import read_jsonl
from random_torch import randomized
from tiny_language import WORDS
from tiny_run import BAD, GOOD, PLAIN, write_tokenizer
from tiny_torch_decoders import write_decoder

pytestmark = pytest.mark.nightly


def write_llama(folder):
    write_decoder(folder, "llama")
    return WORDS[3:]


def write_modernbert(folder):
    words = [*GOOD, *BAD, *PLAIN]
    config = transformers.AutoConfig.for_model(
        "modernbert",
        **{"vocab_size": 4 + len(words), "hidden_size": 32, "intermediate_size": 48},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "local_attention": 8},
        **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
        **{"cls_token_id": 2, "sep_token_id": 3, "max_position_embeddings": 64},
    )
    folder.mkdir()
    randomized(lambda: transformers.AutoModelForMaskedLM.from_config(config)).save_pretrained(
        folder
    )
    write_tokenizer(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])
    return words


def regression(text, words):
    return {"text": " ".join(text), "score": len(text) / 4 + 0.1}


def several(text, words):
    labels = [name for n, name in enumerate("abc") if {*text} & {*words[n::3]}]
    return {"text": " ".join(text), "labels": labels}


def tags(text, words):
    return {"tokens": text, "tags": ["B-X" if word in words[:5] else "O" for word in text]}


TEXTS = transformers.AutoModelForSequenceClassification
TAGS = transformers.AutoModelForTokenClassification
CASES = {
    "regression, llama": (write_llama, regression, TEXTS, "pearson"),
    "regression, modernbert": (write_modernbert, regression, TEXTS, "pearson"),
    "several, modernbert": (write_modernbert, several, TEXTS, "micro_f1"),
    "tags, llama": (write_llama, tags, TAGS, "entity_f1"),
}


def predictions(folder, auto, rows):
    """Returns the predictions of transformers' model, as a prediction file has them."""
    model, tokenizer = (
        auto.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    found = []
    for row in rows:
        split = "tokens" in row
        words = row["tokens"] if split else row["text"]
        inputs = tokenizer(words, is_split_into_words=split, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            logits = model.eval()(**inputs).logits[0].numpy()
        names = model.config.id2label
        if split:
            found.append([names[number] for number in logits.argmax(-1)])
        elif model.config.problem_type == "multi_label_classification":
            found.append([names[number] for number in np.flatnonzero(logits > 0)])
        else:
            found.append(float(logits[0]))
    return found


@pytest.mark.parametrize("case", CASES)
def test_labels_by_command(case, tmp_path, capsys):
    write, row_of, auto, metric = CASES[case]
    words, rng = write(tmp_path / "model"), np.random.default_rng(0)
    texts = [rng.choice(words, rng.integers(3, 9)).tolist() for _ in range(40)]
    rows, data = [row_of(text, words) for text in texts], tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, out = str(tmp_path / "run"), tmp_path / "predicted.jsonl"
    train = ["train", "--model", str(tmp_path / "model"), "--data", str(data), "--out", run]
    sizes = ["--train.steps", "4", "--train.batch-size", "8", "--optimizer.learning-rate", "0.03"]
    assert main([*train, "--adapter.method", "lora", *sizes, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["evaluate", run]) == 0
    assert metric in capsys.readouterr().out
    assert main(["predict", run, "--data", str(data), "--out", str(out), "--quiet"]) == 0
    assert main(["export", run, str(tmp_path / "hf"), "--to", "merged"]) == 0
    ours = [row["prediction"] for row in read_jsonl(out)]
    theirs = predictions(tmp_path / "hf", auto, rows)
    if isinstance(theirs[0], float):
        assert np.std(theirs) > 1e-3
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    else:
        assert ours == theirs and any(theirs)
