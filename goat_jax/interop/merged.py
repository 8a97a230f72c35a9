"""Writes Hugging Face checkpoints: kernels with folded or routed adapters, config, tokenizer."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.adapters.adapter import merge_adapter
from goat_jax.adapters.parts.routers import NoRouter
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.data.pipeline.image_view import view_of
from goat_jax.data.pipeline.tokenize import load_tokenizer, pad_token
from goat_jax.data.tasks.image import ImageTask
from goat_jax.data.tasks.multi_label import MultiLabelTask
from goat_jax.data.tasks.registry import Task
from goat_jax.errors import UserError
from goat_jax.interop.folders import SHARD_BYTES, write_json, write_shards, write_tensors
from goat_jax.interop.hf_config import HfForm
from goat_jax.interop.modules import AdaptedModule
from goat_jax.interop.routed_model import routed_weights, with_experts, write_code
from goat_jax.models.expert_tensors import join_experts
from goat_jax.models.fused import join
from goat_jax.models.registry import ARCHITECTURES, Architecture, architecture_of
from goat_jax.models.torch_layout import torch_parameters
from goat_jax.nn.model import Model
from goat_jax.nn.named_modules import find_modules
from goat_jax.pretrained.gguf.file import SUFFIX
from goat_jax.pretrained.resolve import open_checkpoint
from goat_jax.training.data import tokenizer_of
from goat_jax.typing import Array, Factors

TOKENIZER_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "chat_template*", "preprocessor_config.json", "processor_config.json"),
    "generation_config.json",
)


def fold_adapters(model: nnx.Module, gates: Mapping[str, np.ndarray] | None = None) -> None:
    """Folds every adapter into its kernel, in place.

    Args:
        model: the model.
        gates: module -> (E,) weights that replace a router's; None for adapters that a single
            kernel can express.

    Raises:
        UserError: no single kernel equals an adapter, and there are no gates.

    >>> from goat_jax import inject, method_spec
    >>> from goat_jax.testing import TinyModel
    >>> model = TinyModel()
    >>> _ = inject(model, method_spec("lora", total_rank=2), key=jax.random.key(0))
    >>> fold_adapters(model)
    >>> any(ref.module.adapter for ref in find_modules(model))
    False
    """
    for ref in find_modules(model):
        dense, adapter = ref.module, ref.module.adapter
        if adapter is None:
            continue
        spec, scale = adapter.spec, adapter.scale[...]
        if gates is not None:
            weights = ref.joined(np.stack([gates[name] for name in ref.names()]))
            spec, scale = without_router(spec), scale * jnp.asarray(weights, scale.dtype)
        fold = partial(_fold, spec)
        for _ in ref.axes:
            fold = jax.vmap(fold)
        arrays = adapter.factors() | adapter.constants()
        dense.kernel.set_value(jax.jit(fold)(dense.kernel[...], arrays, scale))
        dense.adapter = nnx.data(None)


def add_to_kernels(model: nnx.Module, changes: Mapping[str, np.ndarray]) -> None:
    """Adds a change (I, O) to the kernel of each named module, in place."""
    for ref in find_modules(model):
        if all(name in changes for name in ref.names()):
            kernel = ref.module.kernel[...]
            change = ref.joined(np.stack([changes[name] for name in ref.names()]))
            ref.module.kernel.set_value(kernel + jnp.asarray(change, kernel.dtype))


def without_router(spec: AdapterSpec) -> AdapterSpec:
    """Returns the spec without its router, for experts whose weights are in their scales."""
    return spec.replace(router=NoRouter())


def _fold(spec: AdapterSpec, kernel: Array, arrays: Factors, scale: Array) -> Array:
    return merge_adapter(kernel, arrays, scale, spec)


def write_merged(
    folder: Path,
    model: Model,
    form: HfForm,
    path: Path,
    task: Task,
    dtype: str,
    most: int = SHARD_BYTES,
    add_tokens: Sequence[str] = (),
    routed: Mapping[str, AdaptedModule] | None = None,
) -> None:
    """Writes the weights and config.json of a model, and its tokenizer.

    For an image task, preprocessor_config.json describes how the images have to be prepared.

    Args:
        folder: the folder to write to.
        model: the model.
        form: the model's form in transformers.
        path: the folder or file of the pretrained model.
        task: the task that the model was trained on.
        dtype: the dtype of the written weights, a key of `DTYPES`.
        most: the largest size of a file, in bytes.
        add_tokens: the tokens that the run added to the tokenizer.
        routed: module -> its trained adapter, all of those that the model has, for a folder with
            experts and their code; None for a model without adapters.

    Raises:
        UserError: the model still has adapters, its config has no counterpart in config.json,
            transformers' class cannot express its head, or a weight is out of the dtype's range.
    """
    if routed is None and any(ref.module.adapter is not None for ref in find_modules(model)):
        raise UserError("the model still has adapters: fold them first")
    hf = open_checkpoint(path)[0]
    architecture = architecture_of(hf, path)
    changes = changed_keys(architecture, hf, model.config)
    if routed is not None:  # transformers translates no stored names for a folder's own code
        written = tuple(
            dataclasses.replace(each, written=True) for each in architecture.expert_tensors
        )
        architecture = dataclasses.replace(architecture, renamed=(), expert_tensors=written)
    stored = architecture.stored_name
    parts = (model, *form.parts(model, path, task))
    tensors = (
        (stored(name), tensor)
        for part in parts
        for name, tensor in torch_parameters(part)
        if form.has(name)
    )
    tensors = join(tensors, architecture.fused)
    mixture = getattr(model.config, "mixture", None)
    if mixture is not None:
        tensors = join_experts(tensors, mixture.num_experts, architecture.expert_tensors)
    if routed is not None:
        blocks = {
            part.partition(".")[0]: each.name.partition(".")[0]
            for each in architecture.expert_tensors
            for part in each.parts
        }
        tensors = routed_weights(tensors, routed, blocks)
    write_shards(folder, ((name, as_stored(name, x, dtype)) for name, x in tensors), most)
    if form.aside:
        left = {name: as_stored(name, x, dtype) for name, x in torch_parameters(model)}
        aside = {name: tensor for name, tensor in left.items() if not form.has(name)}
        write_tensors(folder / form.aside, aside)
    labels = class_names(getattr(task, "labels", ()), getattr(model.config, "num_labels", 0))
    config = {**hf, **changes, **_settings_of(form, task, path, model.config)}
    config = merged_config(config, form, dtype, labels)
    if routed is not None:
        write_code(folder, config)
        config = with_experts(config, form, routed)
    write_json(folder / "config.json", config)
    write_tokenizer(path, folder, add_tokens)
    if isinstance(task, ImageTask):  # the task may preprocess images unlike the pretrained model
        write_json(folder / "preprocessor_config.json", view_of(task, path).config())


def _settings_of(form: HfForm, task: Task, path: Path, config: Any) -> dict[str, Any]:
    """Returns keys of config.json that the task decides."""
    settings: dict[str, Any] = {}
    if isinstance(task, MultiLabelTask):
        settings["problem_type"] = "multi_label_classification"
    if form.pads and config.pad_id is None:
        settings["pad_token_id"] = pad_token(tokenizer_of(path))
    return settings


DTYPES = {"float32": np.float32, "bfloat16": jnp.bfloat16, "float16": np.float16}
"""Name -> dtype that weights can be written in."""

STORED_AS = {"BF16": "bfloat16", "F16": "float16"}
"""Stored dtype of a checkpoint -> dtype to write; all others are written as float32."""


def stored_dtype(path: Path) -> str:
    """Returns the dtype that most numbers of a checkpoint are stored in."""
    sizes: Counter[str] = Counter()
    for entry in open_checkpoint(path)[1].entries.values():
        sizes[STORED_AS.get(entry.dtype, "float32")] += int(np.prod(entry.shape))
    return sizes.most_common(1)[0][0]


def as_stored(name: str, tensor: np.ndarray, dtype: str) -> np.ndarray:
    """Casts a tensor to the dtype that it is written in.

    Args:
        name: the tensor's name, for messages.
        tensor: the tensor.
        dtype: a key of `DTYPES`.

    Raises:
        UserError: a number is out of the dtype's range.
    """
    with np.errstate(over="ignore"):
        cast = tensor.astype(DTYPES[dtype])
    if not np.isfinite(cast).all():
        raise UserError(f"{name} has values beyond the range of {dtype}: give --dtype float32")
    return cast


ELSEWHERE = ("family", "num_labels", "head", "pooling", "dropout")
"""Fields of our configs that config.json expresses in another way (class, labels), or that are a
note on the model card."""


def changed_keys(
    architecture: Architecture, hf: Mapping[str, Any], config: object
) -> dict[str, Any]:
    """Returns the keys of config.json whose values differ from the pretrained model's.

    Args:
        architecture: the model's architecture.
        hf: the pretrained model's config.json.
        config: the model's goat_jax config.

    Raises:
        UserError: a field differs, and config.json has no key for it.

    >>> from goat_jax.models.registry import ARCHITECTURES
    >>> hf = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1,
    ...     "num_attention_heads": 2, "intermediate_size": 16}
    >>> llama = ARCHITECTURES["llama"]
    >>> changed_keys(llama, hf, llama.config_of(hf, tie_embeddings=True))
    {'tie_word_embeddings': True}
    """
    before, changed = architecture.config_of(hf), {}
    for field in dataclasses.fields(before):
        value = getattr(config, field.name)
        known = field.name in architecture.keys
        if value == getattr(before, field.name) or (field.name in ELSEWHERE and not known):
            continue
        if not known:
            raise UserError(
                f"{field.name} differs from the pretrained config.json, which has no key for it: "
                "remove it from model.options"
            )
        changed[architecture.keys[field.name]] = value
    return changed


def class_names(labels: Sequence[str], count: int) -> Sequence[str]:
    """Returns the names of a head's outputs, or transformers' default names if there are none.

    >>> class_names((), 1)
    ['LABEL_0']
    """
    return labels or [f"LABEL_{number}" for number in range(count)]


def merged_config(
    hf: Mapping[str, Any], form: HfForm, dtype: str, labels: Sequence[str]
) -> dict[str, Any]:
    """Builds the config.json of the merged model.

    Args:
        hf: the pretrained model's config.json.
        form: the model's form in transformers.
        dtype: the dtype of its weights.
        labels: the names of the classes, () if there are none.

    >>> from goat_jax.interop.hf_config import FORMS
    >>> form = FORMS["text encoder", "sequence"]
    >>> found = merged_config({"model_type": "bert"}, form, "float32", ["no", "yes"])
    >>> found["architectures"], found["id2label"]
    (['BertForSequenceClassification'], {'0': 'no', '1': 'yes'})
    """
    # What is written is not quantized, whatever was read.
    config = {key: hf[key] for key in hf if key not in ("torch_dtype", "quantization_config")}
    architecture = ARCHITECTURES.get(str(hf.get("model_type")))
    if architecture is not None:
        family = architecture.family
        config = family.exported(config, form.ending) | {
            "architectures": [family.class_with(form.ending)]
        }
    if labels:
        config["id2label"] = {str(number): label for number, label in enumerate(labels)}
        config["label2id"] = {label: number for number, label in enumerate(labels)}
    return config | {"dtype": dtype}


def write_tokenizer(source: Path, folder: Path, add_tokens: Sequence[str] = ()) -> None:
    """Copies the tokenizer, image preprocessor and generation settings of a checkpoint folder.

    Writes the tokenizer that a .gguf file holds, and one with further tokens.
    """
    if source.suffix == SUFFIX:
        load_tokenizer(source, add_tokens).save_pretrained(folder)
        return
    for pattern in TOKENIZER_FILES:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    if add_tokens:
        load_tokenizer(source, add_tokens).save_pretrained(folder)
