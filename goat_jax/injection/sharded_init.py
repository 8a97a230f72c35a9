"""Initializes adapters layer by layer, on one device or with the layers distributed over a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from goat_jax.adapters.adapter import AdapterInit, init_adapter
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core.svd import Svd
from goat_jax.injection.map_layers import map_layers
from goat_jax.nn.dense import Adaptable
from goat_jax.nn.named_modules import ModuleRef
from goat_jax.typing import Array, Key


class Sharder(Protocol):
    """Gives the sharding of a model's arrays; `goat_jax.sharding.rules.ShardingRules` is one."""

    @property
    def replicated(self) -> NamedSharding:
        """Replicated sharding: a copy on every device."""
        ...

    def parameter(self, ref: ModuleRef, name: str) -> NamedSharding:
        """Returns the sharding of a module's parameter."""
        ...

    def quantized(self, ref: ModuleRef, shape: Sequence[int]) -> dict[str, NamedSharding]:
        """Returns the shardings of the `codes` and `scales` of a module's quantized kernel."""
        ...

    def adapter(self, ref: ModuleRef, name: str, shape: Sequence[int]) -> NamedSharding:
        """Returns the sharding of an adapter's array."""
        ...


def start_layer(
    kernel: Array,
    key: Key,
    gradient: Array | None,
    segments: Svd | None,
    spec: AdapterSpec,
    factors: bool,
) -> AdapterInit:
    """Calls `init_adapter`; without `factors` they are zeros, and their values are not computed."""
    start = init_adapter(kernel, spec, key, gradient, segments)
    if factors:
        return start
    return start._replace(factors=jax.tree.map(jnp.zeros_like, start.factors))


def start_layers(
    kernels: Array,
    keys: Key,
    gradients: Array | None,
    segments: Svd | None,
    spec: AdapterSpec,
    factors: bool,
) -> AdapterInit:
    """Calls `start_layer` on stacked layers (L, I, O), with a key and optional arrays for each."""
    # A map, not a vmap: one layer's SVD is in memory at a time, and its result does not depend on
    # which layers are stacked with it.
    one = partial(start_layer, spec=spec, factors=factors)
    return jax.lax.map(lambda layer: one(*layer), (kernels, keys, gradients, segments))


def start_on_mesh(
    kernel: Array,
    spec: AdapterSpec,
    keys: Key,
    gradients: Array | None,
    segments: Svd | None,
    ref: ModuleRef[Adaptable],
    sharder: Sharder,
    factors: bool,
) -> AdapterInit:
    """Initializes the adapter of a module on a mesh, with every array in its sharding.

    The layers of a stack are distributed over all devices, as many at a time as there are devices,
    so that each device decomposes only the layers assigned to it. A device holds at most one
    complete kernel at a time.

    Args:
        kernel: (L, I, O) of a stack, (L, X, I, O) of its experts, or (I, O), on the mesh.
        spec: the method.
        keys: one per layer and expert, or (1,).
        gradients: (L, I, O) with as many layers, (1, I, O) or None.
        segments: the SVD segments of every layer's experts, or None if they are to be computed.
        ref: the module.
        sharder: gives the sharding of every array.
        factors: whether the factors get values, as for `start_layer`.
    """
    lead = ref.axes
    all_layers = _all_layers(spec, factors, bool(lead))
    # The shardings depend on the arrays' shapes, and the jitted function needs them in advance.
    layers = jax.ShapeDtypeStruct((len(keys), *kernel.shape[len(lead) :]), kernel.dtype)
    abstract = jax.eval_shape(all_layers, layers if lead else kernel, keys, gradients, segments)

    def arrays(values: dict[str, Any]) -> Named:
        shapes = {name: (*lead, *v.shape[1 if lead else 0 :]) for name, v in values.items()}
        return tuple((name, sharder.adapter(ref, name, shape)) for name, shape in shapes.items())

    kernel_sharding = sharder.parameter(ref, ref.module.matrix)
    where = (
        kernel_sharding,
        arrays(abstract.factors),
        sharder.replicated,
        arrays(abstract.constants),
    )
    start = _compiled(spec, factors, lead, gradients is not None, segments is not None, where)
    return start(kernel, key_everywhere(keys, sharder.replicated), gradients, segments)


def key_everywhere(keys: Key, whole: NamedSharding) -> Key:
    """Replicates PRNG keys on every device of a mesh, including those of other processes."""
    return jax.random.wrap_key_data(jax.device_put(jax.random.key_data(keys), whole))


Named = tuple[tuple[str, NamedSharding], ...]


@lru_cache(maxsize=64)
def _compiled(
    spec: AdapterSpec,
    factors: bool,
    lead: tuple[int, ...],
    with_gradients: bool,
    with_segments: bool,
    where: tuple[NamedSharding, Named, NamedSharding, Named],
) -> Callable[..., AdapterInit]:
    """Returns the jitted initialization, compiled once for all modules that are alike."""
    kernel, trained, scale, constants = where
    start = AdapterInit(*cast(Any, (kernel, dict(trained), scale, dict(constants))))
    if not lead:
        return jax.jit(_all_layers(spec, factors, stacked=False), out_shardings=start)
    # One leading axis, which no mesh axis shards, stands for all.
    specs = jax.tree.map(lambda sharding: _of_layers(sharding.spec, len(lead)), start)
    whole = PartitionSpec()
    known = Svd(whole, whole, whole) if with_segments else None
    inputs = (specs.kernel, whole, specs.kernel if with_gradients else None, known)
    one, mesh = partial(start_layer, spec=spec, factors=factors), cast(Mesh, kernel.mesh)

    def compute(kernel: Array, *each: Any) -> AdapterInit:
        layers = kernel.reshape(-1, *kernel.shape[len(lead) :])
        found = map_layers(one, mesh, inputs, specs, layers, *each)
        return jax.tree.map(lambda array: array.reshape(*lead, *array.shape[1:]), found)

    return jax.jit(compute, out_shardings=start)


def _of_layers(spec: PartitionSpec, leading: int) -> PartitionSpec:
    """Returns a sharding of arrays with one leading axis instead of several."""
    return PartitionSpec(*spec[leading - 1 :])


def _all_layers(spec: AdapterSpec, factors: bool, stacked: bool) -> Callable[..., AdapterInit]:
    """Returns the initialization of a stack (used for its shapes alone) or of one kernel.

    For one kernel the key and the gradient have a leading axis of 1.
    """
    one = partial(start_layer, spec=spec, factors=factors)
    if stacked:
        return jax.vmap(one)

    def alone(kernel: Array, *each: Any) -> AdapterInit:
        return one(kernel, *jax.tree.map(lambda values: values[0], each))

    return alone
