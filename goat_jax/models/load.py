"""Loads a model from a checkpoint; a setting or tensor that does not fit is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from goat_jax.errors import UserError
from goat_jax.models.expert_tensors import split_experts
from goat_jax.models.fused import split
from goat_jax.models.load_parameters import ShardingOf, cast, fill, shortened
from goat_jax.models.registry import Architecture, architecture_of, has_other_head
from goat_jax.nn.model import Model
from goat_jax.pretrained.resolve import open_checkpoint
from goat_jax.pretrained.safetensors import Weights
from goat_jax.typing import DTypeLike, Key


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with facts about its checkpoint.

    Attributes:
        model: the model, with all parameters set.
        fresh: names of parameters that the checkpoint does not have (a new head).
        kind: the kind of model: "text encoder", "language model", ...
        weights: the checkpoint's tensors, still readable; None for a random model.
        notes: remarks on the checkpoint for the user, one line each.
    """

    model: Model
    fresh: tuple[str, ...]
    kind: str
    weights: Weights | None = None
    notes: tuple[str, ...] = ()


def load_model(
    path: Path,
    *,
    key: Key,
    dtype: DTypeLike = jnp.float32,
    new_head: bool = False,
    sharding: ShardingOf | None = None,
    architecture: Architecture | None = None,
    **overrides: Any,
) -> Loaded:
    """Loads a Hugging Face checkpoint folder or a GGUF file.

    Config, names, shapes and stored types are all checked before any parameter is set.

    Args:
        path: a folder with config.json and safetensors (one file or shards with an index), or a
            .gguf file, whose weights are dequantized.
        key: PRNG key for parameters that the checkpoint does not have (a new classification head).
        dtype: dtype of kernels, biases and embeddings, and so of the hidden states. Norms, heads
            and single arrays (class tokens, scales) are always float32: they are small, and heads
            are trained.
        new_head: whether to initialize the last layer of the head even if the checkpoint has one
            that fits. One with another number of labels, or for another task, is never loaded.
        sharding: function from (module, name of the parameter) to the parameter's sharding; each
            shard is read straight to its device. None puts everything on the default device.
        architecture: the architecture to load instead of that of config.json, such as the text
            tower of a CLIP checkpoint.
        overrides: fields of the model's config, such as num_labels.

    Raises:
        UserError: no config, an unsupported model type or setting, no safetensors, a damaged
            file, missing, unexpected or misshapen tensors.
    """
    path = Path(path)
    hf, weights = open_checkpoint(path)
    architecture = architecture or architecture_of(hf, path)
    tie = architecture.tie if architecture.tie and architecture.tie.applies(hf) else None
    if tie and not tie.equal(weights):
        # As in transformers: if the file has two different tensors, the config's tie is ignored.
        hf, tie = {**hf, tie.key: False}, None
    try:
        config = architecture.config_of(hf, **overrides)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    architecture = architecture.for_config(config)
    left_out = weights.left_out
    weights = split(weights, architecture.fused, config)
    weights = split_experts(weights, architecture.expert_tensors)
    # Abstract, so that no parameter takes memory before its tensor is read.
    model = nnx.eval_shape(lambda: architecture.build(config, rngs=nnx.Rngs(0)))
    new_head = new_head or has_other_head(hf, getattr(config, "head", ""))
    filled = fill(model, weights, architecture, key, dtype, new_head, sharding, tie)
    notes: tuple[str, ...] = ()
    if left_out:
        notes = (f"{path}: its language model alone, without {', '.join(left_out)}",)
    if filled.left_out:
        start = f"; newly initialized: {', '.join(architecture.head)}" if architecture.head else ""
        notes += (f"{path}: left out {shortened(filled.left_out)}, of another task's head{start}",)
    return Loaded(model, filled.fresh, architecture.kind, weights, notes)


def random_model(
    hf: Mapping[str, Any], *, key: Key, dtype: DTypeLike = jnp.float32, **overrides: Any
) -> Loaded:
    """Builds a model as `load_model` does, with random parameters.

    Under `jax.eval_shape` the parameters are abstract.

    Args:
        hf: config.json as a dict.
        key: PRNG key for all parameters.
        dtype: see `load_model`.
        overrides: see `load_model`.

    Raises:
        UserError: an unsupported model type or setting.

    >>> import jax
    >>> hf = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1,
    ...     "num_attention_heads": 2, "intermediate_size": 16}
    >>> random_model(hf, key=jax.random.key(0)).kind
    'language model'
    """
    architecture = architecture_of(hf, Path("."))
    config = architecture.config_of(hf, **overrides)
    model = architecture.build(config, rngs=nnx.Rngs(key))
    cast(model, architecture.for_config(config), dtype)
    return Loaded(model, (), architecture.kind)
