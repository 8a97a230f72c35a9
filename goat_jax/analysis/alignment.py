"""Steps of adapters beside those of full fine-tuning: their direction and length in the kernels.

A step of gradient descent on an adapter's factors moves the kernel that the layer has on average
(`goat_jax.adapters.adapter.mean_kernel`). To first order this movement is the paper's equivalent
gradient (lemma 2.2), here with everything that a router changes about it. Full fine-tuning would
move the kernel along the kernel's own gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from goat_jax.adapters.adapter import mean_kernel
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.nn.dense import Adaptable
from goat_jax.nn.named_modules import ModuleRef, find_modules
from goat_jax.training.init_gradients import arrays_by_path, gradients_at
from goat_jax.training.losses import LossFn
from goat_jax.typing import Array, Batch, Factors


class Alignment(NamedTuple):
    """A movement of kernels, compared with that of full fine-tuning.

    Attributes:
        cosine: the cosine of the angle between the two, one for each layer (L,) or for each
            layer's experts (L, E).
        length: the movement's norm over that of full fine-tuning, in the same shape.
    """

    cosine: np.ndarray
    length: np.ndarray

    @property
    def along(self) -> np.ndarray:
        """The part of full fine-tuning's movement that is made: 1 if it is met on average."""
        return self.cosine * self.length


class LayerAlignment(NamedTuple):
    """Alignment of a module's layers.

    Attributes:
        mean: that of the kernel on average (L,).
        experts: that of each expert's own product (L, E).
    """

    mean: Alignment
    experts: Alignment


def gradient_alignment(
    model: nnx.Module, loss_fn: LossFn, batch: Batch
) -> dict[str, LayerAlignment]:
    """Compares the adapters' equivalent gradients with the gradients of the kernels.

    Both are taken at the same point, the model as it is, without dropout.

    Args:
        model: a model with adapters, such as `merge_model` returns; on one device.
        loss_fn: the task's loss.
        batch: the rows to average over.

    Returns:
        Module name pattern -> its alignment, for adapters with products s a b. What else they
        train, such as DoRA's magnitudes, is left out.
    """
    refs = [
        ref
        for ref in find_modules(model)
        if ref.module.adapter is not None and ref.module.adapter.spec.has_products
    ]
    if not refs:
        return {}
    paths = {path for ref in refs for path in _paths(ref).values()}
    flat = arrays_by_path(gradients_at(model, loss_fn, paths)(batch))
    aligned: dict[str, list[LayerAlignment]] = {}
    for ref in refs:
        found = _of_module(ref, {name: flat[path] for name, path in _paths(ref).items()})
        aligned.setdefault(ref.pattern, []).append(found)
    return {pattern: jax.tree.map(_joined, *runs) for pattern, runs in aligned.items()}


def _joined(*runs: np.ndarray) -> np.ndarray:
    return np.concatenate(runs)


KERNEL = "kernel"


def _paths(ref: ModuleRef[Adaptable]) -> dict[str, tuple]:
    """Returns the paths of the module's kernel and of its adapter's factors, by name."""
    assert ref.module.adapter is not None
    factors = {name: (*ref.path, "adapter", name) for name in ref.module.adapter.names}
    return {KERNEL: (*ref.path, ref.module.matrix), **factors}


def _of_module(ref: ModuleRef[Adaptable], gradients: Mapping[str, Array]) -> LayerAlignment:
    adapter = ref.module.adapter
    assert adapter is not None
    arrays = (adapter.factors(), adapter.constants(), adapter.scale[...], dict(gradients))
    of_layer = partial(_of_layer, adapter.spec)
    return jax.device_get(jax.jit(partial(jax.lax.map, of_layer))(jax.tree.map(ref.each, arrays)))


def _of_layer(spec: AdapterSpec, arrays: tuple[Factors, Factors, Array, Factors]) -> LayerAlignment:
    """Returns one layer's alignment; its arrays have no layer axis."""
    factors, constants, scale, gradients = arrays
    gradients = {name: each.astype(jnp.float32) for name, each in gradients.items()}
    full = gradients.pop(KERNEL)
    experts = jax.jvp(lambda f: _products(f | constants, scale, spec), (factors,), (gradients,))[1]
    weights = jnp.broadcast_to(jnp.asarray(spec.router.mean_weight(spec)), scale.shape)
    mean = jnp.einsum("e,eio->io", weights, experts, precision="highest")
    return LayerAlignment(
        compared(mean, full), compared(experts, jnp.broadcast_to(full, experts.shape))
    )


def _products(arrays: Factors, scale: Array, spec: AdapterSpec) -> Array:
    """Returns every expert's product (E, I, O) with its scale."""
    a, b = spec.combine.pairs(arrays)
    return jnp.einsum("eir,ero->eio", a * scale[:, None, None], b, precision="highest")


def compared(moved: ArrayLike, full: ArrayLike) -> Alignment:
    """Compares movements (..., I, O) with those of full fine-tuning, of the same shape.

    The cosine is 0 where either is zero.

    >>> found = compared(np.array([[0.0, 2.0]]), np.array([[1.0, 1.0]]))
    >>> [round(float(each), 3) for each in (found.cosine, found.length, found.along)]
    [0.707, 1.414, 1.0]
    """
    axes, moved, full = (-2, -1), jnp.asarray(moved), jnp.asarray(full)
    norm, full_norm = (jnp.sqrt(jnp.square(each).sum(axes)) for each in (moved, full))
    product = (moved * full).sum(axes)
    both = norm * full_norm
    cosine = jnp.where(both > 0, product / jnp.where(both > 0, both, 1.0), 0.0)
    return Alignment(cosine, norm / full_norm)  # pyright: ignore[reportArgumentType]


def mean_kernels(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns the kernels (L, I, O) that a model's adapted layers have on average.

    Args:
        model: a model with adapters; on one device.
    """
    kernels: dict[str, list[np.ndarray]] = {}
    for ref in find_modules(model):
        adapter = ref.module.adapter
        if adapter is not None:
            arrays = adapter.factors() | adapter.constants()
            each = jax.tree.map(ref.each, (ref.module.weights(), arrays, adapter.scale[...]))
            of_layer = partial(_mean_kernel, adapter.spec)
            mean = jax.lax.map(of_layer, each)
            kernels.setdefault(ref.pattern, []).append(np.asarray(mean))
    return {pattern: np.concatenate(runs) for pattern, runs in kernels.items()}


def _mean_kernel(spec: AdapterSpec, layer: tuple[Array, Factors, Array]) -> Array:
    return mean_kernel(*layer, spec)
