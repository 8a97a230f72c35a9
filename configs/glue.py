"""GLUE with RoBERTa, as in the paper's table 8.

    goat-jax train --config configs/glue.py:task=rte,method=goat --model.path FOLDER

Total rank 32, alpha 64, AdamW, 100 warm-up steps, cosine, dropout 0.05, batch 256, 10 epochs (RTE
50).
GOAT on RoBERTa-large there: CoLA 86.86, SST-2 96.21, MRPC 84.55, QQP 91.40, MNLI 89.55, QNLI 94.19,
RTE 85.56. Data comes from a folder (``folder=...``) or from tensorflow_datasets.
"""

from goat_jax.config import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks import make_task
from goat_jax.optim.optimizer import OptimizerConfig

TRAIN_ROWS = {
    "cola": 8551,
    "sst2": 67349,
    "mrpc": 3668,
    "qqp": 363846,
    "mnli": 392702,
    "qnli": 104743,
    "rte": 2490,
}
EPOCHS = {"rte": 50}


def get_config(
    task: str = "rte",
    method: str = "goat",
    model: str = "roberta-large",
    folder: str | None = None,
    batch: int = 256,
    dropout: float = 0.05,
    seed: int = 0,
) -> RunConfig:
    text = make_task(task, folder=folder)  # first: an unknown name is its error
    steps = EPOCHS.get(task, 10) * (TRAIN_ROWS[task] // batch)
    return RunConfig(
        model=ModelConfig(model, dtype="bfloat16"),
        task=text,
        adapter=AdapterConfig(
            method=method,
            targets=r".*encoder\.layer\..*",
            train=("classifier.dense", "classifier.out_proj"),
            total_rank=32,
            alpha=64.0,
            dropout=dropout,  # full fine-tuning and neat have none: dropout=0
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=min(100, steps // 10)),
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
