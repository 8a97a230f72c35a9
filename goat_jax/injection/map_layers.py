"""Applies a function to complete layers of a stack that is sharded over a mesh.

It takes as many layers at a time as there are devices. Their shards are exchanged so that each
device has one complete layer, and the result is split and exchanged back. So no device ever holds
more than one complete layer, except where `out_specs` replicates a result.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from goat_jax.typing import Array, PyTree


def map_layers(
    function: Callable[..., PyTree], mesh: Mesh, specs: PyTree, out_specs: PyTree, *stacked: PyTree
) -> PyTree:
    """Applies ``function`` to every layer of stacked arrays, each on one device, under `jax.jit`.

    Args:
        function: takes one layer's arrays, without their layer axis.
        mesh: the mesh of devices.
        specs: sharding of the arguments, a `PartitionSpec` for every leaf; the layer axis, which
            comes first, is not sharded.
        out_specs: sharding of the results, in the same form.
        stacked: pytrees whose leaves all have L layers.

    >>> mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> cut = PartitionSpec(None, "x")
    >>> double = lambda *arrays: map_layers(lambda row: 2 * row, mesh, (cut,), cut, *arrays)
    >>> jax.jit(double)(jnp.ones((3, 2))).sum()
    Array(12., dtype=float32)
    """
    layers = jax.tree.leaves(stacked)[0].shape[0]
    devices = mesh.size
    groups = -(-layers // devices)

    def body(*parts: PyTree) -> PyTree:
        def of_group(group: PyTree) -> PyTree:
            gathered = jax.tree.map(partial(_gather, mesh), group, specs)
            computed = function(*gathered)
            return jax.tree.map(partial(_scatter, mesh), computed, out_specs)

        def cut(array: Array) -> Array:
            # Copies of the last layer pad the last group.
            filled = [array, *[array[-1:]] * (groups * devices - layers)]
            return jnp.concatenate(filled).reshape(groups, devices, *array.shape[1:])

        results = jax.lax.map(of_group, jax.tree.map(cut, parts))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:layers], results)

    shared = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
    return shared(*stacked)


def _axes(mesh: Mesh, spec: PartitionSpec) -> dict[str, int]:
    """Maps each mesh axis to the array axis that it shards alone."""
    single = {}
    for place, entry in enumerate(spec):
        names = (entry,) if isinstance(entry, str) else tuple(entry or ())
        if len(names) == 1:
            single[names[0]] = place
    return {name: single[name] for name in mesh.axis_names if name in single}


def _shared(spec: PartitionSpec) -> dict[int, tuple[str, ...]]:
    """Maps each array axis to the mesh axes that shard it, where there are several."""
    return {
        place: tuple(entry)
        for place, entry in enumerate(spec)
        if entry is not None and not isinstance(entry, str) and len(entry) > 1
    }


def _gather(mesh: Mesh, array: Array, spec: PartitionSpec) -> Array:
    """Exchanges this device's shards of N layers, one per device, for one complete layer."""
    for place, names in _shared(spec).items():
        array = jax.lax.all_gather(array, names, axis=place, tiled=True)
    single = _axes(mesh, spec)
    for name in mesh.axis_names:
        if name in single:
            array = jax.lax.all_to_all(array, name, 0, single[name], tiled=True)
        else:
            size = array.shape[0] // mesh.shape[name]
            start = jax.lax.axis_index(name) * size
            array = jax.lax.dynamic_slice_in_dim(array, start, size, 0)
    return array[0]


def _scatter(mesh: Mesh, array: Array, spec: PartitionSpec) -> Array:
    """Inverts `_gather`: exchanges one complete layer for this device's shards of N layers."""
    array, single = array[None], _axes(mesh, spec)
    # In reverse order, to undo the exchanges of `_gather`.
    for name in reversed(mesh.axis_names):
        if name in single:
            array = jax.lax.all_to_all(array, name, single[name], 0, tiled=True)
        else:
            array = jax.lax.all_gather(array, name, axis=0, tiled=True)
    for place, names in _shared(spec).items():
        parts = 1
        index = jnp.zeros((), jnp.int32)
        for name in names:
            parts *= mesh.shape[name]
            index = index * mesh.shape[name] + jax.lax.axis_index(name)
        size = array.shape[place] // parts
        array = jax.lax.dynamic_slice_in_dim(array, index * size, size, place)
    return array
