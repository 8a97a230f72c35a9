"""The state of a run as Orbax stores it: nested dicts and lists of plain arrays."""

from __future__ import annotations

import jax
import orbax.checkpoint as ocp

from goat_jax.training.state import RunState
from goat_jax.typing import PyTree


def plain_state(state: RunState) -> dict[str, PyTree]:
    """Returns the state as nested dicts and lists of plain arrays; typed PRNG keys become data."""
    plain = {
        "step": state.step,
        "trainable": _string_keys(state.trainable),
        "opt_state": jax.tree.leaves(state.opt_state),
        "key": jax.random.key_data(state.key),
    }
    return plain | ({"constants": _string_keys(state.constants)} if state.constants else {})


def restore_args(like: RunState) -> ocp.args.CheckpointArgs:
    """Returns Orbax's arguments for reading a state, or all of it but the optimizer's part."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, plain_state(like))
    if abstract["opt_state"]:
        return ocp.args.StandardRestore(abstract)
    del abstract["opt_state"]
    arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
    return ocp.args.PyTreeRestore(abstract, restore_args=arguments, partial_restore=True)


def state_of(saved: dict[str, PyTree], like: RunState) -> RunState:
    """Returns the state that `plain_state` made plain, in the structure of a fresh state `like`."""

    # Orbax returns sorted dicts, as jax flattens them, so leaves go by order into the structure of
    # the fresh state.
    def rebuild(part: PyTree, name: str) -> PyTree:
        return jax.tree.unflatten(jax.tree.structure(part), jax.tree.leaves(saved.get(name, {})))

    return RunState(
        step=saved["step"],
        trainable=rebuild(like.trainable, "trainable"),
        opt_state=rebuild(like.opt_state, "opt_state"),
        key=jax.random.wrap_key_data(saved["key"]),
        constants=rebuild(like.constants, "constants"),
    )


def _string_keys(tree: PyTree) -> PyTree:
    """Returns a tree with zero-padded strings in place of integer keys.

    Orbax names files by keys, and the padding keeps them in numerical order.
    """
    if isinstance(tree, dict):
        return {
            f"{key:04d}" if isinstance(key, int) else key: _string_keys(value)
            for key, value in tree.items()
        }
    return tree
