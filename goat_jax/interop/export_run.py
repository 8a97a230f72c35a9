"""Exports a finished run to PEFT, transformers, the published code's format or plain LoRA."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from goat_jax.adapters.spec import Router
from goat_jax.config.fields import flatten
from goat_jax.config.run import AdapterConfig, ModelConfig
from goat_jax.data.pipeline.tokenize import pad_token
from goat_jax.errors import UserError
from goat_jax.interop import folders, merged, reference_code
from goat_jax.interop.hf_config import HfForm, form_of, pooled_logits, pooling_option
from goat_jax.interop.low_rank import LowRank, removed_part, truncated
from goat_jax.interop.model_card import Facts, write_card
from goat_jax.interop.modules import ROWS, module_names, trained_rows
from goat_jax.interop.peft import routed as peft_routed
from goat_jax.interop.peft import target_names as names
from goat_jax.interop.peft import write as peft_write
from goat_jax.interop.peft.expert_adapters import ExpertAdapter, expert_tensors, join_experts
from goat_jax.interop.peft.fused_adapters import join_adapters, stored_name
from goat_jax.interop.router_weights import ConstantGates
from goat_jax.interop.trained_run import Trained
from goat_jax.models.registry import Architecture, architecture_of
from goat_jax.models.vision.heads import ZERO_SHOT
from goat_jax.nn.dense import split_model
from goat_jax.nn.named_modules import find_modules
from goat_jax.nn.vocabulary import TokenTable, fold_rows
from goat_jax.pretrained.packaged_models import ORIGINS
from goat_jax.pretrained.resolve import PACKAGE, open_checkpoint
from goat_jax.text_tables import html_table, render_table
from goat_jax.training.checkpoints.run_dir import load_run, read_run
from goat_jax.training.data import tokenizer_of
from goat_jax.training.evaluate import evaluate
from goat_jax.training.step import make_eval_step
from goat_jax.training.task_types import task_type_of
from goat_jax.validation.checks import check_choice


@dataclasses.dataclass(frozen=True, repr=False)
class Exported:
    """The result of an export; printed as a table of scores, and the notes.

    Attributes:
        folder: the folder that was written.
        step: the checkpoint's step.
        scores: column -> metric -> value on the run's evaluation rows.
        notes: remarks for the user.
    """

    folder: Path
    step: int
    scores: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join([render_table(*self._table()), *self._end()])

    def _repr_html_(self) -> str:
        """Returns the table in HTML, which a notebook shows."""
        return html_table(*self._table()) + "<br>".join(map(html.escape, self._end()))

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Returns the headers and rows of the table of scores."""
        metrics = dict.fromkeys(name for column in self.scores.values() for name in column)
        rows = [[m, *(f"{column[m]:.4f}" for column in self.scores.values())] for m in metrics]
        return ["evaluation rows", *self.scores], rows

    def _end(self) -> list[str]:
        return [*self.notes, f"step {self.step} written to {self.folder}"]


def export_run(
    folder: Path,
    to: str,
    out: Path,
    *,
    step: int | None = None,
    task: int | None = None,
    rows: int = 256,
    gates: str = "best",
    rank: int | None = None,
    dtype: str | None = None,
    shard_bytes: int = folders.SHARD_BYTES,
) -> Exported:
    """Writes a run's adapter or its complete model in another format, all of it or nothing.

    Args:
        folder: the run's folder.
        to: the format: "peft" (exact, on the pretrained model; routed experts for the tuner in
            `goat_jax.torch`), "goat" (the published code's names), "merged" (a Hugging Face
            model), "transformers" (a Hugging Face model with routed experts and their code), or
            "lora" (routed experts with constant weights).
        out: the folder to create.
        step: the checkpoint's step; None: the best checkpoint.
        task: the task whose expert weights are used, for an adapter that is gated by tasks.
        rows: the number of training rows that constant weights are measured on.
        gates: the constant weights of a "lora": "fitted" (those with the least squared distance
            to what each routed layer adds), "mean", or "best" (of these the ones with the lower
            loss on the evaluation rows).
        rank: the largest rank of a "lora"; None: that of all experts side by side.
        dtype: the dtype of a complete model's weights; None: the run's dtype if it is not float32
            or there are routed experts, otherwise the dtype that the pretrained weights are stored
            in.
        shard_bytes: the largest size of a complete model's files, in bytes.

    Raises:
        UserError: the format cannot represent the adapter (the message says why), or the folder
            cannot be written.
    """
    if to not in FORMS:
        raise UserError(f"{to!r} is not a format: {', '.join(FORMS)}")
    check_choice("--gates", gates, GATES)
    if rank is not None and to != "lora":
        raise UserError(f"--rank is for --to lora: {to} keeps every rank")
    if dtype is not None:
        check_choice("--dtype", dtype, merged.DTYPES)
        if to not in WHOLE:
            raise UserError(
                f"--dtype is for --to {' or '.join(WHOLE)}: {to} keeps its factors in float32"
            )
    config = load_run(Path(folder))[0]
    bits = config.model.quantize
    if bits != "none":
        raise UserError(
            f"{folder} was trained on a base model in {bits}: only runs on an unquantized one can "
            "be exported"
        )
    router = _unmergeable(config.adapter)
    if to == "merged" and task is None and router is not None:
        raise UserError(
            f"{folder} cannot be exported to {to}: {type(router).__name__} weights the experts "
            f"{router.varies}, so no single kernel equals this adapter; --to transformers and "
            f"--to peft keep it, --to lora approximates it{_without_classes(config.model)}"
        )
    with folders.whole_folder(Path(out)) as aside:
        run = Trained(Path(folder), step, factors=True)
        try:
            options = {"name": Path(out).name, "task": task, "rows": rows}
            options |= {"gates": gates, "rank": rank}
            facts, extra = FORMS[to](run, aside, **options, dtype=dtype, shard_bytes=shard_bytes)
        except UserError as error:
            raise UserError(f"{folder} cannot be exported to {to}: {error}") from None
        facts = dataclasses.replace(facts, notes=(*_notes(run), *facts.notes))
        card = write_card(Path(out).name, run.config, facts, to in WHOLE)
        (aside / "README.md").write_text(card, encoding="utf-8")
        about = {
            "form": to,
            "method": run.config.adapter.method,
            "step": facts.step,
            "base_sha256": run.setup.base_fingerprint,
            "scores": facts.scores,
            **extra,
        }
        folders.write_json(aside / folders.ABOUT, about)
    return Exported(Path(out), facts.step, facts.scores, facts.notes)


def _without_classes(model: ModelConfig) -> str:
    """Returns what limits the formats of transformers' classes, to add to an error about them."""
    if model.options.get("head") != ZERO_SHOT:
        return ""
    return ", if its class matrix was not trained; --to goat keeps it in any case"


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


READS_THE_MEAN = (
    "the head reads the mean of the tokens; transformers' class reads the first one, so its own "
    "logits are others: `logits` on the card computes this run's"
)

DIFFERS = {
    ("head", ZERO_SHOT): "transformers' model compares images with texts, so give it the "
    "prompt of every class, in the order of the labels",
    ("family", "clip_vision_model"): "transformers builds a classifier only on the config.json of "
    "a whole CLIP; --to merged writes one",
    ("family", "siglip_vision_model"): "transformers builds a classifier only on the config.json "
    "of a whole SigLIP; --to merged writes one",
}
"""(field, value) of a model's config -> a remark on how transformers' class differs from it."""


def _notes(run: Trained) -> tuple[str, ...]:
    config, name = run.model.config, "a"
    notes = (READS_THE_MEAN,) if pooled_logits(config, name) else ()
    return notes + tuple(
        note for (field, value), note in DIFFERS.items() if getattr(config, field, None) == value
    )


Extra = dict[str, Any]


def _form(run: Trained) -> HfForm:
    form, family = form_of(run.setup.kind, run.model.config), _architecture(run).family
    if family.class_with(form.ending) is None:
        raise UserError(
            f"transformers has no {family.class_name}{form.ending}: use --to goat, or another base"
        )
    return form


def _peft_use(run: Trained, name: str) -> str:
    form, count = _form(run), getattr(run.model.config, "num_labels", 0)
    labels, more = list(getattr(run.task, "labels", ())), ""
    if count and not form.absent:
        # The base may have a head for other labels, which the adapter's replaces.
        of_classes = "id2label=id2label, label2id=label2id" if labels else f"num_labels={count}"
        more = f", {of_classes}, ignore_mismatched_sizes=True"
    more += pooling_option(run.model.config)
    packaged = run.config.model.path.startswith(PACKAGE)
    path = "path" if packaged else repr(run.config.model.path)
    if run.path.suffix == ".gguf":
        path = "path.parent, gguf_file=path.name"
    loader = _loader(run, form)
    lines = ["from peft import PeftModel", f"from transformers import {loader}", ""]
    if packaged:
        lines.insert(0, "from goat_jax.pretrained.resolve import find_model")
        lines.append(f"path = find_model({run.config.model.path!r})")
    elif run.path.suffix == ".gguf":
        lines.insert(0, "from pathlib import Path\n")
        lines.append(f"path = Path({run.config.model.path!r})")
    if "id2label" in more:
        lines.append(f"id2label = dict(enumerate({labels}))")
        lines.append("label2id = {name: number for number, name in id2label.items()}")
    dtype = run.config.model.dtype
    lines += [
        f'base = {loader}.from_pretrained({path}{more}, dtype="{dtype}")',
        *_padding(run, form),
        *_resizing(run),
        f'model = PeftModel.from_pretrained(base, "{name}")',
    ]
    more = form.logits.format(model="model", name=name)
    return "\n".join(lines) + more + pooled_logits(run.model.config, "model.get_base_model()")


def _loader(run: Trained, form: HfForm) -> str:
    """Returns the class that opens the base: the automatic one, unless it would take a variant.

    A DeiT with distillation names `DeiTForImageClassificationWithTeacher` in its config.json, whose
    two classifiers have no place for ours.
    """
    exact = _architecture(run).family.class_with(form.ending) or form.auto
    named = open_checkpoint(run.path)[0].get("architectures") or ()
    variant = any(name != exact and str(name).startswith(exact) for name in named)
    return exact if variant else form.auto


def _padding(run: Trained, form: HfForm) -> list[str]:
    """Returns the line that names the padding token if the base's config.json names none."""
    if not form.pads or run.model.config.pad_id is not None:
        return []
    return [f"base.config.pad_token_id = {pad_token(tokenizer_of(run.path))}"]


def _resizing(run: Trained) -> list[str]:
    """Returns the line that gives the base the tokens that the run added."""
    if not run.config.model.add_tokens:
        return []
    return [f"base.resize_token_embeddings({run.model.config.vocab_size})"]


def _architecture(run: Trained) -> Architecture:
    return architecture_of(open_checkpoint(run.path)[0], run.path)


def _write_lora(run: Trained, folder: Path, modules: Mapping[str, LowRank]) -> None:
    architecture, config = _architecture(run), run.model.config
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
    _write_peft(run, folder, settings, tensors, list(modules))


def _without_experts(experts: Mapping[str, ExpertAdapter]) -> dict[str, LowRank]:
    """Returns the adapter of the first expert for each parameter: all have its rank and scale."""
    return {
        name: LowRank(each.a[0], each.b[0], each.scale, None, False)
        for name, each in experts.items()
    }


def _write_peft(
    run: Trained,
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    adapted: Sequence[str],
) -> None:
    """Writes the adapter and what was trained in full; `adapted` are the modules with adapters."""
    form = _form(run)
    whole = (run.model, *form.parts(run.model, run.path, run.task))
    architecture = _architecture(run)
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


def _to_peft(
    run: Trained, folder: Path, name: str, task: int | None, **_: Any
) -> tuple[Facts, Extra]:
    if task is None and _unmergeable(run.config.adapter) is not None:
        return _routed_to_peft(run, folder, name)
    layouts = {module.spec.combine.layout for module in run.now.values()}
    if layouts == {"network"}:
        _check_linear(run, "use --to merged")
        settings = peft_write.network_config(run.now)
        _write_peft(run, folder, settings, peft_write.network_tensors(run.now), list(run.now))
    else:
        _write_lora(run, folder, run.low_rank(run.task_gates(task)))
    return _facts(run, "A PEFT adapter", "peft", _peft_use(run, name)), {}


def _check_linear(run: Trained, instead: str) -> None:
    """Refuses adapters, other than LoRA, of modules that are no linear layers in transformers."""
    architecture = _architecture(run)
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


def _routed_to_peft(run: Trained, folder: Path, name: str) -> tuple[Facts, Extra]:
    _check_linear(run, "use --to lora, which approximates it")
    tensors, ranks = {}, {}
    for module, now in run.now.items():
        removed = removed_part(run.start[module], run.kernels.get(module))
        ranks[module] = removed[0].shape[1]
        tensors |= peft_routed.routed_tensors(module, now, removed)
    config = peft_routed.routed_config(run.now, ranks, _settings(run))
    _write_peft(run, folder, config, tensors, list(run.now))
    use = "import goat_jax.torch  # pip install 'goat-jax[torch]'\n" + _peft_use(run, name)
    return _facts(run, "A PEFT adapter with routed experts", "peft", use), {}


def _settings(run: Trained) -> dict[str, Any]:
    """Returns the run's settings of its adapter, without those that name modules."""
    modules = ("target_modules", "modules_to_save", "overrides")
    fields = flatten(run.config.adapter)
    return {name: value for name, value in fields.items() if name not in modules}


def _to_goat(run: Trained, folder: Path, **_: Any) -> tuple[Facts, Extra]:
    if trained_rows(run.model):
        raise UserError("it has no place for trained vectors of tokens: use --to merged")
    base = ORIGINS.get(run.config.model.path, run.config.model.path)
    reference_code.write_published(folder, run.now, run.head, base, _settings(run))
    return _facts(run, "An adapter with the published GOAT code's tensor names", "goat_jax"), {}


def _to_merged(
    run: Trained,
    folder: Path,
    name: str,
    task: int | None,
    dtype: str | None,
    shard_bytes: int,
    **_: Any,
) -> tuple[Facts, Extra]:
    form = _form(run)
    use = form.snippet(name, run.task) + pooled_logits(run.model.config, "model")
    facts = _facts(run, "A whole model, the adapter merged into it", "transformers", use)
    merged.fold_adapters(run.model, run.task_gates(task))
    fold_rows(run.model)
    if dtype is None:
        narrow = run.config.model.dtype != "float32"
        dtype = run.config.model.dtype if narrow else merged.stored_dtype(run.path)
    added = run.config.model.add_tokens
    merged.write_merged(folder, run.model, form, run.path, run.task, dtype, shard_bytes, added)
    return facts, {}


def _to_transformers(
    run: Trained,
    folder: Path,
    name: str,
    task: int | None,
    dtype: str | None,
    shard_bytes: int,
    **_: Any,
) -> tuple[Facts, Extra]:
    if task is not None or all(each.spec.router.mergeable for each in run.now.values()):
        raise UserError("it has no router, and --to merged gives a model that needs no code")
    _check_linear(run, "use --to lora, which approximates it")
    form = _form(run)
    use = form.snippet(name, run.task, ", trust_remote_code=True")
    use += pooled_logits(run.model.config, "model")
    facts = _facts(run, "A whole model with routed experts in its layers", "transformers", use)
    facts = dataclasses.replace(facts, code=CODE_NOTE)
    fold_rows(run.model)
    dtype, added = dtype or run.config.model.dtype, run.config.model.add_tokens
    merged.write_merged(
        folder, run.model, form, run.path, run.task, dtype, shard_bytes, added, run.now
    )
    return facts, {}


def _unmergeable(adapter: AdapterConfig) -> Router | None:
    """A router that no single kernel can stand for; None if all modules can be merged."""
    spec = adapter.spec()
    specs = (spec, *(override.spec(spec) for override in adapter.overrides))
    return next((each.router for each in specs if not each.router.mergeable), None)


def _to_lora(
    run: Trained, folder: Path, name: str, rows: int, gates: str, rank: int | None, **_: Any
) -> tuple[Facts, Extra]:
    if all(each.spec.router.mergeable for each in run.now.values()):
        raise UserError("it has no router to approximate, and --to peft is exact")
    measured = run.constant_gates(rows)._asdict()
    exact = {kind: run.low_rank(weights) for kind, weights in measured.items()}
    adapters = {
        kind: {name: each if rank is None else truncated(each, rank) for name, each in full.items()}
        for kind, full in exact.items()
    }
    scores = {
        kind: _scores_with(run, weights, exact[kind], adapters[kind])
        for kind, weights in measured.items()
    }
    if gates == BEST:
        gates = min(scores, key=lambda kind: scores[kind]["loss"])
    _write_lora(run, folder, adapters[gates])
    before, after = run.scores, scores.pop(gates)
    ((other, others),) = scores.items()
    change = {name: after[name] - before[name] for name in before}
    facts = _facts(
        run,
        f"An approximation as one plain LoRA, every expert with a constant weight ({gates})",
        "peft",
        _peft_use(run, name),
        approximation=after,
        change=change,
        **{f"with {other} weights": others},
    )
    note = f"the experts' {gates} weights were measured on {rows} training rows"
    shares = {name: [float(w) for w in weights] for name, weights in measured[gates].items()}
    return dataclasses.replace(facts, notes=(note,)), {"gates": shares}


def _scores_with(
    run: Trained,
    gates: Mapping[str, np.ndarray],
    exact: Mapping[str, LowRank],
    written: Mapping[str, LowRank],
) -> dict[str, float]:
    """Returns the scores of a run's model with constant weights, as a folder holds them.

    Args:
        run: the run.
        gates: module -> its experts' weights.
        exact: module -> the adapter with these weights.
        written: module -> the adapter that is written: the same, or one of a lower rank.
    """
    model = nnx.clone(run.model)
    merged.fold_adapters(model, gates)
    lost = {
        name: _product(written[name]) - _product(each)
        for name, each in exact.items()
        if written[name] is not each
    }
    merged.add_to_kernels(model, lost)
    graph, trainable, base = split_model(model)
    step = make_eval_step(graph, task_type_of(run.task).loss_fn(run.task))
    return evaluate(step, trainable, base, run.rows, run.task).scores


def _product(adapter: LowRank) -> np.ndarray:
    return adapter.scale * (adapter.a @ adapter.b)


BEST = "best"
GATES = (BEST, *ConstantGates._fields)
"""Choices of the constant weights of a plain LoRA."""

WHOLE = ("merged", "transformers")
"""Names of the formats that are complete models."""

CODE_NOTE = (
    "This folder holds Python code, modeling_goat.py: linear layers with a router and low-rank "
    "experts, and a subclass of each of the model's classes in transformers that puts them in "
    "place. It imports torch and transformers, and reads and writes no files. transformers runs it "
    "only with trust_remote_code=True; read it first."
)
"""The model card's sentence on the code in the folder."""

FORMS: dict[str, Callable[..., tuple[Facts, Extra]]] = {
    "peft": _to_peft,
    "goat": _to_goat,
    "merged": _to_merged,
    "transformers": _to_transformers,
    "lora": _to_lora,
}
"""Name of a format -> the function that writes a run to a folder in it.

The function returns the facts for the model card, and further entries of `folders.ABOUT`.
"""
