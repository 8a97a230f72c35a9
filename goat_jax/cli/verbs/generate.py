"""``goat-jax generate``: answers prompts with a run or a pretrained model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from goat_jax.data.pipeline.tokenize import load_tokenizer
from goat_jax.data.sources.formats import Row, read_jsonl
from goat_jax.data.tasks.formats.conversations import chat_ids, chat_text
from goat_jax.data.tasks.language import fill
from goat_jax.errors import UserError
from goat_jax.evaluation.model import language_model, quick_generator
from goat_jax.evaluation.sampler import Generator, Prompt, Sampling
from goat_jax.inference.trained_run import load
from goat_jax.pretrained.resolve import find_model
from goat_jax.sharding.config import MeshConfig
from goat_jax.training.checkpoints.restore import load_on_mesh
from goat_jax.training.checkpoints.run_dir import RUN

BATCH = 16
"""Number of prompts in one batch."""


def generate(
    source: str,
    prompts: list[str],
    file: Path | None,
    sampling: Sampling,
    *,
    chat: bool,
    step: int | None,
    mesh: MeshConfig,
    as_json: bool,
) -> int:
    """Answers prompts with a run's checkpoint or a pretrained model; streams a single answer.

    Args:
        source: a run folder, or a pretrained model.
        prompts: the prompts.
        file: a JSONL file with further prompts, or with rows for the prompt template of the run.
        sampling: temperature, length and the other sampling options.
        chat: whether to put each prompt into the model's chat template.
        step: the checkpoint's step; None for the best checkpoint.
        mesh: the mesh that the model is placed on.
        as_json: whether to print JSON, one line per prompt.

    Returns:
        The exit code.
    """
    rows = [] if file is None else list(read_jsonl(file))  # before the model, which takes longer
    if not (prompts or rows):
        raise UserError("no prompt is given: give --prompt TEXT or --prompts FILE.jsonl")
    generator, template = _open(source, step, mesh)
    texts = [*prompts, *_filled(rows, template, str(file))]
    prompt_inputs: list[Prompt] = list(texts)
    if chat:
        turns = [[{"role": "user", "content": text}] for text in texts]
        texts = [chat_text(generator.tokenizer, turn, answer=True) for turn in turns]
        prompt_inputs = [chat_ids(generator.tokenizer, turn) for turn in turns]
    if len(texts) == 1 and not as_json:
        generator.answers(prompt_inputs, sampling, stream=_show)
        print()
        return 0
    for start in range(0, len(texts), BATCH):
        batch = slice(start, start + BATCH)
        answers = generator.answers(prompt_inputs[batch], sampling)
        for prompt, answer in zip(texts[batch], answers, strict=True):
            line = {"prompt": prompt, "answer": answer}
            print(json.dumps(line) if as_json else f"{prompt}\n-> {answer}\n")
    return 0


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _filled(rows: list[Row], template: str, where: str) -> list[str]:
    """Returns one prompt per row: the run's template filled in, or without one the column "prompt".

    Args:
        rows: the rows of the file.
        template: the prompt template of the run's task; empty for a model.
        where: the file's name, for messages.
    """
    prompts = []
    for number, row in enumerate(rows, start=1):
        try:
            prompts.append(fill(template or "{prompt}", row))
        except UserError as error:
            raise UserError(f"{where}: row {number}: {error}") from None
    return prompts


def _open(source: str, step: int | None, mesh: MeshConfig) -> tuple[Generator, str]:
    """Returns a generator and the prompt template of the run's task, which is empty for a model."""
    if (Path(source) / RUN).is_file():
        run = load(source, step, mesh)
        return run.generator, getattr(run.config.task, "prompt", "")
    if step is not None:
        raise UserError(f"{source} is a model, not a run: --step needs a run folder")
    path = find_model(source)
    loaded = load_on_mesh(path, mesh)
    model = language_model(loaded.model, loaded.kind, source)
    return quick_generator(model, load_tokenizer(path)), ""
