"""A tiny checkpoint, a tiny task and a config file: a whole run in seconds, without torch."""

import json
import random
from pathlib import Path

from flax import nnx

from goat_jax.models.encoder.model import Encoder, tiny_config
from hugging_face import write_weights

GOOD = ["fine", "bright", "warm", "sharp", "lovely"]
BAD = ["dull", "flat", "cold", "muddled", "weak"]
PLAIN = ["the", "film", "is", "a", "story", "about", "people", "and", "cities", "with", "songs"]


def write_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A random two-layer BERT in Hugging Face form, with a word-level tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *PLAIN]
    config = tiny_config(vocab_size=len(words), num_layers=2, hidden_size=32)
    model = Encoder(config, rngs=nnx.Rngs(seed))
    own = {
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
    }
    write_weights(folder, model, "bert", **own)
    write_tokenizer(folder, words)
    return folder


def write_tokenizer(folder: Path, words: list[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "model_max_length": 40,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_rows(path: Path, count: int, seed: int) -> Path:
    """Sentences with three telling words each."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        label = rng.randrange(2)
        words = rng.choices(PLAIN, k=rng.randrange(2, 9))
        words += rng.choices(GOOD if label else BAD, k=3)
        rng.shuffle(words)
        rows.append({"sentence": " ".join(words), "label": label})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CONFIG = """
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import files
from goat_jax.optim.optimizer import OptimizerConfig


def get_config(
    method="goat", steps=30, target_modules=r"bert\\.encoder\\..*", schedule="cosine", **none
):
    return RunConfig(
        model=ModelConfig({model!r}, options={{"pooling": "mean"}}),
        task=files({train!r}, {test!r}, labels=("bad", "good")),
        adapter=AdapterConfig(
            method=method, target_modules=target_modules,
            modules_to_save=("pooler.dense", "classifier"), dropout=0.05,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule=schedule, warmup_steps=3),
        train=TrainConfig(
            steps=steps, batch_size=16, max_length=24, num_buckets=1, eval_batch_size=32,
            eval_every=10, save_every=5, log_every=2,
        ),
        out="unused",
    )
"""


LIGHT = "target_modules=.*query,schedule=constant"
"""Options of the config: adapters in the query kernels alone, so that a step compiles soon; and a
constant rate, so that runs of other lengths have the same step."""
TWO = r"target_modules=.*(query|intermediate\.dense)"
"""An option of the config: adapters in two kinds of modules, of different shapes."""


def write_run(root: Path, train_rows: int = 160, test_rows: int = 40) -> Path:
    """Writes model/, train.jsonl, test.jsonl and config.py; returns the config's path."""
    model = write_checkpoint(root / "model")
    train = write_rows(root / "train.jsonl", train_rows, seed=1)
    test = write_rows(root / "test.jsonl", test_rows, seed=2)
    config = root / "config.py"
    config.write_text(CONFIG.format(model=str(model), train=str(train), test=str(test)))
    return config
