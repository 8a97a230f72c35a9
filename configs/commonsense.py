"""Commonsense reasoning with LLaMA-2-7B, as in the paper: trained jointly, evaluated on each set.

    goat-jax train --config commonsense:folder=FOLDER,method=goat --model.path LLAMA
    goat-jax evaluate runs/commonsense170k-goat-32-0

FOLDER is LLM-Adapters' dataset folder with commonsense_170k.json in it. The second command prints
all eight scores and their average, by generated answer (``--scoring likelihood``: by the likeliest
option). ``task=arc_easy`` (or any of the eight) trains on the rows of that set; ``cloze=true``
asks the bare question, and its answer is the text of an option.

As published: total rank 32, alpha 64, 8 experts, 2 of them active, AdamW, 1e-4, cosine, 100 warm-up
steps, dropout 0.05, batch 16, 3 epochs, eta 0.1 (full fine-tuning then at 1e-5).
``learning_rate=RATE`` sets the learning rate and the matching eta. Expected accuracy of GOAT
(percent, from the paper):

    BoolQ 73.60  PIQA 83.95  SIQA 80.50  HellaSwag 87.12  WinoGrande 85.00
    ARC-e 87.79  ARC-c 76.88  OBQA 87.00  average 82.73

For the other methods see ``COMMONSENSE_SCORES`` in train/reproduction/published_scores.py. This
project includes no run at this size.
"""

from goat_jax.config.paper import llama_config, peak_rate
from goat_jax.config.run import RunConfig
from goat_jax.data.tasks.registry import make_task

TRAIN_ROWS = {
    "commonsense170k": 170420 - 120,
    "boolq": 9427,
    "piqa": 16113,
    "siqa": 33410,
    "hellaswag": 39905,
    "winogrande": 63238,
    "arc_easy": 2251,
    "arc_challenge": 1119,
    "obqa": 4957,
}
TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
"""Target modules of LLM-Adapters; the parameter shares in the paper match them."""


def get_config(
    task: str = "commonsense170k",
    method: str = "goat",
    model: str = "meta-llama/Llama-2-7b-hf",
    folder: str | None = None,
    cloze: bool = False,
    rank: int = 32,
    batch: int = 16,
    grad_accum_steps: int = 1,
    learning_rate: float | None = None,
    dropout: float = 0.05,
    seed: int = 0,
) -> RunConfig:
    # first: reports an unknown name
    eval_task = make_task(task, folder=folder, packing=False, cloze=cloze)
    rate = peak_rate(method, adapters=1e-4, full=1e-5)
    return llama_config(
        eval_task,
        method,
        model,
        rank=rank,
        steps=3 * (TRAIN_ROWS[task] // batch),
        batch=batch,
        grad_accum_steps=grad_accum_steps,
        max_length=256,
        learning_rate=rate if learning_rate is None else learning_rate,
        dropout=dropout,
        seed=seed,
        target_modules=TARGETS,
    )
