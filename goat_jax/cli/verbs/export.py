"""``goat-jax export``: writes a run's adapter or merged model in another format."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from goat_jax.errors import UserError
from goat_jax.interop.export_run import export_run
from goat_jax.interop.hub import check_push, push


def export(
    folder: Path,
    to: str,
    out: Path,
    *,
    step: int | None,
    task: int | None,
    rows: int,
    gates: str,
    rank: int | None,
    dtype: str | None,
    as_json: bool,
    push_to: str | None = None,
    public: bool = False,
) -> int:
    """Exports a run; prints the folder, the scores and the notes of the export.

    Args:
        folder: the run folder.
        to: the format: "peft", "goat", "merged", "transformers" or "lora".
        out: the folder to write, which must not exist yet.
        step: the checkpoint's step; None for the best checkpoint.
        task: the task of a task-gated adapter, by its number.
        rows: the number of training rows on which constant weights are measured.
        gates: the constant weights of "lora": "best", "fitted" or "mean".
        rank: the largest rank of "lora"; None for all of it.
        dtype: the dtype of merged weights; None for that of the pretrained ones.
        as_json: whether to print JSON.
        push_to: the repository of the Hugging Face hub to upload the folder to, or None.
        public: whether anybody may see a new repository.

    Returns:
        The exit code.
    """
    if public and push_to is None:
        raise UserError("--public needs --push USER/NAME")
    if push_to is not None:
        check_push(push_to)
    exported = export_run(
        folder, to, out, step=step, task=task, rows=rows, gates=gates, rank=rank, dtype=dtype
    )
    if as_json:
        about = {"folder": str(out), "step": exported.step, "notes": exported.notes}
        print(json.dumps(about | {"scores": exported.scores}))
    else:
        print(exported)
    if push_to is not None:
        name = f"{to} of {folder.name}, step {exported.step}"
        address = push(out, push_to, public=public, message=f"goat-jax export: {name}")
        print(f"uploaded to {address}", file=sys.stderr)
    return 0
