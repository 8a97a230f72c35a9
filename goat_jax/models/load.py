"""From a Hugging Face folder to a model: config, then every parameter from its tensor, loudly."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from goat_jax.errors import UserError
from goat_jax.models.load_parameters import ShardingOf, cast, fill, shortened
from goat_jax.models.registry import Architecture, architecture_of
from goat_jax.pretrained.resolve import open_checkpoint
from goat_jax.pretrained.safetensors import Weights
from goat_jax.typing import Key


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model and what is worth knowing of its checkpoint.

    Attributes:
        model: with all parameters filled.
        fresh: names of parameters that the checkpoint does not have (a new head).
        kind: "text encoder", "language model", ...
        weights: what was read, still open; None of a model that was made up.
        notes: what a person should know of the checkpoint, a line each.
    """

    model: Any
    fresh: tuple[str, ...]
    kind: str
    weights: Weights | None = None
    notes: tuple[str, ...] = ()


def load_model(
    path: Path,
    *,
    key: Key,
    dtype: Any = jnp.float32,
    new_head: bool = False,
    sharding: ShardingOf | None = None,
    architecture: Architecture | None = None,
    **overrides: Any,
) -> Loaded:
    """Reads a Hugging Face checkpoint folder or a GGUF file.

    Nothing is built before everything is known to fit: config, names, shapes, stored types.

    Args:
        path: a folder with config.json and safetensors (one file or shards with an index), or a
            .gguf file, whose weights are dequantised.
        key: for parameters the checkpoint does not have (a new classification head).
        dtype: of kernels, biases and embeddings, and so of the hidden states. Norms, heads
            and single arrays (class tokens, scales) are float32 always: they are small, and heads
            are trained.
        new_head: start the last layer of the head afresh even if the checkpoint has one that
            fits. One with another number of labels, or of another kind of task, is left out anyway.
        sharding: (module's site, name of the parameter) -> where its parts go; each part is read
            straight to its device. None: everything on the default device.
        architecture: what to load instead of what config.json asks for, such as the text tower of
            a CLIP checkpoint.
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
        # As transformers: two tensors in the file that differ count more than the config.
        hf, tie = {**hf, tie.key: False}, None
    try:
        config = architecture.config_of(hf, **overrides)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    model = nnx.eval_shape(lambda: architecture.build(config, rngs=nnx.Rngs(0)))
    new_head = new_head or architecture.has_other_head(hf)
    filled = fill(model, weights, architecture, key, dtype, new_head, sharding, tie)
    notes = ()
    if filled.left_out:
        start = f"; {', '.join(architecture.head)} start fresh" if architecture.head else ""
        notes = (f"{path}: left out {shortened(filled.left_out)}, of another task's head{start}",)
    return Loaded(model, filled.fresh, architecture.kind, weights, notes)


def random_model(
    hf: Mapping[str, Any], *, key: Key, dtype: Any = jnp.float32, **overrides: Any
) -> Loaded:
    """What `load_model` gives, of random numbers; under `jax.eval_shape`, of shapes only.

    Args:
        hf: config.json as a dict.  key: of all parameters.
        dtype, overrides: as for `load_model`.

    Raises:
        UserError: an unsupported model type or setting.

    >>> import jax
    >>> hf = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1,
    ...     "num_attention_heads": 2, "intermediate_size": 16}
    >>> random_model(hf, key=jax.random.key(0)).kind
    'language model'
    """
    architecture = architecture_of(hf, Path("."))
    model = architecture.build(architecture.config_of(hf, **overrides), rngs=nnx.Rngs(key))
    cast(model, architecture, dtype)
    return Loaded(model, (), architecture.kind)
