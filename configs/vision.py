"""Image classification with CLIP ViT-B/32, as in the paper's table: every set with every method.

    goat-jax data prepare dtd
    goat-jax train --config vision:task=dtd,method=goat --model.path FOLDER

Without ``--model.path`` CLIP comes from the Hugging Face hub. ``folder=FOLDER`` reads the images
from files instead of tensorflow_datasets (FOLDER/train/CLASS/*.jpg, FOLDER/test/CLASS/*.jpg).
Tasks: cars, dtd, eurosat, gtsrb, resisc45, sun397, svhn (splits: data/tasks/benchmarks/vision.py).

As published: total rank 8, alpha 16, 8 experts, 2 of them active, AdamW, 1e-4, cosine, 100 warm-up
steps, dropout 0.05, batch 512, the epochs below, eta 1. The head compares an image with "a photo of
a CLASS" and is frozen, as the paper says. The published code trains a new linear head on the mean
of the patches instead: ``head=linear``. ``train_head=true`` trains the head of class names.
Expected accuracy of GOAT (percent, from the paper, at the last step): Cars 53.50, DTD 75.32,
EuroSAT 98.82, GTSRB 98.17, RESISC45 93.46, SUN397 54.53, SVHN 96.62. For the other methods see
``VISION_SCORES`` in train/reproduction/published_scores.py. This project includes no run at this
size.
"""

from goat_jax.config.paper import method_sizes, peak_rate
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.benchmarks.vision import VISION
from goat_jax.data.tasks.registry import make_task
from goat_jax.injection.targets import TASK_HEAD
from goat_jax.optim.optimizer import OptimizerConfig

EPOCHS = {
    "cars": 35,
    "dtd": 76,
    "eurosat": 12,
    "gtsrb": 11,
    "resisc45": 15,
    "sun397": 14,
    "svhn": 4,
}


def get_config(
    task: str = "dtd",
    method: str = "goat",
    model: str = "openai/clip-vit-base-patch32",
    folder: str | None = None,
    data_dir: str | None = None,
    rank: int = 8,
    batch: int = 512,
    learning_rate: float | None = None,
    dropout: float = 0.05,
    head: str = "zero_shot",
    train_head: bool = False,
    seed: int = 0,
) -> RunConfig:
    images = make_task(task, folder=folder, data_dir=data_dir)  # first: reports an unknown name
    steps = EPOCHS[task] * (VISION[task].rows[0] // batch)
    rate = peak_rate(method, adapters=1e-4, full=1e-4) if learning_rate is None else learning_rate
    return RunConfig(
        model=ModelConfig(model, dtype="bfloat16", options={"head": head}),
        task=images,
        adapter=AdapterConfig(
            method=method,
            modules_to_save=(TASK_HEAD,) if train_head or head == "linear" else (),
            **method_sizes(method, rank, 2.0 * rank, dropout),
        ),
        optimizer=OptimizerConfig(learning_rate=rate, warmup_steps=100),
        train=TrainConfig(
            steps=steps,
            batch_size=batch,
            eval_batch_size=batch,
            eval_every=max(1, steps // 10),
            save_every=max(1, steps // 10),
            seed=seed,
        ),
        out=f"runs/{task}-{method}",
    )
