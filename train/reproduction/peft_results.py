"""Result files in the form of PEFT's method comparison (method_comparison/MetaMathQA)."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import mean
from typing import Any

import jax

from goat_jax.config.fields import flatten
from goat_jax.config.run import RunConfig
from goat_jax.data.tasks.evaluation import EvalTask
from goat_jax.errors import UserError
from goat_jax.files import read_json
from goat_jax.text_tables import render_table

COLUMNS = {
    "test accuracy": "test accuracy",
    "forgetting": "forgetting",
    "train loss": "train loss",
    "train_time": "train s",
    "accelerator_memory_max": "memory, GiB",
    "num_trainable_params": "trained",
}
"""Field of a result file -> its column in the table."""


def result_file(
    config: RunConfig,
    records: Sequence[Mapping[str, Any]],
    scores: Mapping[str, float],
    *,
    name: str,
    created: str,
    seconds: float,
    trained: int,
    total: int,
) -> dict[str, Any]:
    """Returns the content of a result file.

    Args:
        config: the run's config.
        records: the records of the run's metrics log.
        scores: "accuracy", and "forgetting" if it was measured.
        name: the experiment's name.
        created: the time at which it began, in ISO format.
        seconds: the time that everything took.
        trained: the number of trained parameters.
        total: the number of all parameters.
    """
    steps = [record for record in records if record["kind"] == "train"]
    peaks = [each["device_peak_bytes"] for each in steps if "device_peak_bytes" in each]
    metrics = _metrics(config, steps)
    last = {"step": config.train.total_steps, "test accuracy": scores["accuracy"]}
    more = {"forgetting": scores["forgetting"]} if "forgetting" in scores else {}
    tokens = round(sum(each["tokens_per_second"] * each["seconds"] for each in steps))
    ends = {name: metrics[-1][name] for name in ("train loss", "train samples")}
    return {
        "run_info": {
            "created_at": created,
            "total_time": seconds,
            "experiment_name": name,
            "peft_branch": None,
            "peft_worktree_is_dirty": None,
            "train_config": _train_config(config),
            "peft_config": _adapter_config(config),
            "error_msg": "",
        },
        "train_info": {
            # The step's memory is laid out when it is compiled, so its mean is its peak.
            "accelerator_memory_reserved_avg": max(peaks, default=None),
            "accelerator_memory_max": max(peaks, default=None),
            "accelerator_memory_reserved_99th": max(peaks, default=None),
            "train_time": sum(each["seconds"] for each in steps),
            "file_size": 4 * trained,  # float32
            "num_trainable_params": trained,
            "num_total_params": total,
            "status": "success",
            "metrics": [*metrics, {**last, **ends, "train total tokens": tokens, **more}],
        },
        "meta_info": _meta_info(),
    }


def _metrics(config: RunConfig, steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns mean loss and throughput for every `eval_every` steps."""
    every, total, found, before = config.train.eval_every, config.train.total_steps, [], 0
    for end in (*range(every, total, every), total):
        part = [each for each in steps if before < each["step"] <= end]
        before = end
        if not part:
            continue
        seconds = sum(each["seconds"] for each in part)
        tokens = sum(each["tokens_per_second"] * each["seconds"] for each in part)
        found.append(
            {
                "step": end,
                "train loss": mean(each["task_loss"] for each in part),
                "train samples": end * config.train.batch_size,
                "train time": seconds,
                "tokens / sec": tokens / seconds,
            }
        )
    if not found:
        raise UserError("the run has no training records: log more often (--train.log-every)")
    return found


def _train_config(config: RunConfig) -> dict[str, Any]:
    task, train, optimizer = config.task, config.train, config.optimizer
    assert isinstance(task, EvalTask)
    return {
        "model_id": config.model.path,
        "dtype": config.model.dtype,
        "max_seq_length": train.max_length,
        "batch_size": train.batch_size,
        "batch_size_eval": train.eval_batch_size,
        "max_steps": train.total_steps,
        "eval_steps": train.eval_every,
        "compile": True,
        "use_gc": config.model.remat != "none",
        "query_template": task.prompt.replace("{query|question}", "{query}"),
        "seed": train.seed,
        "grad_norm_clip": optimizer.max_grad_norm,
        "optimizer_type": "AdamW",
        "optimizer_kwargs": {
            "lr": optimizer.learning_rate,
            "weight_decay": optimizer.weight_decay,
        },
        "lr_scheduler": optimizer.schedule,
        "use_amp": False,
        "autocast_adapter_dtype": True,
        "generation_kwargs": {"max_new_tokens": task.max_new_tokens},
        "attn_implementation": config.model.attention,
        "init_kv_cache_prefix": None,
    }


def _adapter_config(config: RunConfig) -> dict[str, Any] | None:
    spec = config.adapter.spec()
    if spec.combine.layout == "kernels":
        return None
    own = {"peft_type": config.adapter.method.upper(), "r": spec.total_rank}
    return own | {"lora_alpha": spec.alpha} | flatten(config.adapter)


def _meta_info() -> dict[str, Any]:
    ours = ("goat-jax", "jax", "flax", "optax", "transformers")
    theirs = ("peft", "datasets", "bitsandbytes", "torch")
    versions = {f"{name}-version": metadata.version(name) for name in ours}
    return {
        "model_info": {"sha": None, "created_at": None},
        "dataset_info": {},
        "package_info": versions | dict.fromkeys(f"{name}-version" for name in theirs),
        "system_info": {
            "system": platform.system(),
            "release": platform.release(),
            "version": platform.version(),
            "machine": platform.machine(),
            "processor": platform.processor(),
            "accelerator": jax.devices()[0].device_kind,
        },
        "pytorch_info": None,
    }


def beside(files: Sequence[Path]) -> str:
    """Returns a table of result files, of PEFT's and of ours, the most accurate first.

    Raises:
        UserError: a file that is not a result file.
    """
    rows = []
    for path in files:
        saved = read_json(path)
        try:
            info = saved["train_info"]
            values = {**info, **info["metrics"][-1]}
            if values["accelerator_memory_max"]:
                values["accelerator_memory_max"] /= 2**30
            rows.append([saved["run_info"]["experiment_name"], *map(values.get, COLUMNS)])
        except (KeyError, IndexError, TypeError):
            raise UserError(f"{path} is not a result file of PEFT's method comparison") from None
    rows.sort(key=lambda row: -(row[1] or 0.0))
    return render_table(["experiment", *COLUMNS.values()], rows, markdown=True)
