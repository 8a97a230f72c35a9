"""States of runs that were not trained, as if they had been."""

import dataclasses

import jax


def noise(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), max(1, len(leaves)))
    noisy = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=False)
    ]
    return jax.tree.unflatten(structure, noisy)


def trained_elsewhere(built):
    """A state as if it had been trained: every number of it has moved."""
    state = built.state
    moved = {"trainable": noise(state.trainable, 1), "constants": noise(state.constants, 2)}
    return dataclasses.replace(state, **moved)
