"""`config_for`: the config of a run from a model's name and data alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from goat_jax.config.fields import with_fields
from goat_jax.config.paper import llama_eta, method_sizes, peak_rate
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.guess import Data, Guess, guess_images, guess_language, guess_text
from goat_jax.errors import UnknownField, UserError
from goat_jax.files import user_path
from goat_jax.models.known_sizes import NAMED, model_config
from goat_jax.models.registry import architecture_of
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.pretrained.resolve import find_model
from goat_jax.pretrained.safetensors import read_json
from goat_jax.validation.checks import check_number
from goat_jax.validation.other_names import OTHER_NAMES

EPOCHS = 3.0

MANY_PARAMETERS = 1e9
"""Models with more are kept in bfloat16, and recompute activations in the backward pass."""

ROWS_AT_ONCE = 4
"""Most rows of a micro-batch for a model with `MANY_PARAMETERS`."""


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Settings for a kind of model.

    Attributes:
        guess: makes the task from the data.
        rank: the total rank, as in the paper's runs; alpha is twice as large.
        learning_rate: the peak learning rate of adapters and head.
        full_learning_rate: the peak learning rate of full fine-tuning.
        batch_size: the largest number of rows of a step.
        max_length: the largest number of tokens of a row.
        eta: function from the learning rate to the adapters' eta.
    """

    guess: Callable[[Data], Guess]
    rank: int
    learning_rate: float
    full_learning_rate: float
    batch_size: int
    max_length: int
    eta: Callable[[float], float] = lambda rate: 1.0


DEFAULTS: Mapping[str, Defaults] = MappingProxyType(
    {
        "text encoder": Defaults(guess_text, 32, 3e-4, 1e-5, 32, 256),
        "language model": Defaults(guess_language, 32, 1e-4, 1e-5, 16, 1024, llama_eta),
        "image encoder": Defaults(guess_images, 8, 5e-4, 1e-5, 32, 128),
    }
)
"""Kind of a model (`models.registry.Architecture.kind`) -> its settings."""

DEPENDED_ON: Mapping[str, Any] = MappingProxyType(
    {
        "task.text": tuple[str, ...],
        "task.label": str,
        "task.labels": tuple[str, ...],
        "task.image": str,
        "task.format": str,
        "task.prompt": str,
        "task.completion": str,
        "adapter.method": str,
        "optimizer.learning_rate": float,
        "train.batch_size": int,
        "train.steps": int,
        "train.epochs": float,
    }
)
"""Fields on which the choice of others depends -> their types."""


ARGUMENTS = ("model", "data", "held_out")
"""Arguments of `config_for` that are no fields."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A config made from a model and data.

    Attributes:
        config: the config.
        lines: one line for every choice, with the field that makes another one.
    """

    config: RunConfig
    lines: tuple[str, ...]


def config_for(
    model: str,
    data: str | Path,
    held_out: str | Path | None = None,
    **fields: Any,
) -> RunConfig:
    """Makes the config of a run from a model and data; the same arguments give the same config.

    The model's config.json decides the kind of task, the data its columns, classes and lengths.

    Args:
        model: the pretrained model, as in `ModelConfig.path`.
        data: the source of the training rows: a table (CSV, TSV, JSON, JSONL, Parquet) or a folder
            of images with a subfolder for each class.
        held_out: the source of the evaluation rows; None holds out a tenth of the training rows.
        fields: values of other fields by their dotted names, ``**{"train.batch_size": 8}``.

    Raises:
        UserError: no such model or data, or a column that cannot be found.
    """
    return propose(model, data, held_out, fields).config


def propose(
    model: str,
    data: str | Path,
    held_out: str | Path | None = None,
    fields: Mapping[str, Any] = MappingProxyType({}),
) -> Proposal:
    """Makes the config as `config_for` does, with a line for every choice."""
    settings, own, head, most = _read_model(model)
    given = {name.removeprefix("task."): fields[name] for name in DEPENDED_ON if name in fields}
    source = None if held_out is None else str(held_out)
    guess = settings.guess(Data(str(data), source, given))
    large = 12 * own.num_layers * own.hidden_size**2 > MANY_PARAMETERS
    method = fields.get("adapter.method", AdapterConfig().method)
    rate = fields.get(
        "optimizer.learning_rate",
        peak_rate(method, settings.learning_rate, settings.full_learning_rate),
    )
    train = _train(guess, settings, large, most, fields)
    steps = train.over(guess.rows).total_steps
    config = RunConfig(
        model=ModelConfig(
            model, dtype="bfloat16" if large else "float32", remat="full" if large else "none"
        ),
        task=guess.task,
        adapter=AdapterConfig(
            method=method,
            modules_to_save=head,
            defaults={"eta": settings.eta(rate)},
            **method_sizes(method, settings.rank, 2.0 * settings.rank, 0.05),
        ),
        optimizer=OptimizerConfig(learning_rate=rate, warmup_steps=min(100, steps // 10)),
        train=train,
        out=f"runs/{guess.task.name}",
    )
    try:
        config = with_fields(config, fields)
    except UnknownField as error:
        raise _as_argument(error, fields) from None
    return Proposal(config, (*guess.lines, _sizes(config, guess.rows)))


def _as_argument(error: UnknownField, fields: Mapping[str, Any]) -> UserError:
    """Returns the error about an unknown field with the argument to give in Python."""
    named = OTHER_NAMES.get(error.name, ("",))[0]
    value = fields.get(error.name)
    if error.name not in fields or not (error.meant or named):
        return error
    meant = f"{named}={value!r}" if named in ARGUMENTS else f'**{{"{error.meant}": {value!r}}}'
    return UserError(f"there is no argument {error.name!r} (did you mean {meant}?)")


def _read_model(model: str) -> tuple[Defaults, Any, tuple[str, ...], int]:
    """Returns the settings for a model, its own config, its head and the most tokens of a row."""
    short = model.rpartition("/")[2].lower().removesuffix("-hf")
    known = short in NAMED and not user_path(model).exists()
    path = Path(model) if known else find_model(model)
    hf = model_config(model if known else path)
    architecture = architecture_of(hf, path)
    own = architecture.config_of(hf)
    settings = DEFAULTS[architecture.kind]
    file = path / "tokenizer_config.json"
    tokenizer = read_json(file, "a tokenizer") if file.is_file() else {}
    limits = [
        settings.max_length,
        getattr(own, "max_tokens", None),
        getattr(own, "context", None),
        tokenizer.get("model_max_length"),
    ]
    return settings, own, architecture.head, min(int(n) for n in limits if n is not None)


def _train(
    guess: Guess,
    settings: Defaults,
    large: bool,
    most: int,
    fields: Mapping[str, Any],
) -> TrainConfig:
    """Returns the settings of the loop: batches of a power of two, at least four an epoch."""
    fitting = 2 ** int(math.log2(max(1, guess.rows // 4)))
    batch = fields.get("train.batch_size", min(settings.batch_size, fitting))
    check_number("train.batch_size", batch, at_least=1, whole=True)
    steps, epochs = fields.get("train.steps"), fields.get("train.epochs")
    if steps is None and epochs is None:
        epochs = EPOCHS
    length = TrainConfig(steps, epochs, batch_size=batch)
    steps = length.over(guess.rows).total_steps
    every = max(1, math.ceil(steps / 5))
    return dataclasses.replace(
        length,
        grad_accum_steps=batch // math.gcd(batch, ROWS_AT_ONCE) if large else 1,
        max_length=min(most, max(32, 16 * math.ceil(guess.length / 16))),
        eval_batch_size=min(64, 2 * settings.batch_size),
        eval_every=every,
        save_every=every,
        log_every=max(1, min(10, steps // 20)),
    )


def _sizes(config: RunConfig, rows: int) -> str:
    train, rate = config.train.over(rows), config.optimizer.learning_rate
    epochs = train.total_steps / max(1, rows // train.batch_size)
    return (
        f"{train.total_steps:,} steps of {train.batch_size} rows ({epochs:.1f} epochs of "
        f"{rows:,}), at most {train.max_length} tokens, {config.adapter.method} with learning "
        f"rate {rate:g}, in {config.out}; say otherwise with --train.epochs, --train.batch-size, "
        "--train.max-length, --adapter.method, --optimizer.learning-rate, --out"
    )
