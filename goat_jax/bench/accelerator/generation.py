"""Generation: the time of one more token for several prompts, with the adapters of two methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from goat_jax.bench.accelerator.device import Numbers
from goat_jax.bench.accelerator.rows import Row, Settings
from goat_jax.bench.accelerator.training import METHODS, Batch, decoder_config, sizes_of
from goat_jax.bench.turns import take_turns
from goat_jax.hardware.chips import chip_of
from goat_jax.models.decoder.model import Cache
from goat_jax.nn.dense import merge_model
from goat_jax.training.abstract_run import AbstractRun, abstract_run
from goat_jax.typing import Array, PyTree

PART = "generation"


def generation_rows(settings: Settings) -> Iterator[Row]:
    """Measures tokens after a prompt for 16 prompts of 512 tokens, one step per token."""
    prompts, length, steps = (2, 8, 4) if settings.tiny else (16, 512, 32)
    numbers, calls, sizes = Numbers(), {}, {}
    for method in METHODS:
        config = decoder_config(method, settings, Batch(prompts, length))
        with sizes_of(config, settings.tiny) as model:
            run = abstract_run(config, model)
        calls[method] = _tokens(run, numbers, prompts, length, steps)
        sizes[method] = sum(leaf.size * leaf.dtype.itemsize for leaf in _weights(run))
    times = take_turns(calls, settings.turns)
    chip = chip_of(jax.devices()[0])
    for method in METHODS:
        seconds = times[method].median / steps
        remark = ""
        if chip is not None:
            share = sizes[method] / seconds / chip.bandwidth
            remark = f"reading all weights takes {share:.0%} of it"
        yield Row(
            PART,
            work=f"a token of {prompts} prompts of {length}",
            contender=method,
            seconds=seconds,
            ratio=times[method].over(times[METHODS[0]]),
            rate=prompts / seconds,
            unit="tokens",
            remark=remark,
        )


def _weights(run: AbstractRun) -> list[Any]:
    return jax.tree.leaves((run.state.trainable, run.base))


def _tokens(
    run: AbstractRun, numbers: Numbers, prompts: int, length: int, steps: int
) -> Callable[[], Array]:
    """Returns a function that takes `steps` steps after prompts that are in the cache already."""
    trainable, base = (numbers.like(tree) for tree in (run.state.trainable, run.base))

    @partial(jax.jit, donate_argnums=3)
    def extend(trainable: PyTree, base: PyTree, ids: Array, cache: Cache) -> tuple[Array, Cache]:
        model: Any = merge_model(run.graph, trainable, base)
        hidden, cache = model.extend(ids, jnp.ones_like(ids), cache)
        return model.logits(hidden[:, -1]).argmax(-1)[:, None].astype(ids.dtype), cache

    empty: Any = merge_model(run.graph, trainable, base)
    ids = jnp.ones((prompts, length), jnp.int32)
    first, filled = extend(trainable, base, ids, empty.empty_cache(prompts, length + steps))
    held = [filled]

    def call() -> Array:
        ids, cache = first, held[0]._replace(length=jnp.asarray(length, jnp.int32))
        for _ in range(steps):
            ids, cache = extend(trainable, base, ids, cache)
        held[0] = cache
        return ids

    return call
