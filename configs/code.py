"""Code with LLaMA-2-7B, as in the paper: trained on CodeFeedback, evaluated on HumanEval.

    goat-jax train --config code:folder=FOLDER,method=goat --model.path LLAMA
    goat-jax evaluate runs/codefeedback-goat-8-0 --run-programs

FOLDER contains CodeFeedback-Filtered-Instruction.jsonl; ``questions=`` names HumanEval's file or
its folder. 100,000 answers with code are used, evenly spaced, each up to the end of its first code
block. The second command runs the programs that the model writes in the sandbox
(`goat_jax.evaluation.sandbox`).

As published: total rank 8, alpha 16, 8 experts, 2 of them active, AdamW, 2e-5, cosine, 100 warm-up
steps, dropout 0.05, batch 32, 5 epochs, at most 1024 tokens, eta 1 (0.1 at learning rates around
1e-4); full fine-tuning at 1e-5. ``learning_rate=RATE`` sets the learning rate and the matching eta.
Expected pass@1 on HumanEval (percent, from the paper; it samples answers, here they are greedy):

    method     full   lora   dora   pissa  milora molora hydralora goat
    HumanEval  35.31  21.34  19.75  19.52  19.51  24.83  24.21     25.61

This project includes no run at this size.
"""

from goat_jax.config.paper import llama_config, peak_rate
from goat_jax.config.run import RunConfig
from goat_jax.data.tasks.registry import make_task

TRAIN_ROWS = 100_000


def get_config(
    task: str = "codefeedback",
    method: str = "goat",
    model: str = "meta-llama/Llama-2-7b-hf",
    folder: str = "data/CodeFeedback",
    questions: str = "data/humaneval",
    rank: int = 8,
    batch: int = 32,
    grad_accum_steps: int = 1,
    learning_rate: float | None = None,
    dropout: float = 0.05,
    seed: int = 0,
) -> RunConfig:
    rate = peak_rate(method, adapters=2e-5, full=1e-5)
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
