"""Names that other libraries give to our fields: `OTHER_NAMES` maps each one to what it is here.

They are not aliases: a person who gives one gets an error that names the present field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from goat_jax.errors import nearest_name

_EPOCHS = ("train.epochs",)
_MODEL = ("model", "model.path")
_ROWS = ("data", "task.train")
_HELD_OUT = ("held_out", "task.evaluation")
_RANK = ("adapter.total_rank",)
_RATE = ("optimizer.learning_rate",)
_SCHEDULE = ("optimizer.schedule",)
_BATCH = ("train.batch_size",)
_ACCUMULATION = ("train.grad_accum_steps",)
_LENGTH = ("train.max_length",)
_OUT = ("out",)
_DTYPE = ("model.dtype",)
_QUANTIZE = ("model.quantize",)

OTHER_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        # PEFT's LoraConfig and its relatives
        "r": _RANK,
        "rank": _RANK,
        "lora_r": _RANK,
        "lora_rank": _RANK,
        "lora_alpha": ("adapter.alpha",),
        "lora_dropout": ("adapter.dropout",),
        "lora_target_modules": ("adapter.target_modules",),
        "lora_target": ("adapter.target_modules",),
        "exclude_modules": ("adapter.target_modules",),
        "layers_to_transform": ("adapter.target_modules",),
        "rank_pattern": ("adapter.overrides",),
        "alpha_pattern": ("adapter.overrides",),
        "peft_type": ("adapter.method",),
        "init_lora_weights": ("adapter.method",),
        "use_rslora": ("adapter.method",),
        "use_dora": ("adapter.method",),
        "experts": ("adapter.num_experts",),
        "n_experts": ("adapter.num_experts",),
        "num_local_experts": ("adapter.num_experts",),
        "num_experts_per_tok": ("adapter.top_k",),
        "aux_loss_coef": ("adapter.aux_weight",),
        "router_aux_loss_coef": ("adapter.aux_weight",),
        # transformers' TrainingArguments
        "lr": _RATE,
        "lr_scheduler_type": _SCHEDULE,
        "lr_scheduler": _SCHEDULE,
        "scheduler": _SCHEDULE,
        "warmup_ratio": ("optimizer.warmup_steps",),
        "wd": ("optimizer.weight_decay",),
        "grad_clip": ("optimizer.max_grad_norm",),
        "gradient_clipping": ("optimizer.max_grad_norm",),
        "adam_beta1": ("optimizer.beta1",),
        "adam_beta2": ("optimizer.beta2",),
        "adam_epsilon": ("optimizer.epsilon",),
        "eps": ("optimizer.epsilon",),
        "epochs": _EPOCHS,
        "num_epochs": _EPOCHS,
        "num_train_epochs": _EPOCHS,
        "max_steps": ("train.steps",),
        "num_steps": ("train.steps",),
        "iterations": ("train.steps",),
        "train_batch_size": _BATCH,
        "micro_batch_size": _BATCH,
        "per_device_train_batch_size": _BATCH,
        "per_device_eval_batch_size": ("train.eval_batch_size", "batch_size"),
        "gradient_accumulation_steps": _ACCUMULATION,
        "grad_accum": _ACCUMULATION,
        "eval_steps": ("train.eval_every",),
        "save_steps": ("train.save_every",),
        "logging_steps": ("train.log_every",),
        "metric_for_best_model": ("train.best_by",),
        "patience": ("train.early_stopping_patience",),
        "random_seed": ("train.seed",),
        "data_seed": ("train.seed",),
        "group_by_length": ("train.num_buckets",),
        "dataloader_num_workers": ("train.data_threads",),
        "gradient_checkpointing": ("model.remat",),
        "bf16": _DTYPE,
        "fp16": _DTYPE,
        "torch_dtype": _DTYPE,
        "precision": _DTYPE,
        "load_in_4bit": _QUANTIZE,
        "load_in_8bit": _QUANTIZE,
        "output_dir": _OUT,
        "output": _OUT,
        "out_dir": _OUT,
        "run_name": _OUT,
        "logging_dir": _OUT,
        # TRL's SFTConfig, ScriptArguments, and the examples of transformers
        "max_seq_length": _LENGTH,
        "max_seq_len": _LENGTH,
        "model_max_length": _LENGTH,
        "sequence_len": _LENGTH,
        "cutoff_len": _LENGTH,
        "completion_only_loss": ("task.loss_on",),
        "assistant_only_loss": ("task.loss_on",),
        "train_on_inputs": ("task.loss_on",),
        "dataset_text_field": ("task.text",),
        "text_column": ("task.text",),
        "text_column_name": ("task.text",),
        "label_column": ("task.label",),
        "label_column_name": ("task.label",),
        "max_train_samples": ("task.train_limit",),
        "max_eval_samples": ("task.evaluation_limit",),
        "dataset": _ROWS,
        "dataset_name": _ROWS,
        "train_file": _ROWS,
        "data_files": _ROWS,
        "validation_file": _HELD_OUT,
        "eval_file": _HELD_OUT,
        "test_file": _HELD_OUT,
        "base_model": _MODEL,
        "model_name": _MODEL,
        "model_name_or_path": _MODEL,
        "model_id": _MODEL,
        # options of verbs
        "checkpoint": ("step",),
        "max_tokens": ("max_new_tokens",),
        "output_file": _OUT,
        "input": ("data", "prompt"),
    }
)
"""Name elsewhere -> our dotted fields or options of the command line; the first valid one wins."""

_OTHER_VALUES = {
    *((name, "adapter.method") for name in ("init_lora_weights", "use_rslora", "use_dora")),
    *((name, "adapter.target_modules") for name in ("exclude_modules", "layers_to_transform")),
}


OTHER_VERBS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("finetune", "fine-tune", "fit", "sft", "resume"), "train"),
        **dict.fromkeys(("eval", "test", "score", "validate"), "evaluate"),
        **dict.fromkeys(("infer", "inference", "classify"), "predict"),
        **dict.fromkeys(("chat", "complete", "ask"), "generate"),
        **dict.fromkeys(("merge", "save", "push", "upload", "convert"), "export"),
        **dict.fromkeys(("info", "show", "describe", "report"), "inspect"),
        **dict.fromkeys(("tune", "hpo", "grid"), "sweep"),
        **dict.fromkeys(("benchmark", "profile"), "bench"),
        **dict.fromkeys(("draw", "visualize"), "plot"),
        **dict.fromkeys(("estimate", "memory"), "plan"),
        **dict.fromkeys(("download", "prepare"), "data"),
        **dict.fromkeys(("config", "new"), "init"),
    }
)
"""Verb elsewhere -> our verb of the command line."""


def meant_by(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that a person means by an unknown one, or None.

    It is the one that other libraries call so, or else the most similar.

    Args:
        name: the unknown name, with or without a group.
        known: the known names, dotted or without their groups.

    >>> meant_by("lr", ["train.steps", "optimizer.learning_rate"])
    'optimizer.learning_rate'
    >>> meant_by("optimizer.lr", ["rate", "learning_rate"]), meant_by("lora_r", ["rank", "rho"])
    ('learning_rate', 'rank')
    """
    names = list(known)
    meanings = OTHER_NAMES.get(_last(name), ())
    same = [other for other, fields in OTHER_NAMES.items() if fields == meanings]
    candidates = [*meanings, *map(_last, meanings), *same]
    return next((one for one in candidates if one in names), None) or nearest_name(name, names)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` with the known name that is `meant_by` another, or "".

    >>> did_you_mean("r", ["rho", "total_rank"])
    " (did you mean 'total_rank'?)"
    """
    meant = meant_by(name, known)
    return f" (did you mean {meant!r}?)" if meant else ""


def other_name_hint(name: str) -> str:
    """Returns a remark for the error about a name that other libraries use; "" if none does.

    >>> other_name_hint("lora_alpha"), other_name_hint("colour")
    (' (lora_alpha is adapter.alpha here)', '')
    """
    fields = OTHER_NAMES.get(name)
    return f" ({name} is {fields[-1]} here)" if fields else ""


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def takes_same_values(name: str, field: str) -> bool:
    """True if a value of a name elsewhere has the same meaning as a value of our field.

    >>> takes_same_values("lr", "optimizer.learning_rate")
    True
    >>> takes_same_values("use_rslora", "adapter.method")
    False
    """
    return (_last(name), field) not in _OTHER_VALUES
