"""From a Hugging Face folder to a model: config, then every parameter from its tensor, loudly."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from goat_jax.errors import UserError
from goat_jax.models.architecture import Architecture, architecture_of
from goat_jax.models.fill import fill
from goat_jax.models.safetensors import open_weights, read_json
from goat_jax.typing import Key


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model and what is worth knowing of its checkpoint.

    Attributes:
        model: with all parameters filled.
        fresh: names of parameters that the checkpoint does not have (a new head).
    """

    model: Any
    fresh: tuple[str, ...]


def load_model(
    folder: Path,
    *,
    key: Key,
    dtype: Any = jnp.float32,
    new_head: bool = False,
    architecture: Architecture | None = None,
    **overrides: Any,
) -> Loaded:
    """Reads a Hugging Face checkpoint folder.

    Nothing is built before everything is known to fit: config, names, shapes, stored types.

    Args:
        folder: has config.json and safetensors, one file or shards with an index.
        key: for parameters the checkpoint does not have (a new classification head).
        dtype: of kernels, biases and embeddings, and so of the hidden states. Norms and heads are
            float32 always: they are small, and heads are trained.
        new_head: start the last layer of the head afresh even if the checkpoint has one, as when
            a model tuned on one task goes on to a task with other labels.
        architecture: what to load instead of what config.json asks for, such as the text tower of
            a CLIP checkpoint.
        overrides: fields of the model's config, such as num_labels.

    Raises:
        UserError: no config, an unsupported model type or setting, no safetensors, a damaged
            file, missing, unexpected or misshapen tensors.
    """
    folder = Path(folder)
    hf = read_json(folder / "config.json", "a checkpoint folder")
    architecture = architecture or architecture_of(hf, folder)
    try:
        config = architecture.config(hf, **overrides)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    model = nnx.eval_shape(lambda: architecture.build(config, rngs=nnx.Rngs(0)))
    weights = open_weights(folder)
    return Loaded(model, fill(model, weights, architecture, key, dtype, new_head))
