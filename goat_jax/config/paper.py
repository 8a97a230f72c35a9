"""The paper's settings for the methods: sizes, eta, peak learning rate.

Source: "Make LoRA Great Again", arXiv 2502.16894 v4, its tables of hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from goat_jax.adapters.methods import method_spec
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import Task
from goat_jax.errors import UserError
from goat_jax.optim.optimizer import OptimizerConfig


def llama_eta(learning_rate: float) -> float:
    """Returns the paper's eta for LLaMA: 0.1 at learning rates around 1e-4, 1 around 1e-5.

    A learning rate in between gets the eta of the nearer one on a logarithmic scale.

    >>> llama_eta(1e-4), llama_eta(5e-5), llama_eta(2e-5)
    (0.1, 0.1, 1.0)
    """
    return 0.1 if learning_rate**2 > 1e-4 * 1e-5 else 1.0


def peak_rate(method: str, adapters: float, full: float) -> float:
    """Returns the peak learning rate of a method: `full` for full fine-tuning, else `adapters`.

    Args:
        method: a key of `METHODS`.
        adapters: the learning rate of the paper's hyperparameter tables.
        full: the learning rate of full fine-tuning, with or without experts.

    >>> [peak_rate(name, 1e-4, 1e-5) for name in ("goat", "full", "full_moe")]
    [0.0001, 1e-05, 1e-05]
    """
    return full if method_spec(method).combine.layout == "kernels" else adapters


def llama_config(
    task: Task,
    method: str,
    model: str,
    *,
    rank: int,
    steps: int,
    batch: int,
    grad_accum_steps: int,
    max_length: int,
    learning_rate: float,
    dropout: float,
    seed: int,
    **adapter: Any,
) -> RunConfig:
    """Returns the paper's run of a LLaMA on a language task.

    Args:
        task: the task to train on.
        method: a key of `METHODS`.
        model: a checkpoint folder, or a name on the hub.
        rank: the total rank; alpha is twice as large.
        steps: the number of optimizer steps.
        batch: the number of rows of a step.
        grad_accum_steps: the number of parts that a step's batch is computed in.
        max_length: the number of tokens that a row is truncated to.
        learning_rate: the peak learning rate, which also decides eta.
        dropout: the dropout rate on the adapter's input.
        seed: the seed of everything random.
        adapter: further fields of `AdapterConfig`.
    """
    return RunConfig(
        model=ModelConfig(model, dtype="bfloat16", remat="full"),
        task=task,
        adapter=AdapterConfig(
            method=method,
            modules_to_save=(),
            defaults={"eta": llama_eta(learning_rate)},
            **method_sizes(method, rank, 2.0 * rank, dropout),
            **adapter,
        ),
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=100),
        train=TrainConfig(
            steps=steps,
            batch_size=batch,
            grad_accum_steps=grad_accum_steps,
            max_length=max_length,
            eval_batch_size=16,
            eval_every=max(1, steps // 10),
            save_every=max(1, steps // 20),
            seed=seed,
        ),
        out=f"runs/{task.name}-{method}-{rank}-{seed}",
    )


def method_sizes(method: str, rank: int, alpha: float, dropout: float) -> dict[str, Any]:
    """Returns the sizes in `AdapterConfig` for a method at the paper's rank, alpha and dropout.

    Most methods use these values unchanged. Methods that replace or change the kernel cannot use
    dropout, some published numbers of experts do not divide the rank, and AdaLoRA starts with a
    larger rank. The paper runs two methods with other settings than their authors: AdaMoLE with 8
    experts, and HydraLoRA with 8 experts of which 2 are active, and the balance loss.

    Args:
        method: a key of `METHODS`.
        rank: the total rank.
        alpha: LoRA's alpha.
        dropout: the dropout rate on the adapter's input.

    Raises:
        UserError: a method that cannot be trained on a single task.

    >>> method_sizes("neat", 8, 16.0, 0.05)["dropout"]
    0.0
    >>> method_sizes("adalora", 8, 16.0, 0.05)["total_rank"]
    12
    """
    sizes = {"total_rank": rank, "alpha": alpha, "dropout": dropout}
    return sizes | (_OTHER[method](rank) if method in _OTHER else {})


def _no_dropout(rank: int) -> dict[str, Any]:
    return {"dropout": 0.0}


def _eight_experts(rank: int) -> dict[str, Any]:
    return {"num_experts": 8}


def _two_of_eight_experts(rank: int) -> dict[str, Any]:
    options = {"router": "top_k", "aux_loss": "balance"}
    return {"num_experts": 8, "top_k": 2, "options": options}


def _pruned_to(rank: int) -> dict[str, Any]:
    return {"total_rank": rank * 3 // 2, "options": {"target_rank": rank}}


def _needs_tasks(rank: int) -> dict[str, Any]:
    raise UserError(
        "moelora weights experts by the task of each row, and this run has one task: "
        "use molora, or give rows of several tasks and name their column with --task.task-id"
    )


_OTHER: Mapping[str, Callable[[int], dict[str, Any]]] = MappingProxyType(
    {
        "full": _no_dropout,
        "full_moe": _no_dropout,
        "neat": _no_dropout,
        "adalora": _pruned_to,
        "adamole": _eight_experts,
        "hydralora": _two_of_eight_experts,
        "multilora": _eight_experts,
        "molora_soft": _eight_experts,
        "moelora": _needs_tasks,
    }
)
"""Sizes that differ from the common ones: method -> function of the total rank."""
