"""Training steps of LoRA and GOAT with random weights: decoder, text encoder, vision tower."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.stages import Compiled

from goat_jax.bench.accelerator.device import (
    Numbers,
    arguments_and_temporaries,
    bytes_taken,
    free_bytes,
    peak_flops,
)
from goat_jax.bench.accelerator.rows import Row, Settings
from goat_jax.bench.steps import full_batch
from goat_jax.bench.turns import take_turns
from goat_jax.config.paper import method_sizes
from goat_jax.config.run import DTYPES, AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import Task, language_files, make_task
from goat_jax.errors import RunFailed, UserError
from goat_jax.injection.targets import TASK_HEAD
from goat_jax.models.known_sizes import model_config
from goat_jax.training.abstract_run import AbstractRun, abstract_run
from goat_jax.training.logging.flops import matmul_flops
from goat_jax.training.task_types import task_type_of

METHODS = ("lora", "goat")


@dataclasses.dataclass(frozen=True)
class Batch:
    """Size of a training step.

    Attributes:
        rows: the number of rows.
        length: the number of tokens in a row; of no meaning for images.
        remat: the rematerialization policy.
    """

    rows: int
    length: int
    remat: str = "none"


Configure = Callable[[str, Settings, Batch], RunConfig]
"""(method, settings, batch) -> config."""


def decoder_config(method: str, settings: Settings, batch: Batch) -> RunConfig:
    """Returns the config of a decoder with adapters on all seven projections."""
    adapter = AdapterConfig(method, total_rank=settings.rank, modules_to_save=(), dropout=0.0)
    task = language_files("train.jsonl", "evaluation.jsonl", packing=False)
    return _config(settings.model, settings, task, adapter, batch)


def encoder_config(method: str, settings: Settings, batch: Batch) -> RunConfig:
    """Returns the config of RoBERTa-large on RTE, with the paper's sizes and dropout."""
    adapter = AdapterConfig(
        method,
        modules_to_save=(TASK_HEAD,),
        **method_sizes(method, settings.rank, 2.0 * settings.rank, 0.05),
    )
    return _config("roberta-large", settings, make_task("rte"), adapter, batch)


def vision_config(method: str, settings: Settings, batch: Batch) -> RunConfig:
    """Returns the config of CLIP ViT-L/14 on DTD, with the paper's rank and dropout."""
    adapter = AdapterConfig(
        method,
        modules_to_save=(),
        **method_sizes(method, 8, 16.0, 0.05),
    )
    return _config("clip-vit-large-patch14", settings, make_task("dtd"), adapter, batch)


def _config(
    model: str, settings: Settings, task: Task, adapter: AdapterConfig, batch: Batch
) -> RunConfig:
    return RunConfig(
        model=ModelConfig(model, dtype="bfloat16", remat=batch.remat),
        task=task,
        adapter=adapter,
        train=TrainConfig(
            steps=100,
            batch_size=batch.rows,
            eval_batch_size=batch.rows,
            max_length=batch.length,
        ),
    )


@contextlib.contextmanager
def sizes_of(config: RunConfig, tiny: bool) -> Iterator[str | Path]:
    """Yields the model whose sizes are used: the config's, or a tiny one of its architecture."""
    if not tiny:
        yield config.model.path
        return
    with tempfile.TemporaryDirectory() as folder:
        sizes = shrunk(model_config(config.model.path))
        (Path(folder) / "config.json").write_text(json.dumps(sizes))
        yield folder


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 1024,
    "patch_size": 56,
    "projection_dim": 32,
}
"""Entries of config.json that are large -> their values in a tiny model."""


def shrunk(sizes: dict[str, Any]) -> dict[str, Any]:
    """Returns a config.json with the sizes of `TINY`.

    >>> shrunk({"model_type": "clip", "vision_config": {"hidden_size": 1024, "eps": 1e-5}})
    {'model_type': 'clip', 'vision_config': {'hidden_size': 32, 'eps': 1e-05}}
    """
    return {
        name: shrunk(value) if isinstance(value, dict) else TINY.get(name, value)
        for name, value in sizes.items()
    }


@dataclasses.dataclass
class Step:
    """A compiled training step; each call updates the state of the previous one.

    Attributes:
        run: the run as shapes.
        compiled: the compiled step.
        base: the bytes of the frozen base, which the steps of several methods share.
        arguments: the bytes of state, frozen base and batch.
        temporaries: the bytes that the compiler planned besides.
        model_flops: the FLOPs of the step's matrix products without recomputation.
    """

    run: AbstractRun
    compiled: Compiled
    base: int
    arguments: int
    temporaries: int
    model_flops: int

    def fill(self, numbers: Numbers) -> None:
        """Makes the arguments on the device."""
        state = self.run.state
        self._state = dataclasses.replace(
            state,
            step=jnp.zeros((), jnp.int32),
            trainable=jax.tree.map(jnp.copy, numbers.like(state.trainable)),  # it is donated
            opt_state=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state.opt_state),
            key=jax.random.key(0),
            constants=jax.tree.map(jnp.copy, numbers.like(state.constants)),
        )
        self._base = numbers.like(self.run.base)
        self._batch = jax.device_put(full_batch(self.run))

    def __call__(self) -> jax.Array:
        """Takes a step and returns the loss."""
        self._state, metrics = self.compiled(self._state, self._base, self._batch)
        return metrics["loss"]


def compile_step(config: RunConfig, model: str | Path) -> Step:
    """Compiles a config's training step for the first device."""
    run = abstract_run(config, model)
    plain = config
    if config.model.remat != "none":
        plain = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="none"))
    counted = run if plain is config else abstract_run(plain, model)
    arguments = (counted.state, counted.base, counted.batch)
    compiled = run.train_step.lower(run.state, run.base, run.batch).compile()
    sizes = arguments_and_temporaries(compiled)
    base = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.base))
    return Step(
        run, compiled, base, *sizes, matmul_flops(counted.train_step, *arguments, again=False)
    )


def training_rows(
    part: str, settings: Settings, configure: Configure, batches: tuple[Batch, ...]
) -> Iterator[Row]:
    """Measures training steps of LoRA and GOAT, interleaved, at the first size that fits.

    Args:
        part: the part's name.
        settings: the suite's settings.
        configure: makes a method's config.
        batches: the sizes to try, the preferred one first.

    Raises:
        UserError: no size fits into the device's memory.
        RunFailed: a loss is not finite.
    """
    batch, steps = _fitting(settings, configure, batches)
    numbers, peaks = Numbers(), {}
    for name, step in steps.items():
        step.fill(numbers)
        taken = bytes_taken(step)
        peaks[name] = None if taken is None else taken + step.arguments
    times = take_turns(steps, settings.turns)
    bad = [name for name, step in steps.items() if not math.isfinite(step())]
    if bad:
        raise RunFailed(f"the loss of {' and '.join(bad)} is not finite")
    config = configure(METHODS[0], settings, batch)
    unit = task_type_of(config.task).unit
    amount = batch.rows * (batch.length if unit == "tokens" else 1)
    peak = peak_flops(DTYPES[config.model.dtype])
    size = f"{batch.rows:,} x {batch.length:,}" if unit == "tokens" else f"{batch.rows:,} images"
    model = ("tiny " if settings.tiny else "") + Path(config.model.path).name
    for name, step in steps.items():
        seconds = times[name].median
        yield Row(
            part,
            work=f"{model}, {size}, remat {batch.remat}",
            contender=name,
            seconds=seconds,
            ratio=times[name].over(times[METHODS[0]]),
            rate=amount / seconds,
            unit=unit,
            mfu=step.model_flops / seconds / peak,
            peak=peaks[name],
            planned=step.arguments + step.temporaries,
            remark=step.run.attention or "",
        )


def _fitting(
    settings: Settings, configure: Configure, batches: tuple[Batch, ...]
) -> tuple[Batch, dict[str, Step]]:
    """Compiles the steps at the first size of which the device can hold all arguments at once."""
    needed = 0.0
    for batch in batches:
        steps = {}
        with contextlib.suppress(_OutOfMemory):
            for name in reversed(METHODS):  # the largest first
                config = configure(name, settings, batch)
                with sizes_of(config, settings.tiny) as model, _memory_errors():
                    steps[name] = compile_step(config, model)
            needed = _bytes_together(list(steps.values()))
            if needed <= free_bytes():
                return batch, {name: steps[name] for name in METHODS}
    size = f"{needed / 2**30:.0f} GiB" if needed else "more memory than there is"
    raise UserError(f"the smallest size needs {size}: give a smaller --model")


def _bytes_together(steps: Sequence[Step]) -> int:
    """Returns the bytes of all steps' arguments, with one base, and of the largest temporaries."""
    states = sum(step.arguments - step.base for step in steps)
    return max(s.base for s in steps) + states + max(s.temporaries for s in steps)


class _OutOfMemory(Exception):
    """Raised if a compiler finds that a program does not fit."""


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _OutOfMemory from error
