"""The run folder's identity: run.json says which run it is, and a restart must be that run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from goat_jax.config import FREE_TO_CHANGE, RunConfig, config_from_json, flatten
from goat_jax.errors import UserError
from goat_jax.run.setup import Built

RUN = "run.json"
RESULT = "result.json"  # what a run of a table came to
# A rebuilt SVD differs by rounding (1e-7); another segment, seed or rho by more than this.
NORM_TOLERANCE = 1e-5


def describe(config: RunConfig, built: Built) -> dict[str, Any]:
    """What identifies a run, as JSON."""
    return {
        "config": flatten(config),
        "base_sha256": built.base_fingerprint,
        "residual_norms": built.residual_norms,
        "trained_parameters": built.inject_report.trained_parameters,
        "versions": {"jax": jax.__version__, "flax": flax.__version__},
    }


def claim(folder: Path, config: RunConfig, built: Built) -> bool:
    """Makes the folder this run's, or checks that it is; True if the run had begun there before.

    Raises:
        UserError: the folder holds another run, naming what differs.
    """
    folder = Path(folder)
    mine = describe(config, built)
    path = folder / RUN
    if path.is_file():
        check_same_run(folder, read_run(folder), mine)
        return True
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other files and no {RUN}: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(path, json.dumps(mine, indent=1) + "\n")
    return False


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a run folder."""
    path = Path(folder) / RUN
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no {RUN}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore it or start anew") from None


def load_run(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """The config of a run folder, and all that run.json says."""
    saved = read_run(folder)
    return config_from_json(saved["config"]), saved


def check_same_run(folder: Path, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    """Raises `UserError` unless a saved description is of the same run."""
    if theirs["base_sha256"] != mine["base_sha256"]:
        raise UserError(
            f"{folder} belongs to a run on another base model (weights "
            f"{theirs['base_sha256'][:12]}, these are {mine['base_sha256'][:12]}): "
            "give the same model or another --out"
        )
    saved = flatten(config_from_json(theirs["config"]))  # with what fields since then stand for
    for name, value in mine["config"].items():
        before = saved.get(name)
        if name not in FREE_TO_CHANGE and before != value:
            raise UserError(
                f"{folder} holds a run with {name} = {before!r}, now {value!r}: "
                "give the same or another --out"
            )
    _check_residuals(folder, theirs["residual_norms"], mine["residual_norms"])


def _check_residuals(folder: Path, theirs: dict[str, list], mine: dict[str, list]) -> None:
    for name, norms in mine.items():
        if not np.allclose(theirs.get(name, np.inf), norms, rtol=NORM_TOLERANCE, atol=0):
            raise UserError(
                f"{folder}: the rebuilt frozen kernel of {name} is not the one it was trained on: "
                "the library's SVD start has changed, start anew with another --out"
            )


def write_aside(path: Path, text: str) -> None:
    """Writes a text file so that it is either the old one or whole."""
    aside = path.with_suffix(".writing")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
