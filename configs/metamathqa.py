"""PEFT's method comparison: Llama-3.2-3B trained on MetaMathQA, evaluated on GSM8K.

    goat-jax train --config metamathqa:folder=FOLDER,questions=GSM8K,method=goat --model.path LLAMA
    goat-jax evaluate runs/metamathqa-goat-32

FOLDER contains MetaMathQA-395K.json, GSM8K train.* and test.* of GSM8K. As in
method_comparison/MetaMathQA of huggingface/peft: 5,000 steps of 4 rows of at most 1,300 characters
and 768 tokens, the loss on prompt and answer, AdamW, 1e-4, weight decay 0.1, cosine after a tenth
of warm-up, bfloat16, total rank 32, alpha 64, no dropout, adapters on q_proj and v_proj; greedy
answers of at most 300 tokens, read after "The answer is: " or "#### ". eta is the paper's for the
learning rate. Rows are shuffled here; there they come in the file's order.
`train/peft_comparison.py` measures forgetting, too, and writes PEFT's result file.
"""

from goat_jax.config.paper import llama_eta, method_sizes
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import make_task
from goat_jax.optim.optimizer import OptimizerConfig


def get_config(
    method: str = "goat",
    model: str = "meta-llama/Llama-3.2-3B",
    folder: str = "data/MetaMathQA",
    questions: str | None = None,
    rank: int = 32,
    steps: int = 5000,
    batch: int = 4,
    learning_rate: float = 1e-4,
    seed: int = 0,
) -> RunConfig:
    return RunConfig(
        model=ModelConfig(model, dtype="bfloat16"),
        task=make_task("metamathqa", folder=folder, questions=questions),
        adapter=AdapterConfig(
            method=method,
            target_modules=("q_proj", "v_proj"),
            modules_to_save=(),
            defaults={"eta": llama_eta(learning_rate)},
            **method_sizes(method, rank, 2.0 * rank, dropout=0.0),
        ),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate, weight_decay=0.1, warmup_steps=steps // 10
        ),
        train=TrainConfig(
            steps=steps,
            batch_size=batch,
            max_length=768,
            eval_batch_size=50,
            eval_every=max(1, steps // 20),
            save_every=max(1, steps // 20),
            seed=seed,
        ),
        out=f"runs/metamathqa-{method}-{rank}",
    )
