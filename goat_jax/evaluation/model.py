"""The language model under evaluation, from a run's checkpoint or as pretrained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from goat_jax.config.run import DTYPES
from goat_jax.data.pipeline.tokenize import load_tokenizer
from goat_jax.data.tasks.registry import Task
from goat_jax.errors import UserError
from goat_jax.evaluation.journal import digest
from goat_jax.evaluation.loglikelihood import Scorer
from goat_jax.evaluation.sampler import Generator
from goat_jax.models.decoder.config import DecoderConfig
from goat_jax.models.decoder.model import Decoder
from goat_jax.nn.dense import merge_model, split_model
from goat_jax.nn.model import Model
from goat_jax.pretrained.resolve import find_model
from goat_jax.sharding.config import MeshConfig
from goat_jax.training.checkpoints.restore import ONE_DEVICE, load_on_mesh, restore_run
from goat_jax.training.checkpoints.run_dir import RUN
from goat_jax.training.task_types import LANGUAGE_MODEL
from goat_jax.typing import Array, PyTree, Tokenizer

MULTIPLE = 64
"""Prompts are padded to a multiple of this number of tokens."""


def language_model(model: Model, kind: str, source: str | Path) -> Decoder:
    """Returns a model that generates text.

    Args:
        model: the model.
        kind: the model's kind.
        source: the run or the model's name, for the message.

    Raises:
        UserError: the model is of another kind.
    """
    if not isinstance(model, Decoder):
        raise UserError(f"{source} is a {kind}: only a {LANGUAGE_MODEL} generates text")
    return model


def quick_generator(model: Decoder, tokenizer: Tokenizer) -> Generator:
    """Returns a generator for single prompts and few ones.

    On a CPU, separate layers take longer to compile but answer faster. The compiled program is kept
    for the next start, so the time per token matters more.
    """
    return Generator(model, tokenizer, MULTIPLE, apart=jax.default_backend() == "cpu")


@dataclasses.dataclass(frozen=True)
class EvalModel:
    """A language model with its tokenizer.

    Attributes:
        name: the name of the run's folder or of the model.
        graph: the model's graph (`goat_jax.nn.dense.split_model`).
        trainable: the model's trainable pytree.
        base: the model's frozen pytree.
        config: the decoder's config.
        tokenizer: the checkpoint's tokenizer.
        task: the run's task; None for a pretrained model.
        step: the checkpoint's step; None for a pretrained model.
    """

    name: str
    graph: nnx.GraphDef[Decoder]
    trainable: dict[str, PyTree]
    base: PyTree
    config: DecoderConfig
    tokenizer: Tokenizer
    task: Task | None = None
    step: int | None = None

    def generator(self) -> Generator:
        """Returns a generator of answers to prompts."""
        model = merge_model(self.graph, self.trainable, self.base)
        return Generator(model, self.tokenizer, MULTIPLE)

    def digest(self) -> str:
        """Returns a short hash of the name, the step and checksums of all weights."""
        leaves = jax.tree.leaves((self.trainable, self.base))
        arrays = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.number)]
        sums = [(leaf.shape, float(_sum(leaf)), float(_sum(jnp.abs(leaf)))) for leaf in arrays]
        return digest([self.name, self.step, sums])

    def scorer(self) -> Scorer:
        """Returns a scorer of the log-likelihoods of continuations."""
        return Scorer(self.graph, self.trainable, self.base, self.config, self.tokenizer)


@jax.jit
def _sum(leaf: Array) -> Array:
    return leaf.astype(jnp.float32).sum()


def load_eval_model(
    source: str, step: int | None = None, dtype: str = "float32", mesh: MeshConfig = ONE_DEVICE
) -> EvalModel:
    """Loads a run's checkpoint or a pretrained model.

    Args:
        source: a run's folder, or the name or path of a pretrained model.
        step: the run's checkpoint; None: the best one.
        dtype: the dtype of a pretrained model's weights; a run's dtype is in its config.
        mesh: the device mesh to load it on. The number of prompts in a batch is arbitrary, so only
            `tensor` may be above 1.

    Raises:
        UserError: `source` is neither a run nor a model, or it is not a language model.
    """
    if (Path(source) / RUN).is_file():
        return _open_run(Path(source), step, mesh)
    if step is not None:
        raise UserError(f"{source} is a model, not a run: --step needs a run folder")
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    path = find_model(source)
    loaded = load_on_mesh(path, mesh, dtype=DTYPES[dtype])
    model = language_model(loaded.model, loaded.kind, source)
    graph, trainable, base = split_model(model)
    name = Path(path).name or source
    return EvalModel(name, graph, trainable, base, model.config, load_tokenizer(path))


def _open_run(folder: Path, step: int | None, mesh: MeshConfig) -> EvalModel:
    run = restore_run(folder, step, mesh)
    graph, trainable, base = run.setup.graph, run.state.trainable, run.state.frozen(run.setup.base)
    model = language_model(merge_model(graph, trainable, base), run.setup.kind, folder)
    return EvalModel(
        name=folder.resolve().name,
        graph=cast(nnx.GraphDef[Decoder], graph),
        trainable=trainable,
        base=base,
        config=model.config,
        tokenizer=load_tokenizer(find_model(run.config.model.path), run.config.model.add_tokens),
        task=run.config.task,
        step=run.step,
    )
