"""Code that loads an exported adapter with PEFT, for its model card."""

from __future__ import annotations

from goat_jax.data.pipeline.tokenize import pad_token
from goat_jax.interop.hf_config import HfForm, pooled_logits, pooling_option
from goat_jax.interop.trained_run import Trained
from goat_jax.pretrained.resolve import PACKAGE, open_checkpoint
from goat_jax.training.data import tokenizer_of


def loading_code(run: Trained, name: str) -> str:
    form, count = run.form, getattr(run.model.config, "num_labels", 0)
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
    exact = run.architecture.family.class_with(form.ending) or form.auto
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
