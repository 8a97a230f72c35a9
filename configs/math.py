"""Mathematics with LLaMA-2-7B, as in the paper: trained on MetaMathQA, evaluated on GSM8K.

    goat-jax train --config math:folder=FOLDER,method=goat --model.path LLAMA
    goat-jax evaluate runs/metamath-goat-8-0

FOLDER contains MetaMathQA-395K.json; ``questions=`` names GSM8K's test file or its folder
(tensorflow_datasets if not given). Of the rows made from GSM8K, 100,000 are used, evenly spaced.
``accuracy_strict`` reads an answer as the paper's script does, by the integer after the first
"####".

As published: total rank 8, alpha 16, 8 experts, 2 of them active, AdamW, 2e-5, cosine, 100 warm-up
steps, dropout 0.05, batch 32, 5 epochs, at most 1024 tokens, eta 1 (0.1 at learning rates around
1e-4); full fine-tuning at the same learning rate. ``learning_rate=RATE`` sets the learning rate and
the matching eta.
Expected exact match on GSM8K (percent, from the paper; it samples answers, here they are greedy):

    method  full   lora   dora   pissa  milora molora hydralora goat
    GSM8K   59.36  52.84  54.59  55.42  54.44  56.63  57.39     60.20

At a learning rate of 1e-5 GOAT reaches 58.74 in the paper, at 5e-5 62.05. This project includes no
run at this size.
"""

from goat_jax.config.paper import llama_config, peak_rate
from goat_jax.config.run import RunConfig
from goat_jax.data.tasks.registry import make_task

TRAIN_ROWS = 100_000


def get_config(
    task: str = "metamath",
    method: str = "goat",
    model: str = "meta-llama/Llama-2-7b-hf",
    folder: str = "data/MetaMathQA",
    questions: str | None = None,
    rank: int = 8,
    batch: int = 32,
    grad_accum_steps: int = 1,
    learning_rate: float | None = None,
    dropout: float = 0.05,
    seed: int = 0,
) -> RunConfig:
    rate = peak_rate(method, adapters=2e-5, full=2e-5)
    return llama_config(
        make_task(task, folder=folder, questions=questions, packing=False),
        method,
        model,
        rank=rank,
        steps=5 * (TRAIN_ROWS // batch),
        batch=batch,
        grad_accum_steps=grad_accum_steps,
        max_length=1024,
        learning_rate=rate if learning_rate is None else learning_rate,
        dropout=dropout,
        seed=seed,
    )
