"""`config_for`: the config of a run from a model's name and data alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from goat_jax.config.fields import with_fields
from goat_jax.config.memory import ModelSizes, device_memory, rows_that_fit
from goat_jax.config.paper import llama_eta, method_sizes, peak_rate
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.guess import Data, Guess, guess_images
from goat_jax.data.tasks.guess_labels import guess_labels, guess_texts
from goat_jax.data.tasks.registry import Task
from goat_jax.errors import UnknownField, UserError
from goat_jax.files import user_path
from goat_jax.models.known_sizes import NAMED, model_config
from goat_jax.models.registry import Architecture, architecture_of
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.pretrained.pooling import pooling_of
from goat_jax.pretrained.resolve import SETTINGS, find_model
from goat_jax.pretrained.safetensors import read_json
from goat_jax.validation.checks import check_number
from goat_jax.validation.other_names import OTHER_NAMES

EPOCHS = 3.0

MANY_PARAMETERS = 1e9
"""Models with more are kept in bfloat16, and recompute activations in the backward pass."""

STEPS_PER_BUCKET = 50
"""A padded length costs a compilation, which so many steps on shorter rows win back."""

MOST_BUCKETS = 5


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Settings for a kind of model.

    Attributes:
        guess: makes the task from the data.
        rank: the total rank, as in the paper's runs; alpha is twice as large.
        learning_rate: the peak learning rate of adapters and head.
        full_learning_rate: the peak learning rate of full fine-tuning.
        batch_size: the largest number of rows of a step.
        max_length: the largest number of tokens of a row; None for rows that have none.
        eta: function from the learning rate to the adapters' eta.
        tokens: function from the model's config and the length of a row to the row's tokens.
    """

    guess: Callable[[Data], Guess]
    rank: int
    learning_rate: float
    full_learning_rate: float
    batch_size: int
    max_length: int | None
    eta: Callable[[float], float] = lambda rate: 1.0
    tokens: Callable[[Any, int], int] = lambda config, length: length


DEFAULTS: Mapping[str, Defaults] = MappingProxyType(
    {
        "text encoder": Defaults(guess_labels, 32, 3e-4, 1e-5, 32, 256),
        "language model": Defaults(guess_texts, 32, 1e-4, 1e-5, 16, 1024, llama_eta),
        "image encoder": Defaults(
            guess_images, 8, 5e-4, 1e-5, 32, None, tokens=lambda config, _: config.tokens
        ),
    }
)
"""Kind of a model (`models.registry.Architecture.kind`) -> its settings."""

DEPENDED_ON: Mapping[str, Any] = MappingProxyType(
    {
        "task.text": tuple[str, ...],
        "task.label": str,
        "task.labels": tuple[str, ...],
        "task.separator": str,
        "task.tokens": str,
        "task.tags": str,
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
"""Arguments of `config_for` that are not fields."""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A config made from a model and data.

    Attributes:
        config: the config.
        found: one line for every choice that the data and the checkpoint decide.
        settings: the settings for the model's kind.
    """

    config: RunConfig
    found: tuple[str, ...]
    settings: Defaults

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for every choice, with the field that makes another one."""
        return (*self.found, *_sizes(self.config, self.settings))


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
    known = _read_model(model)
    settings = known.settings
    task_fields = {
        name.removeprefix("task."): fields[name] for name in DEPENDED_ON if name in fields
    }
    source = None if held_out is None else str(held_out)
    guess = settings.guess(Data(str(data), source, task_fields))
    method = fields.get("adapter.method", AdapterConfig().method)
    rate = fields.get(
        "optimizer.learning_rate",
        peak_rate(method, settings.learning_rate, settings.full_learning_rate),
    )
    train = _train(guess, known, fields)
    steps = train.over(guess.rows).total_steps
    config = RunConfig(
        model=ModelConfig(
            model,
            dtype="bfloat16" if known.large else "float32",
            remat="full" if known.large else "none",
            options=known.options,
        ),
        task=guess.task,
        adapter=AdapterConfig(
            method=method,
            modules_to_save=known.head_of(guess.task),
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
    pooled = [
        f"{name}: {value}, as the checkpoint was trained; say otherwise with --model.options "
        f"{name}=..."
        for name, value in known.options.items()
    ]
    return Proposal(config, (*guess.lines, *pooled), settings)


def _as_argument(error: UnknownField, fields: Mapping[str, Any]) -> UserError:
    """Returns the error about an unknown field with the argument to give in Python."""
    named = OTHER_NAMES.get(error.name, ("",))[0]
    value = fields.get(error.name)
    if error.name not in fields or not (error.meant or named):
        return error
    meant = f"{named}={value!r}" if named in ARGUMENTS else f'**{{"{error.meant}": {value!r}}}'
    return UserError(f"there is no argument {error.name!r} (did you mean {meant}?)")


@dataclasses.dataclass(frozen=True)
class _Model:
    """Facts about a model from its files, which hold no weights.

    Attributes:
        settings: the settings for its kind.
        config: its config.
        architecture: its architecture.
        most: the largest number of tokens of a row.
        options: fields of `config` that the checkpoint sets elsewhere, such as its pooling.
    """

    settings: Defaults
    config: Any
    architecture: Architecture
    most: int
    options: Mapping[str, str]

    @property
    def large(self) -> bool:
        return 12 * self.config.num_layers * self.config.hidden_size**2 > MANY_PARAMETERS

    def head_of(self, task: Task) -> tuple[str, ...]:
        """Returns the names of the modules of the head that a task needs."""
        head, heads = getattr(task, "HEAD", self.config.head), self.architecture.heads
        self.architecture.family.check_head(head, heads)
        return heads[head]

    def rows_at_once(self, length: int) -> int:
        """Returns the most rows of some length that one device computes at a time."""
        config, large = self.config, self.large
        sizes = ModelSizes(
            config.num_layers, config.hidden_size, config.num_heads, 2 if large else 4, large
        )
        return rows_that_fit(device_memory(), sizes, self.settings.tokens(config, length))


def _read_model(model: str) -> _Model:
    short = model.rpartition("/")[2].lower().removesuffix("-hf")
    known = short in NAMED and not user_path(model).exists()
    path = Path(model) if known else find_model(model, SETTINGS)
    hf = model_config(model if known else path)
    architecture = architecture_of(hf, path)
    network = architecture.config_of(hf)
    settings = DEFAULTS[architecture.kind]
    file = path / "tokenizer_config.json"
    tokenizer = read_json(file, "a tokenizer") if file.is_file() else {}
    limits = [
        settings.max_length,
        getattr(network, "max_tokens", None),
        getattr(network, "context", None),
        tokenizer.get("model_max_length"),
    ]
    most = min((int(n) for n in limits if n is not None), default=TrainConfig.max_length)
    default = getattr(network, "pooling", None)
    pooling = None if default is None else pooling_of(path)
    options = {} if pooling in (None, default) else {"pooling": pooling}
    return _Model(settings, network, architecture, most, options)


def _train(guess: Guess, known: _Model, fields: Mapping[str, Any]) -> TrainConfig:
    """Returns the settings of the loop.

    The data decides the batch, a power of two with at least four an epoch, so that the numbers are
    the same on every machine; the memory decides how many parts it is computed in.
    """
    fitting = 2 ** int(math.log2(max(1, guess.rows // 4)))
    batch = fields.get("train.batch_size", min(known.settings.batch_size, fitting))
    check_number("train.batch_size", batch, at_least=1, whole=True)
    steps, epochs = fields.get("train.steps"), fields.get("train.epochs")
    if steps is None and epochs is None:
        epochs = EPOCHS
    train = TrainConfig(steps, epochs, batch_size=batch)
    steps = train.over(guess.rows).total_steps
    every = max(1, math.ceil(steps / 5))
    length = min(known.most, max(32, 16 * math.ceil(guess.length / 16)))
    fitting = known.rows_at_once(length)
    return dataclasses.replace(
        train,
        grad_accum_steps=batch // math.gcd(batch, fitting),
        max_length=length,
        num_buckets=max(1, min(MOST_BUCKETS, steps // STEPS_PER_BUCKET)),
        eval_batch_size=min(2 * known.settings.batch_size, 2 * fitting),
        eval_every=every,
        save_every=every,
        log_every=max(1, min(10, steps // 20)),
    )


def _sizes(config: RunConfig, settings: Defaults) -> tuple[str, str]:
    """Returns the lines about the loop and the method."""
    train, rate = config.train, config.optimizer.learning_rate
    long = f"{train.epochs:g} epochs" if train.epochs is not None else f"{train.steps:,} steps"
    parts, count = train.grad_accum_steps, train.num_buckets
    computed = f" in {parts} parts, as memory allows," if parts > 1 else ""
    loop = f"{long} of batches of {train.batch_size}{computed}"
    flags = "--train.epochs, --train.batch-size, --train.grad-accum-steps"
    if settings.max_length is not None:
        loop += f" with at most {train.max_length} tokens, padded to {count} length"
        loop += "s" * (count > 1)
        flags += ", --train.max-length, --train.num-buckets"
    return (
        f"{loop}; say otherwise with {flags}",
        f"{config.adapter.method} with learning rate {rate:g}, in {config.out}; say otherwise "
        "with --adapter.method, --optimizer.learning-rate, --out",
    )
