"""Separate optimizer state for parameters whose training starts later."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax
from jax.tree_util import KeyPath

from goat_jax.typing import PyTree

NOW, LATE = "now", "late"


def with_late_start(
    optimizer: optax.GradientTransformation, is_late: Callable[[str], bool]
) -> optax.GradientTransformation:
    """Returns the optimizer with a separate state for the late parameters.

    Both states are updated from the first step. `restart` resets the late parameters' state, so
    that Adam's bias correction counts their steps from then on.

    Args:
        optimizer: the optimizer of both groups of parameters.
        is_late: True for the names of late parameters; a name is the last part of a leaf's path.

    >>> import jax.numpy as jnp
    >>> tx = with_late_start(optax.scale_by_adam(), lambda name: name == "c")
    >>> params = {"a": jnp.ones(2), "c": jnp.zeros(2)}
    >>> state = restart(tx, tx.init(params), params)
    >>> sorted(state.inner_states)
    ['late', 'now']
    """

    def labels(params: PyTree) -> PyTree:
        def label(path: KeyPath, _: object) -> str:
            return LATE if is_late(str(getattr(path[-1], "key", path[-1]))) else NOW

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.partition({NOW: optimizer, LATE: optimizer}, labels)


def restart(optimizer: optax.GradientTransformation, state: PyTree, params: PyTree) -> PyTree:
    """Returns an optimizer state in which that of the late parameters is newly initialized.

    Args:
        optimizer: the optimizer, with `with_late_start` anywhere in its chain; without it, the
            state is returned unchanged.
        state: the state before the reset.
        params: the parameters.
    """

    def renew(old: PyTree, fresh: PyTree) -> PyTree:
        if not _is_parted(old):
            return old
        return old._replace(inner_states={**old.inner_states, LATE: fresh.inner_states[LATE]})

    return jax.tree.map(renew, state, optimizer.init(params), is_leaf=_is_parted)


def _is_parted(node: object) -> bool:
    return isinstance(node, optax.transforms.PartitionState) and LATE in node.inner_states
