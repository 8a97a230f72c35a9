"""Formats of an exported run: PEFT, the published code's, whole models, one plain LoRA."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from goat_jax.adapters.spec import Router
from goat_jax.config.fields import flatten
from goat_jax.config.run import AdapterConfig
from goat_jax.errors import UserError
from goat_jax.interop import merged, reference_code
from goat_jax.interop.hf_config import pooled_logits
from goat_jax.interop.lora_approximation import approximate
from goat_jax.interop.low_rank import removed_part
from goat_jax.interop.model_card import Facts
from goat_jax.interop.modules import AdaptedModule, trained_rows
from goat_jax.interop.peft import routed as peft_routed
from goat_jax.interop.peft import write as peft_write
from goat_jax.interop.peft.loading_code import loading_code
from goat_jax.interop.peft.run_folder import check_linear, write_lora, write_peft
from goat_jax.interop.trained_run import Trained
from goat_jax.nn.vocabulary import fold_rows
from goat_jax.pretrained.packaged_models import ORIGINS
from goat_jax.training.checkpoints.run_dir import read_run

Extra = dict[str, Any]


class Options(NamedTuple):
    """Options of `goat_jax.interop.export_run.export_run` that its formats read.

    Attributes:
        name: the name of the folder.
        task, rows, gates, rank, dtype, shard_bytes: as there.
    """

    name: str
    task: int | None
    rows: int
    gates: str
    rank: int | None
    dtype: str | None
    shard_bytes: int


def _to_peft(run: Trained, folder: Path, options: Options) -> tuple[Facts, Extra]:
    if options.task is None and unmergeable(run.config.adapter) is not None:
        return _routed_to_peft(run, folder, options.name)
    layouts = {module.spec.combine.layout for module in run.now.values()}
    if layouts == {"network"}:
        check_linear(run, "use --to merged")
        settings = peft_write.network_config(run.now)
        write_peft(run, folder, settings, peft_write.network_tensors(run.now), list(run.now))
    else:
        write_lora(run, folder, run.low_rank(run.task_gates(options.task)))
    return _facts(run, "A PEFT adapter", "peft", loading_code(run, options.name)), {}


def _routed_to_peft(run: Trained, folder: Path, name: str) -> tuple[Facts, Extra]:
    check_linear(run, "use --to lora, which approximates it")
    tensors, ranks = {}, {}
    for module, now in run.now.items():
        removed = removed_part(run.start[module], run.kernels.get(module))
        ranks[module] = removed[0].shape[1]
        tensors |= peft_routed.routed_tensors(module, now, removed)
    config = peft_routed.routed_config(run.now, ranks, _settings(run))
    write_peft(run, folder, config, tensors, list(run.now))
    use = "import goat_jax.torch  # pip install 'goat-jax[torch]'\n" + loading_code(run, name)
    return _facts(run, "A PEFT adapter with routed experts", "peft", use), {}


def _settings(run: Trained) -> dict[str, Any]:
    """Returns the run's settings of its adapter, without those that name modules."""
    modules = ("target_modules", "modules_to_save", "overrides")
    fields = flatten(run.config.adapter)
    return {name: value for name, value in fields.items() if name not in modules}


def _to_goat(run: Trained, folder: Path, _: Options) -> tuple[Facts, Extra]:
    if trained_rows(run.model):
        raise UserError("it has no place for trained vectors of tokens: use --to merged")
    base = ORIGINS.get(run.config.model.path, run.config.model.path)
    reference_code.write_published(folder, run.now, run.head, base, _settings(run))
    return _facts(run, "An adapter with the published GOAT code's tensor names", "goat_jax"), {}


def _to_merged(run: Trained, folder: Path, options: Options) -> tuple[Facts, Extra]:
    form, dtype = run.form, options.dtype
    use = form.snippet(options.name, run.task) + pooled_logits(run.model.config, "model")
    facts = _facts(run, "A whole model, the adapter merged into it", "transformers", use)
    merged.fold_adapters(run.model, run.task_gates(options.task))
    fold_rows(run.model)
    if dtype is None:
        narrow = run.config.model.dtype != "float32"
        dtype = run.config.model.dtype if narrow else merged.stored_dtype(run.path)
    _write_whole(run, folder, dtype, options)
    return facts, {}


def _to_transformers(run: Trained, folder: Path, options: Options) -> tuple[Facts, Extra]:
    if options.task is not None or all(each.spec.router.mergeable for each in run.now.values()):
        raise UserError("it has no router, and --to merged gives a model that needs no code")
    check_linear(run, "use --to lora, which approximates it")
    use = run.form.snippet(options.name, run.task, ", trust_remote_code=True")
    use += pooled_logits(run.model.config, "model")
    facts = _facts(run, "A whole model with routed experts in its layers", "transformers", use)
    facts = dataclasses.replace(facts, code=CODE_NOTE)
    fold_rows(run.model)
    _write_whole(run, folder, options.dtype or run.config.model.dtype, options, run.now)
    return facts, {}


def _write_whole(
    run: Trained,
    folder: Path,
    dtype: str,
    options: Options,
    routed: Mapping[str, AdaptedModule] | None = None,
) -> None:
    merged.write_merged(
        folder,
        run.model,
        run.form,
        run.path,
        run.task,
        dtype,
        options.shard_bytes,
        run.config.model.add_tokens,
        routed,
    )


def _to_lora(run: Trained, folder: Path, options: Options) -> tuple[Facts, Extra]:
    if all(each.spec.router.mergeable for each in run.now.values()):
        raise UserError("it has no router to approximate, and --to peft is exact")
    found = approximate(run, options.rows, options.gates, options.rank)
    write_lora(run, folder, found.adapters)
    before, after = run.scores, found.scores[found.kind]
    facts = _facts(
        run,
        f"An approximation as one plain LoRA, every expert with a constant weight ({found.kind})",
        "peft",
        loading_code(run, options.name),
        approximation=after,
        change={name: after[name] - before[name] for name in before},
        **{
            f"with {kind} weights": each
            for kind, each in found.scores.items()
            if kind != found.kind
        },
    )
    note = f"the experts' {found.kind} weights were measured on {options.rows} training rows"
    shares = {name: [float(w) for w in weights] for name, weights in found.gates.items()}
    return dataclasses.replace(facts, notes=(note,)), {"gates": shares}


def unmergeable(adapter: AdapterConfig) -> Router | None:
    """A router that no single kernel can stand for; None if all modules can be merged."""
    spec = adapter.spec()
    specs = (spec, *(override.spec(spec) for override in adapter.overrides))
    return next((each.router for each in specs if not each.router.mergeable), None)


def _facts(run: Trained, form: str, library: str, use: str = "", **columns: Any) -> Facts:
    saved = read_run(run.folder)
    return Facts(
        form=form,
        library=library,
        step=run.opened.step,
        scores={"run": run.scores, **columns},
        trained=run.setup.inject_report.trained_parameters,
        command=saved.get("command"),
        versions=saved.get("versions", {}),
        base=ORIGINS.get(run.config.model.path, run.config.model.path),
        use=use,
    )


WHOLE = ("merged", "transformers")
"""Names of the formats that are complete models."""

CODE_NOTE = (
    "This folder holds Python code, modeling_goat.py: linear layers with a router and low-rank "
    "experts, and a subclass of each of the model's classes in transformers that puts them in "
    "place. It imports torch and transformers, and reads and writes no files. transformers runs it "
    "only with trust_remote_code=True; read it first."
)
"""The model card's sentence on the code in the folder."""

FORMS: dict[str, Callable[[Trained, Path, Options], tuple[Facts, Extra]]] = {
    "peft": _to_peft,
    "goat": _to_goat,
    "merged": _to_merged,
    "transformers": _to_transformers,
    "lora": _to_lora,
}
"""Name of a format -> the function that writes a run to a folder in it.

The function returns the facts for the model card, and further entries of `folders.ABOUT`.
"""
