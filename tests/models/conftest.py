"""Tiny random torch models as the oracle of `goat_jax.models`, and the same for our own models."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

import vision_parity
from goat_jax.models.torch_layout import torch_tensors
from random_torch import randomized

torch.set_num_threads(1)  # tiny models; more threads only wait for each other
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES = {
    "bert": dict(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
    ),
    "distilbert": dict(
        vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=24
    ),
}
SIZES["roberta"] = SIZES["bert"]
CONFIGS = {
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
    "distilbert": transformers.DistilBertConfig,
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder and the torch model that was saved there."""

    folder: Path
    torch: Any


@pytest.fixture(scope="session")
def save_torch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Makes a random model of a transformers class, every number in it random, and saves it."""

    def save(
        family: str,
        kind: str = "ForSequenceClassification",
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        max_shard_size: str = "1GB",
        model_options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Checkpoint:
        config = CONFIGS[family](**{**SIZES[family], **settings})
        name = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}[family] + kind
        make = getattr(transformers, name)
        model = randomized(lambda: make(config, **(model_options or {})), seed)
        folder = tmp_path_factory.mktemp(name)
        model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)
        return Checkpoint(folder, model.float())

    return save


@pytest.fixture(scope="session")
def save_vision(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Makes a random vision model of a transformers class, every number in it random; saves it."""

    def save(
        family: str,
        kind: str = "ForImageClassification",
        *,
        seed: int = 0,
        num_labels: int = 3,
        text: dict[str, Any] | None = None,
        save_options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Checkpoint:
        folder = tmp_path_factory.mktemp(family)
        options: dict[str, Any] = {"kind": kind, "seed": seed, "labels": num_labels, "text": text}
        model = vision_parity.write(folder, family, settings, **options, **(save_options or {}))
        return Checkpoint(folder, model)

    return save


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., dict[str, np.ndarray]]:
    """Six rows of nine tokens: one for every way in which padding and the mask can lie."""

    def make(pad: int, types: int, vocab: int = 60, seed: int = 1) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        ids = rng.integers(pad + 1, vocab, (6, 9)).astype(np.int32)
        mask = np.ones_like(ids)
        mask[1, 6:] = 0  # on the right
        mask[2, :4] = 0  # on the left
        mask[3, 3:5] = 0  # inside
        ids[mask == 0] = pad
        ids[4, 4] = pad  # a pad token that counts
        mask[5, 5:] = 0  # masked tokens that are not pad tokens
        kinds = rng.integers(0, max(types, 1), ids.shape).astype(np.int32)
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}

    return make


@pytest.fixture(scope="session")
def run_torch() -> Callable[..., Any]:
    """Calls a torch model with a batch of numpy arrays; DistilBERT takes no token types."""

    def run(model: Any, batch: dict[str, np.ndarray], **options: Any) -> Any:
        inputs = {name: torch.from_numpy(array).long() for name, array in batch.items()}
        if model.config.model_type == "distilbert":
            inputs.pop("token_type_ids", None)
        return model(**inputs, **options)

    return run


@pytest.fixture(scope="session")
def by_torch_name() -> Callable[[nnx.Module], dict[str, np.ndarray]]:
    """All parameters of one of our models by torch's names, in torch's layout."""
    return torch_tensors


@pytest.fixture(scope="session")
def jit() -> Callable[..., Any]:
    """`jax.jit` that compiles in half the time: these programs run once, on tiny arrays."""
    return partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="session")
def run_model(jit) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """The last hidden states and the logits of one of our models."""

    def outputs(graph: Any, state: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, state)
        hidden = model.encode(**batch)
        return hidden, model.classify(hidden, batch["attention_mask"])

    compiled = jit(outputs, static_argnums=0)  # once for all models of one shape

    def run(model: Any, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        hidden, logits = compiled(*nnx.split(model), batch)
        return np.asarray(hidden), np.asarray(logits)

    return run
