"""Chat with LLaMA-2-7B, as in the paper: trained on WizardLM, evaluated on MT-Bench by a judge.

    goat-jax train --config chat:folder=FOLDER,method=goat --model.path LLAMA
    goat-jax evaluate runs/wizardlm-goat-8-0 --judge https://HOST/v1 --judge-model NAME \\
        --judge-key FILE --judge-prompts judge_prompts.jsonl --references gpt-4.jsonl

FOLDER contains WizardLM_evol_instruct_70k.json; ``questions=`` names MT-Bench's question.jsonl or
its folder. 52,000 answers that are not refusals are used. Judge prompts and references are
FastChat's files.

As published: total rank 8, alpha 16, 8 experts, 2 of them active, AdamW, 2e-5, cosine, 100 warm-up
steps, dropout 0.05, batch 32, 5 epochs, at most 1024 tokens, eta 1 (0.1 at learning rates around
1e-4); full fine-tuning at 1e-5. ``learning_rate=RATE`` sets the learning rate and the matching eta.
Expected grade on MT-Bench (1 to 10, from the paper, judged by GPT-4):

    method    full  lora  dora  pissa milora molora hydralora goat
    MT-Bench  5.56  5.61  5.97  5.30  5.23   5.84   5.82      6.01

This project includes no run at this size.
"""

from goat_jax.config.paper import llama_config, peak_rate
from goat_jax.config.run import RunConfig
from goat_jax.data.tasks.registry import make_task

TRAIN_ROWS = 52_000


def get_config(
    task: str = "wizardlm",
    method: str = "goat",
    model: str = "meta-llama/Llama-2-7b-hf",
    folder: str = "data/WizardLM",
    questions: str = "data/mt_bench",
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
