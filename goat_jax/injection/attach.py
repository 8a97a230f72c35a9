"""Initializes the adapter of one module from its kernel and attaches it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.adapters.adapter import AdapterInit, segment_index
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core.svd import Svd
from goat_jax.errors import UserError, nearest
from goat_jax.injection.sharded_init import Sharder, start_layer, start_layers, start_on_mesh
from goat_jax.injection.svd_cache import SvdStore, is_concrete
from goat_jax.nn.dense import Adaptable, Adapter
from goat_jax.nn.named_modules import ModuleRef, name_number
from goat_jax.typing import Key


def attach(
    ref: ModuleRef[Adaptable],
    spec: AdapterSpec,
    key: Key,
    gradients: Mapping[str, jax.Array] | None = None,
    sharder: Sharder | None = None,
    svds: SvdStore | None = None,
    factors: bool = True,
) -> None:
    """Initializes an adapter from a module's kernel and attaches it there."""
    dense = ref.module
    if dense.adapter is not None:
        raise UserError(f"{ref.names()[0]} has an adapter already: start from a new model")
    if getattr(dense, "rows", None) is not None:
        raise UserError(
            f"{ref.names()[0]} would have an adapter and trained vectors of some tokens: leave it "
            "out of target_modules, or train no tokens (model.add_tokens, trainable_token_indices)"
        )
    start = start_adapter(dense.kernel[...], spec, key, ref, gradients, sharder, svds, factors)
    dense.kernel.set_value(start.kernel)
    salt = name_number(ref.pattern)
    dense.adapter = Adapter(start.factors, start.scale, spec, salt, start.constants)


def start_adapter(
    kernel: jax.Array,
    spec: AdapterSpec,
    key: Key,
    ref: ModuleRef[Adaptable],
    gradients: Mapping[str, jax.Array] | None = None,
    sharder: Sharder | None = None,
    svds: SvdStore | None = None,
    factors: bool = True,
) -> AdapterInit:
    """Calls `init_adapter` on a module.

    Each layer of a stack, and each of its experts, has a key derived from its name. Without
    `factors` they are zeros, as `inject` states.
    """
    numbers = jnp.array([name_number(name) for name in ref.names()], jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    known = _gradients_of(ref, gradients)
    segments = None if svds is None else _stored_segments(ref.each(kernel), spec, keys, svds)
    if sharder is not None:
        return start_on_mesh(kernel, spec, keys, known, segments, ref, sharder, factors)
    if not ref.axes:
        first = [
            None if each is None else jax.tree.map(lambda a: a[0], each)
            for each in (known, segments)
        ]
        return _start(kernel, keys[0], *first, spec, factors)
    start = _start_stacked(ref.each(kernel), keys, known, segments, spec, factors)
    return jax.tree.map(ref.joined, start)


def _stored_segments(
    kernels: jax.Array, spec: AdapterSpec, keys: Key, svds: SvdStore
) -> Svd | None:
    """Returns the stacked SVD segments of a module's layers from a store.

    None for methods that use no segments, and where the kernel is abstract (shapes alone).
    """
    if not is_concrete(kernels):
        return None
    indices = _segment_indices(min(kernels.shape[-2:]), spec, keys)
    if indices is None:
        return None
    indices, segments = np.asarray(indices), []
    for svd, index in zip(
        svds.of_layers(kernels, list(indices.reshape(len(indices), -1))), indices, strict=True
    ):
        u = np.moveaxis(np.asarray(svd.u).reshape(-1, *index.shape), 0, 1)
        segments.append(Svd(u, svd.s.reshape(index.shape), svd.vt.reshape(*index.shape, -1)))
    return jax.tree.map(lambda *layers: np.stack(layers), *segments)


@partial(jax.jit, static_argnums=(0, 1))
def _segment_indices(smaller: int, spec: AdapterSpec, keys: Key) -> jax.Array | None:
    return jax.vmap(lambda key: segment_index(smaller, spec, key))(keys)


def _gradients_of(ref: ModuleRef, gradients: Mapping[str, jax.Array] | None) -> jax.Array | None:
    """Returns the gradients (L, I, O) of a module's layers; None if none are given."""
    if gradients is None:
        return None
    for name in ref.names():
        if name not in gradients:
            raise UserError(f"no gradient is given for {name!r}{nearest(name, gradients)}")
    return jnp.stack([jnp.asarray(gradients[name]) for name in ref.names()])


_start = jax.jit(start_layer, static_argnums=(4, 5))
_start_stacked = jax.jit(start_layers, static_argnums=(4, 5))
