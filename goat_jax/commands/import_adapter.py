"""``goat-jax import``."""

from __future__ import annotations

import dataclasses
import shlex
from functools import partial
from pathlib import Path

from goat_jax.commands.configs import override
from goat_jax.config import AdapterConfig, RunConfig, load_config
from goat_jax.errors import UserError
from goat_jax.exchange.imported import Imported, check_modules, check_weights, put_tensors
from goat_jax.exchange.read import read_adapter
from goat_jax.inject import Override
from goat_jax.run.fit import begin
from goat_jax.run.setup import Built
from goat_jax.run.shapes import kernel_shapes
from goat_jax.run.state import RunState
from goat_jax.tables import render_table


def import_adapter(source: Path, config: str, overrides: list[str]) -> int:
    """Makes a run at step 0 of somebody's adapter: to evaluate, generate with, train on, export.

    Args:
        source: folder or file of the adapter.
        config: file that names model and task; the adapter's own settings replace its.
        overrides: fields to change.
    """
    adapter = read_adapter(source)
    own = adapter_config(load_config(config), adapter)
    chosen = override(own, overrides, "goat-jax import")
    if chosen.adapter.forward_scale is not None:
        raise UserError("adapter.forward_scale changes what factors mean: import without it")
    check_modules(adapter, kernel_shapes(chosen))
    command = shlex.join(["goat-jax", "import", str(source), "--config", config, *overrides])
    made = begin(chosen, partial(start_state, adapter), command)
    rows = [[name, f"{value:.4f}"] for name, value in made.after.items()]
    print(render_table([f"{chosen.adapter.method} from {source}", "score"], rows, align="lr"))
    print(f"step 0 written to {made.folder}; goat-jax train --run {made.folder} goes on")
    return 0


def adapter_config(config: RunConfig, adapter: Imported) -> RunConfig:
    """The config with everything that the adapter settles."""
    fields = {field.name for field in dataclasses.fields(AdapterConfig)}
    options = {name: value for name, value in adapter.options.items() if name in fields}
    overrides = tuple(Override(modules, values) for modules, values in adapter.overrides)
    first = AdapterConfig() if adapter.settles_all else config.adapter
    own = dataclasses.replace(first, **{**options, "overrides": overrides})
    return dataclasses.replace(config, adapter=own)


def start_state(adapter: Imported, built: Built) -> RunState:
    """The state before the first step, with the adapter's tensors in it."""
    check_weights(adapter, built.base_fingerprint)
    trainable = put_tensors(adapter, built.graph, built.state.trainable, built.base)
    return dataclasses.replace(built.state, trainable=trainable)
