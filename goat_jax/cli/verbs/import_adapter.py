"""``goat-jax import``: makes a run from an adapter of PEFT or of the published GOAT code."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from functools import partial
from pathlib import Path

from goat_jax.cli.arguments.config import override, read_fields
from goat_jax.config.fields import with_fields
from goat_jax.config.files import load_config
from goat_jax.config.run import AdapterConfig, RunConfig
from goat_jax.data.pipeline.tokenize import load_tokenizer
from goat_jax.errors import UserError
from goat_jax.injection.selection import Override
from goat_jax.interop.detect import read_adapter
from goat_jax.interop.import_adapter import (
    Imported,
    base_note,
    check_modules,
    check_samples,
    check_weights,
    put_tensors,
)
from goat_jax.interop.match_base import fit_adapter
from goat_jax.interop.modules import module_names
from goat_jax.models.known_sizes import model_config
from goat_jax.models.registry import architecture_of
from goat_jax.pretrained.resolve import find_model, open_checkpoint
from goat_jax.text_tables import render_table
from goat_jax.training.abstract_run import abstract_model, kernel_shapes
from goat_jax.training.setup import TrainSetup
from goat_jax.training.state import RunState
from goat_jax.training.trainer import begin


def import_adapter(
    source: Path, config: str, overrides: list[str], other_base: bool = False
) -> int:
    """Makes a run at step 0 from an existing adapter, to evaluate, generate with, train and export.

    Args:
        source: the adapter's folder or file.
        config: the config file, which names model and task; the adapter's settings replace its.
        overrides: ``--field value ...``, which override the config file.
        other_base: whether to put the adapter on another base model than the one it was made for.

    Returns:
        The exit code.

    Raises:
        UserError: an adapter that cannot be read, or that does not fit the model or the overrides.
    """
    adapter = read_adapter(source)
    # Only the model's fields yet: others may belong to the method, which the adapter determines.
    values = read_fields(before := load_config(config), overrides)
    model_fields = {name: value for name, value in values.items() if name.startswith("model.")}
    base = with_fields(before, model_fields)
    where = base.model.path
    hf = model_config(where)
    architecture = architecture_of(hf, Path(where))
    fitted = fit_adapter(adapter, architecture, hf, module_names(abstract_model(base)))
    settled = adapter_config(before, fitted.adapter)
    model = dataclasses.replace(
        settled.model,
        options={**before.model.options, **fitted.options},
        add_tokens=base.model.add_tokens or added_tokens(adapter, where, hf.get("vocab_size")),
    )
    chosen = override(dataclasses.replace(settled, model=model), overrides, "goat-jax import")
    if chosen.adapter.forward_scale is not None:
        raise UserError(
            "adapter.forward_scale would change what the imported factors mean: leave it out"
        )
    adapter, whole = fitted.adapter, module_names(abstract_model(chosen))
    check_modules(adapter, kernel_shapes(chosen), whole)
    if not other_base:
        check_samples(adapter, open_checkpoint(find_model(where))[1], architecture)
    for note in (*fitted.notes, None if other_base else base_note(adapter, where)):
        if note is not None:
            print(note, file=sys.stderr)
    meant = ["--other-base"] if other_base else []
    words = ["goat-jax", "import", str(source), "--config", config, *meant, *overrides]
    command = shlex.join(words)
    begun = begin(chosen, partial(start_state, adapter, other_base), command)
    for note in begun.setup.notes:
        print(note, file=sys.stderr)
    rows = [[name, f"{value:.4f}"] for name, value in begun.after.items()]
    print(render_table([f"{chosen.adapter.method} from {source}", "score"], rows, align="lr"))
    print(f"step 0 written to {begun.folder}; goat-jax train --run {begun.folder} continues it")
    return 0


def added_tokens(adapter: Imported, model: str, size: int | None) -> tuple[str, ...]:
    """Returns the tokens that an adapter's tokenizer has and that of its base model has not.

    A tokenizer alone adds none: the adapter has vectors of them.

    Args:
        adapter: the adapter.
        model: the path of its base model.
        size: the number of rows in the base model's vocabulary; None if it has none.
    """
    grown = size is not None and any(tensor.shape[:1] > (size,) for tensor in adapter.head.values())
    if not (adapter.rows or grown) or adapter.tokenizer is None:
        return ()
    known, tokenizer = len(load_tokenizer(find_model(model))), load_tokenizer(adapter.tokenizer)
    return tuple(tokenizer.convert_ids_to_tokens(n) for n in range(known, len(tokenizer)))


def adapter_config(config: RunConfig, adapter: Imported) -> RunConfig:
    """Returns the config with all the settings that the adapter determines."""
    fields = {field.name for field in dataclasses.fields(AdapterConfig)}
    options = {name: value for name, value in adapter.options.items() if name in fields}
    overrides = tuple(Override(modules, values) for modules, values in adapter.overrides)
    first = AdapterConfig() if adapter.settles_all else config.adapter
    adapter_fields = dataclasses.replace(first, **{**options, "overrides": overrides})
    return dataclasses.replace(config, adapter=adapter_fields)


def start_state(adapter: Imported, other_base: bool, setup: TrainSetup) -> RunState:
    """Returns the state before the first step, with the adapter's tensors in it.

    Raises:
        UserError: the adapter is known to belong to other base weights, or its tensors do not fit.
    """
    check_weights(adapter, setup.base_fingerprint, other_base)
    trainable = put_tensors(adapter, setup.graph, setup.state.trainable, setup.base)
    return dataclasses.replace(setup.state, trainable=trainable)
