"""GLUE with RoBERTa-large, as in the paper's table: every task with every method.

    goat-jax data prepare rte
    goat-jax train --config glue:task=rte,method=goat --model.path FOLDER

Without ``--model.path`` RoBERTa-large comes from the Hugging Face hub. ``folder=FOLDER`` reads the
rows from files instead of tensorflow_datasets (FOLDER/rte/train.jsonl, validation.jsonl).

As in table 4 of the paper and its published script: total rank 32, alpha 64 (the paper's table 11
prints rank 8, alpha 16: ``rank=8``), 8 experts, 2 of them active, AdamW, 1e-4 (full fine-tuning
1e-5, as in the script), cosine, 100 warm-up steps, dropout 0.05, batch 256, 10 epochs (RTE 50), at
most 128 tokens, eta 1. RoBERTa's model dropout (0.1) is on, as in transformers' Trainer;
``--model.dropout 0`` turns it off.
Expected accuracy of GOAT (percent, from the paper, at the last step): CoLA 86.86, SST-2 96.21,
MRPC 84.55, QQP 91.40, MNLI 89.55 (matched and mismatched together), QNLI 94.19, RTE 85.56. For the
other methods see ``GLUE_SCORES`` in train/reproduction/published_scores.py. This project includes
no run at this size.
"""

from goat_jax.config.paper import method_sizes, peak_rate
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import make_task
from goat_jax.injection.targets import TASK_HEAD
from goat_jax.optim.optimizer import OptimizerConfig

TRAIN_ROWS = {
    "cola": 8551,
    "sst2": 67349,
    "mrpc": 3668,
    "qqp": 363846,
    "mnli": 392702,
    "qnli": 104743,
    "rte": 2490,
    "stsb": 5749,
}
EPOCHS = {"rte": 50}


def get_config(
    task: str = "rte",
    method: str = "goat",
    model: str = "roberta-large",
    folder: str | None = None,
    data_dir: str | None = None,
    rank: int = 32,
    batch: int = 256,
    learning_rate: float | None = None,
    dropout: float = 0.05,
    seed: int = 0,
) -> RunConfig:
    text = make_task(task, folder=folder, data_dir=data_dir)  # first: reports an unknown name
    steps = EPOCHS.get(task, 10) * (TRAIN_ROWS[task] // batch)
    rate = peak_rate(method, adapters=1e-4, full=1e-5) if learning_rate is None else learning_rate
    return RunConfig(
        model=ModelConfig(model, dtype="bfloat16", dropout="checkpoint"),
        task=text,
        adapter=AdapterConfig(
            method=method,
            modules_to_save=(TASK_HEAD,),
            **method_sizes(method, rank, 2.0 * rank, dropout),
        ),
        optimizer=OptimizerConfig(learning_rate=rate, warmup_steps=100),
        train=TrainConfig(
            steps=steps,
            batch_size=batch,
            max_length=128,
            eval_every=max(1, steps // 20),
            save_every=max(1, steps // 20),
            seed=seed,
        ),
        out=f"runs/{task}-{method}",
    )
