"""Writes a run's adapters, and what it trained in full, as a PEFT folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.errors import UserError
from goat_jax.interop import folders, merged
from goat_jax.interop.low_rank import LowRank
from goat_jax.interop.modules import ROWS, module_names, trained_rows
from goat_jax.interop.peft import target_names as names
from goat_jax.interop.peft import write as peft_write
from goat_jax.interop.peft.expert_adapters import ExpertAdapter, expert_tensors, join_experts
from goat_jax.interop.peft.fused_adapters import join_adapters, stored_name
from goat_jax.interop.trained_run import Trained
from goat_jax.models.registry import Architecture
from goat_jax.nn.named_modules import find_modules
from goat_jax.nn.vocabulary import TokenTable
from goat_jax.pretrained.packaged_models import ORIGINS
from goat_jax.pretrained.resolve import open_checkpoint


def write_lora(run: Trained, folder: Path, modules: Mapping[str, LowRank]) -> None:
    architecture, config = run.architecture, run.model.config
    modules = join_adapters(modules, architecture.fused, config)
    experts: dict[str, ExpertAdapter] = {}
    if (mixture := getattr(config, "mixture", None)) is not None:
        parameters = architecture.expert_tensors
        modules, experts = join_experts(modules, parameters, mixture.num_experts)
    root = not experts and peft_write.is_root(modules, run.now)
    tables = {ref.pattern for ref in find_modules(run.model, TokenTable)}
    tensors = peft_write.lora_tensors(modules, tables)
    settings = peft_write.lora_config({**modules, **_without_experts(experts)}, root)
    if experts:
        tensors |= expert_tensors(experts, architecture.expert_tensors)
        settings["target_parameters"] = list(experts)
    write_peft(run, folder, settings, tensors, list(modules))


def _without_experts(experts: Mapping[str, ExpertAdapter]) -> dict[str, LowRank]:
    """Returns the adapter of the first expert for each parameter: all have its rank and scale."""
    return {
        name: LowRank(each.a[0], each.b[0], each.scale, None, False)
        for name, each in experts.items()
    }


def write_peft(
    run: Trained,
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    adapted: Sequence[str],
) -> None:
    """Writes the adapter and what was trained in full; `adapted` are the modules with adapters."""
    form = run.form
    whole = (run.model, *form.parts(run.model, run.path, run.task))
    architecture = run.architecture
    stored = partial(stored_name, fused=architecture.fused)
    every = [stored(name) for part in whole for name in module_names(part)]
    head = {name: tensor for name, tensor in run.head.items() if form.has(name)}
    if form.aside:
        aside = {name: tensor for name, tensor in run.head.items() if name not in head}
        folders.write_tensors(folder / form.aside, aside)
    tie = architecture.tie
    if tie and tie.twin in head and tie.name.rpartition(".")[0] not in every:
        # Here both are one array; PEFT unties a module that was trained in full.
        head[tie.name] = head[tie.twin]
        every.append(tie.name.rpartition(".")[0])
    rows = trained_rows(run.model)
    if rows:
        config = {**config, "trainable_token_indices": _indices(rows, every)}
        tensors = {**tensors, **{f"{name}.{ROWS}": values for name, (_, values) in rows.items()}}
        if run.config.model.add_tokens:
            merged.write_tokenizer(run.path, folder, run.config.model.add_tokens)
    parts = list(dict.fromkeys(name.rpartition(".")[0] for name in head))
    peft_write.write_peft(
        folder,
        config,
        tensors,
        head,
        target_modules=names.shortest_suffixes(
            list(map(stored, adapted)), [*every, *_left_out(run, architecture, every)]
        ),
        heads=names.whole_modules(parts, every),
        task_type=form.peft,
        base=ORIGINS.get(run.config.model.path, run.config.model.path),
    )


def _left_out(run: Trained, architecture: Architecture, every: Sequence[str]) -> list[str]:
    """Returns modules of the checkpoint that only transformers' class has, beside ours.

    SigLIP's pooling head is one that no classifier reads: names must not select it.
    """
    ours = {name.partition(".")[0] for name in every}
    stored = (architecture.todays_name(name) for name in open_checkpoint(run.path)[1])
    modules = {name.rpartition(".")[0] for name in stored if name.partition(".")[0] in ours}
    return sorted(modules - set(every))


def _indices(
    rows: Mapping[str, tuple[np.ndarray, np.ndarray]], every: Sequence[str]
) -> dict[str, list[int]]:
    """Returns PEFT's table of trained tokens: the short name of a module -> its tokens."""
    return {
        names.shortest_suffixes([name], every)[0]: ids.tolist() for name, (ids, _) in rows.items()
    }


def check_linear(run: Trained, instead: str) -> None:
    """Refuses adapters, other than LoRA, of modules that are no linear layers in transformers."""
    architecture = run.architecture
    tables = {ref.pattern for ref in find_modules(run.model, TokenTable)}
    for name in run.now:
        if stored_name(name, architecture.fused) != name:
            what = "a part of one layer"
        elif any(each.of_layer(name) for each in architecture.expert_tensors):
            what = "a part of one parameter for all experts"
        elif name in tables:
            what = "an embedding"
        else:
            continue
        raise UserError(
            f"{name} is {what} in transformers, where this adapter has no form: adapt other "
            f"modules, or {instead}"
        )
