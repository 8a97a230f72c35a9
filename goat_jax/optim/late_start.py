"""Parameters that join the training later, with an optimizer state of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from goat_jax.typing import PyTree

NOW, LATE = "now", "late"


def with_late_start(
    optimizer: optax.GradientTransformation, is_late: Callable[[str], bool]
) -> optax.GradientTransformation:
    """The optimizer, twice: for parameters whose name `is_late` accepts its state is kept apart.

    Both run from the start; `restart` makes the late ones' state new, so that Adam's bias
    correction counts their steps from there.

    Args:
        is_late: of a leaf's own name, the last part of its path.

    >>> import jax.numpy as jnp
    >>> tx = with_late_start(optax.scale_by_adam(), lambda name: name == "c")
    >>> params = {"a": jnp.ones(2), "c": jnp.zeros(2)}
    >>> state = restart(tx, tx.init(params), params)
    >>> sorted(state.inner_states)
    ['late', 'now']
    """

    def labels(params: PyTree) -> PyTree:
        def label(path: Any, _: Any) -> str:
            return LATE if is_late(str(getattr(path[-1], "key", path[-1]))) else NOW

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.partition({NOW: optimizer, LATE: optimizer}, labels)


def restart(optimizer: optax.GradientTransformation, state: Any, params: PyTree) -> Any:
    """An optimizer's state with that of the late parameters as at the beginning.

    Args:
        optimizer: has `with_late_start` anywhere in its chain; without, the state stays as it is.
    """

    def renew(old: Any, fresh: Any) -> Any:
        if not _is_parted(old):
            return old
        return old._replace(inner_states={**old.inner_states, LATE: fresh.inner_states[LATE]})

    return jax.tree.map(renew, state, optimizer.init(params), is_leaf=_is_parted)


def _is_parted(node: Any) -> bool:
    return isinstance(node, optax.transforms.PartitionState) and LATE in node.inner_states
