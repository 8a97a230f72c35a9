"""Grade-school mathematics with SmolLM2-135M: lowers the perplexity of worked answers.

    goat-jax train --config gsm8k --out runs/gsm8k
    goat-jax train --config gsm8k:folder=data/gsm8k     (train.jsonl and test.jsonl)

The weights come from a pip package (93 MB), the rows from tensorflow_datasets or from a folder. Any
Llama, Qwen2, Qwen3 or Mistral checkpoint can replace SmolLM2: ``--model.path FOLDER``.
"""

from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import gsm8k
from goat_jax.optim.optimizer import OptimizerConfig


def get_config(
    method: str = "goat",
    rank: int = 16,
    steps: int = 60,
    folder: str | None = None,
    rows: int = 100,
    seed: int = 0,
) -> RunConfig:
    return RunConfig(
        model=ModelConfig("package:smollm2"),
        task=gsm8k(folder, evaluation_limit=rows),
        # dropout costs time and has no benefit in so short a run
        adapter=AdapterConfig(method=method, total_rank=rank, modules_to_save=(), dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=steps // 10),
        train=TrainConfig(
            steps=steps,
            batch_size=4,
            max_length=256,
            eval_batch_size=4,
            eval_every=max(1, steps // 2),
            save_every=max(1, steps // 2),
            log_every=5,
            seed=seed,
        ),
        out="runs/gsm8k",
    )
