"""Moves damaged checkpoints out of the way of a run that continues."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

from goat_jax.errors import Notice, UserError
from goat_jax.training.checkpoints.checksums import damage_of
from goat_jax.training.checkpoints.steps import listed, steps_in

DAMAGED = "damaged"
"""Folder inside the run folder to which damaged checkpoints are moved when a run continues."""


def move_damaged(root: Path) -> None:
    """Moves the damaged checkpoints of a folder to `DAMAGED` beside it; nothing is deleted.

    In checkpoints older than the newest intact one, large files are not hashed: that is done when
    such a checkpoint is opened.

    Raises:
        UserError: there are checkpoints, and none of them is intact.
    """
    damaged: dict[int, str] = {}
    newest: int | None = None
    for step in steps_in(root):
        reason = damage_of(root / str(step), step, thorough=newest is None)
        if reason is not None:
            damaged[step] = reason
        elif newest is None:
            newest = step
    if damaged and newest is None:
        raise UserError(
            f"no checkpoint in {root} is intact ({listed(damaged)}): restore one from a backup, or "
            "start again with another --out"
        )
    for step, reason in damaged.items():
        kept = _free_name(root.parent / DAMAGED, str(step))
        (root / str(step)).rename(kept)
        warnings.warn(
            f"the checkpoint of step {step} is skipped ({reason}) and was moved to {kept}; the "
            f"newest intact one is that of step {newest}",
            Notice,
            stacklevel=2,
        )


def _free_name(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    names = (name if n == 1 else f"{name}-{n}" for n in itertools.count(1))
    return next(folder / each for each in names if not (folder / each).exists())
