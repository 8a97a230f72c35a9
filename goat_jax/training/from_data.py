"""`train`: fine-tunes a model on data, with settings that follow from both."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from goat_jax.config.guess import propose
from goat_jax.training.distributed.processes import is_first
from goat_jax.training.logging.summary import Summary
from goat_jax.training.trainer import fit


def train(
    model: str,
    data: str | Path,
    held_out: str | Path | None = None,
    *,
    epochs: float | None = None,
    progress: bool = True,
    **fields: Any,
) -> Summary:
    """Fine-tunes a model on data, as ``goat-jax train --model NAME --data FILE`` does.

    Args:
        model: a checkpoint folder, the name of a repository of the Hugging Face hub, or
            ``package:NAME``.
        data: a table (CSV, TSV, JSON, JSONL, Parquet), or a folder of images with a subfolder for
            each class.
        held_out: data of the same form to evaluate on; None holds out a tenth of the rows.
        epochs: the number of passes over the training rows; 3 if ``train.steps`` is not given.
        progress: whether to print the settings that were chosen, and draw a progress bar.
        fields: values of other fields of `RunConfig` by their dotted names, such as
            ``**{"train.batch_size": 8}``.

    Returns:
        The run's scores, its best checkpoint and its folder.

    Raises:
        UserError: no such model or data, or a column that cannot be found.
        RunFailed: see `goat_jax.training.trainer.fit`.
    """
    if epochs is not None:
        fields["train.epochs"] = epochs
    proposal = propose(model, data, held_out, fields)
    if progress and is_first():
        print("\n".join(proposal.lines), flush=True)
    say = partial(print, flush=True) if progress else None
    return fit(proposal.config, progress=progress, say=say)
