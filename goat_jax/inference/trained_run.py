"""`TrainedRun`: a finished run, loaded to predict, generate, evaluate and export."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import numpy as np

from goat_jax.config.run import RunConfig
from goat_jax.data.sources.formats import Row
from goat_jax.data.tasks.formats.conversations import chat_ids
from goat_jax.errors import UserError
from goat_jax.evaluation.generate_and_loglikelihood import answer_all
from goat_jax.evaluation.model import language_model, quick_generator
from goat_jax.evaluation.sampler import Generator, Prompt
from goat_jax.files import user_path
from goat_jax.hardware.compile_cache import keep_compiled
from goat_jax.inference.output_file import digest_of_arrays
from goat_jax.inference.predictions import Predictions
from goat_jax.inference.predictors import predictor_of, sampling_of
from goat_jax.inference.scores import Scores
from goat_jax.interop.export_run import Exported, export_run
from goat_jax.interop.trained_run import Trained
from goat_jax.sharding.config import MeshConfig
from goat_jax.training.checkpoints.restore import ONE_DEVICE
from goat_jax.training.checkpoints.run_dir import load_run
from goat_jax.training.data import run_tokenizer


class TrainedRun:
    """A run at one of its checkpoints, ready to use; `goat_jax.load` makes it.

    Args:
        folder: the run folder.
        step: the checkpoint's step; None for the best checkpoint.
        mesh: the mesh that the model is placed on.

    Attributes:
        folder: the run folder.
        config: the run's config, on this mesh.
    """

    def __init__(self, folder: Path, step: int | None = None, mesh: MeshConfig = ONE_DEVICE):
        self.folder, self._step = folder, step
        self._known = load_run(folder)
        self.config: RunConfig = dataclasses.replace(self._known[0], mesh=mesh)

    @functools.cached_property
    def trained(self) -> Trained:
        """The reopened run: its model, arrays and scores. The first access loads the weights."""
        return Trained(self.folder, self._step, self.config.mesh, self._known)

    def __repr__(self) -> str:
        method, model = self.config.adapter.method, self.config.model.path
        return f"{self.folder}, step {self.step}: {model} with {method} on {self.config.task.name}"

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return self.trained.opened.step

    def digest(self) -> str:
        """Returns the SHA-256 of the checkpoint: its base's digest, its step, its arrays.

        In a multi-process run every process has to call it.
        """
        arrays = jax.tree.leaves((self.trained.trainable, self.trained.opened.state.constants))
        base = np.frombuffer(self.trained.setup.base_fingerprint.encode(), np.uint8)
        return digest_of_arrays([base, np.array(self.step), *map(_whole, arrays)])

    def predict(
        self, rows: Sequence[Any], *, batch_size: int | None = None, **sampling: Any
    ) -> Predictions:
        """Predicts the label, the value or the answer of each row.

        Args:
            rows: dictionaries with the columns of the task, or texts, pairs of texts or images
                (paths, a file's bytes, arrays), as the task reads them; no labels are needed.
            batch_size: the number of rows in a batch; None for the run's evaluation batch size,
                and 16 prompts for a language model.
            sampling: fields of `goat_jax.evaluation.sampler.Sampling`, for language models.

        Raises:
            UserError: no rows, or a row that the task cannot read.
        """
        if isinstance(rows, str | bytes | Mapping) or not len(rows):
            raise UserError("predict takes a list of one row or more")
        task, predictor = self.config.task, predictor_of(self.config.task)
        full = [
            dict(row) if isinstance(row, Mapping) else predictor.as_row(task, row) for row in rows
        ]
        encoded = predictor.encode(task, self.config, full, "predict")
        predict = self.predictor(full, encoded, batch_size, **sampling)
        return predict(range(len(full)))

    def predictor(
        self,
        rows: Sequence[Row],
        encoded: Any,
        batch_size: int | None,
        **sampling: Any,
    ) -> Callable[[range], Predictions]:
        """Returns a function from numbers of rows to their predictions.

        Args:
            rows: the rows.
            encoded: the rows as the task's `Predictor.encode` returns them.
            batch_size: as for `predict`.
            sampling: as for `predict`.
        """
        task, kind = self.config.task, predictor_of(self.config.task)
        size, settings = batch_size or kind.batch_size(self.config), sampling_of(task, **sampling)
        if self.trained.setup.shardings is not None:
            self.trained.setup.shardings.rules.check_rows("the batch size", size)

        def predict(numbers: range) -> Predictions:
            outputs = kind.predict(self, encoded, numbers, size, settings)
            return kind.finish(task, rows[numbers.start : numbers.stop], outputs)

        return predict

    @functools.cached_property
    def generator(self) -> Generator:
        """The generator of answers; a `UserError` if the model is not a language model."""
        trained = self.trained
        model = language_model(trained.model, trained.setup.kind, self.folder)
        return quick_generator(model, run_tokenizer(trained.config.model))

    @overload
    def generate(self, prompts: str, *, chat: bool = False, **sampling: Any) -> str: ...

    @overload
    def generate(
        self, prompts: list[str] | tuple[str, ...], *, chat: bool = False, **sampling: Any
    ) -> list[str]: ...

    def generate(
        self, prompts: str | list[str] | tuple[str, ...], *, chat: bool = False, **sampling: Any
    ) -> str | list[str]:
        """Continues a prompt, or each prompt of a list, exactly as it is given.

        Args:
            prompts: the prompt or prompts.
            chat: whether to put each prompt into the model's chat template.
            sampling: fields of `goat_jax.evaluation.sampler.Sampling`: temperature, top_p,
                max_new_tokens, stop, seed.

        Raises:
            UserError: the model is not a language model, or a prompt that does not fit.
        """
        settings = sampling_of(self.config.task, **sampling)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        prompt_inputs: list[Prompt] = list(texts)
        if chat:
            tokenizer = self.generator.tokenizer
            prompt_inputs = [
                chat_ids(tokenizer, [{"role": "user", "content": text}]) for text in texts
            ]
        size = min(len(prompt_inputs), 16)
        answers = [one.text for one in answer_all(self.generator, prompt_inputs, settings, size)]
        return answers[0] if isinstance(prompts, str) else answers

    def evaluate(self) -> Scores:
        """Returns the loss and the task's metrics on the run's evaluation rows."""
        return Scores(self.trained.scores)

    def export(self, to: str, out: str | Path, **options: Any) -> Exported:
        """Writes the run in another format.

        Args:
            to: the format: "peft", "goat", "merged", "transformers" or "lora".
            out: the folder to create.
            options: further options of `goat_jax.interop.export_run.export_run`.
        """
        return export_run(self.folder, to, user_path(out), step=self.step, **options)


def _whole(array: jax.Array) -> Any:
    """Returns an array that this process has completely."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return array
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(array, tiled=True)


def load(run: str | Path, step: int | None = None, mesh: MeshConfig = ONE_DEVICE) -> TrainedRun:
    """Loads a run, trained here or imported, to predict, generate, evaluate and export.

    Programs that jax compiles are kept for the next start in the user's cache folder, as on the
    command line (`goat_jax.hardware.compile_cache`).

    Args:
        run: the run folder.
        step: the checkpoint's step; None for the best checkpoint.
        mesh: the mesh that the model is placed on.

    Raises:
        UserError: the folder holds no run, or no intact checkpoint of that step.
    """
    keep_compiled()
    trained_run = TrainedRun(user_path(run), step, mesh)
    trained_run.trained  # noqa: B018
    return trained_run
