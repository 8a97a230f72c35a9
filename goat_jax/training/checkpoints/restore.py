"""Restores a trained run at one of its checkpoints, and loads pretrained models on a mesh."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from goat_jax.config.run import RunConfig
from goat_jax.errors import Notice, UserError
from goat_jax.files import cache_folder, user_path
from goat_jax.injection.svd_cache import NONE, SvdConfig
from goat_jax.models.load import Loaded, load_model
from goat_jax.sharding.config import MeshConfig
from goat_jax.sharding.rules import make_sharding_rules
from goat_jax.training.checkpoints.run_dir import check_same_model, load_run
from goat_jax.training.checkpoints.steps import best_of, listed
from goat_jax.training.setup import TrainSetup, build
from goat_jax.training.shardings import set_activation_shardings
from goat_jax.training.state import RunState
from goat_jax.typing import DTypeLike

if TYPE_CHECKING:
    from goat_jax.training.checkpoints.checkpoint import Checkpoints

ONE_DEVICE = MeshConfig()


@dataclasses.dataclass(frozen=True)
class Reopened:
    """A run restored at one step.

    Attributes:
        config: the config it was trained with, except for the mesh.
        setup: the run rebuilt from the pretrained weights, which are checked to be the same.
        state: the checkpoint's state, without the optimizer's.
        step: the checkpoint's step.
    """

    config: RunConfig
    setup: TrainSetup
    state: RunState
    step: int


def load_on_mesh(path: Path, mesh: MeshConfig, dtype: DTypeLike = jnp.float32) -> Loaded:
    """Loads a pretrained model; every array is read straight to its devices.

    Args:
        path: the checkpoint's path.
        mesh: the mesh to put the model on.
        dtype: the dtype of the model's parameters.

    Raises:
        UserError: a mesh that does not take exactly the available devices.
    """
    rules = make_sharding_rules(mesh)
    loaded = load_model(
        path,
        key=jax.random.key(0),
        dtype=dtype,
        sharding=None if rules is None else rules.parameter,
    )
    set_activation_shardings(loaded.model, rules)
    return loaded


def restore_run(
    folder: Path,
    step: int | None,
    mesh: MeshConfig = ONE_DEVICE,
    known: tuple[RunConfig, dict[str, Any]] | None = None,
    factors: bool = False,
) -> Reopened:
    """Rebuilds a run and restores one of its checkpoints, to use it but not to train it further.

    The optimizer's state is neither made nor read. Decompositions are taken from the cache that the
    run was trained with, or else from the user's.

    Args:
        folder: the run folder.
        step: the checkpoint's step; None for the best intact one.
        mesh: the mesh to put the run on; it may differ from the mesh of the training.
        known: the result of `load_run`, if run.json has been read already.
        factors: whether the factors' initial values are needed besides the checkpoint's; without
            them `Reopened.setup.state` has zeros in their place.

    Raises:
        UserError: the folder holds no run, no such checkpoint or no intact one, or the base model
            is not the one it was trained on.
    """
    from goat_jax.training.checkpoints.checkpoint import Checkpoints

    config, saved = known or load_run(folder)
    config = dataclasses.replace(config, mesh=mesh)
    checkpoints = Checkpoints(folder, config.best_by, read_only=True)
    chosen = _chosen(folder, checkpoints, step)  # a wrong step fails before the model is built
    cached = dataclasses.replace(config, svd=_cached(config.svd))
    setup = build(cached, training=False, factors=factors)
    check_same_model(folder, saved, setup)
    state = checkpoints.restore(setup.state, None, chosen).state
    checkpoints.close()
    return Reopened(config, setup, state, chosen)


def _cached(svd: SvdConfig) -> SvdConfig:
    """Returns a run's SVD settings with a cache of this machine; the run may be from another."""
    if svd.folder == NONE or user_path(svd.folder).is_dir():
        return svd
    return dataclasses.replace(svd, folder=str(cache_folder("svd")))


def _chosen(folder: Path, checkpoints: Checkpoints, step: int | None) -> int:
    """Returns the requested step, or the best one with an intact checkpoint."""
    known = checkpoints.all_steps()
    if not known:
        raise UserError(f"{folder} has no complete checkpoint yet: train it first")
    if step not in (None, *known):
        raise UserError(f"{folder} has no checkpoint of step {step}: its steps are {known}")
    candidates = _best_first(checkpoints) if step is None else [step]
    # The quick check covers all of them before any is chosen, so that a checkpoint whose score is
    # damaged is not ranked by it. Only then are large files hashed, one checkpoint at a time.
    damaged = {n: why for n in candidates if (why := checkpoints.damage(n, thorough=False))}
    for candidate in [n for n in candidates if n not in damaged]:
        why = checkpoints.damage(candidate)
        if why is None:
            _tell_choice(folder, checkpoints, candidate, damaged, step_given=step is not None)
            return candidate
        damaged[candidate] = why
    raise UserError(
        f"{folder}: no usable checkpoint is intact ({listed(damaged)}): give the step "
        f"of another one ({known}), or restore it from a backup"
    )


def _best_first(checkpoints: Checkpoints) -> list[int]:
    """Returns all steps: by score, earlier ones first among equals, then those without a score.

    Steps without a score are in reverse order, the newest first.
    """
    left, order = checkpoints.scores(), []
    while (best := best_of(left, checkpoints.best_by)) is not None:
        order.append(best)
        del left[best]
    return order + [step for step in reversed(checkpoints.all_steps()) if step not in order]


def _tell_choice(
    folder: Path, checkpoints: Checkpoints, step: int, damaged: dict[int, str], step_given: bool
) -> None:
    """Warns which checkpoint is used if some are damaged or none has a score."""
    if damaged:
        text = f"{folder} has damaged checkpoints ({listed(damaged)}): step {step} is used"
    elif not step_given and step not in checkpoints.scores():
        text = (
            f"no checkpoint of {folder} has a score (the run was not evaluated yet, or an older "
            f"version saved it without): step {step}, the latest, is used"
        )
    else:
        return
    warnings.warn(text, Notice, stacklevel=4)
