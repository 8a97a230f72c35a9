"""Parts: combines, which compute an adapter's addition to the layer's output and merge it."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from goat_jax.adapters.protocols import Combine, CombineInputs, Extras
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core.column_norms import column_norms, scaled_sum, scaling_change
from goat_jax.core.dispatch import HIDDEN, dispatch, expand, flat, gated
from goat_jax.core.precision import wide
from goat_jax.core.residual import delta_weight, side_by_side
from goat_jax.errors import UserError
from goat_jax.registry import part
from goat_jax.typing import Array, Factors, Key
from goat_jax.validation.fields import NonNegative, check_fields


@part("combine", "sum_of_experts")
@dataclasses.dataclass(frozen=True)
class SumOfExperts(Combine):
    """Sum ``sum_i w_i s_i x a_i b_i``, gated in rank space (`goat_jax.core.dispatch`)."""

    layout: ClassVar[str] = "pairs"
    replaces: ClassVar[bool] = False
    starts_plain: ClassVar[bool] = True
    looks_up: ClassVar[bool] = True

    def dropout_copies(self, spec: AdapterSpec) -> int | None:
        return spec.num_experts if spec.dropout_per_expert else None

    def pairs(self, arrays: Factors) -> tuple[Array, Array]:
        """Returns the factors a (E, I, R) and b (E, R, O) whose product is taken."""
        return arrays["a"], arrays["b"]

    def inner(self, arrays: Factors) -> Array | None:
        return flat(self.pairs(arrays)[0])

    def __call__(self, inputs: CombineInputs) -> Array:
        return dispatch(inputs.x, *self.pairs(inputs.arrays), inputs.gate, inputs.hidden)

    def products(self, inputs: CombineInputs) -> tuple[tuple[Array, Array], ...]:
        a, b = self.pairs(inputs.arrays)
        hidden = gated(inputs.x, a, inputs.gate, inputs.hidden)
        return ((hidden, b.reshape(-1, b.shape[-1])),)

    def merge(self, kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec) -> Array:
        del spec
        merged = kernel.astype(scale.dtype) + delta_weight(*self.pairs(arrays), scale)
        return merged.astype(kernel.dtype)

    def low_rank(self, arrays: Factors, scale: Array) -> tuple[Array, Array]:
        return side_by_side(*self.pairs(arrays), scale)


@part("combine", "diagonal_core")
@dataclasses.dataclass(frozen=True)
class DiagonalCore(SumOfExperts):
    """Combine of KaSA and AdaLoRA: ``s x a diag(core) b``; the core acts as singular values.

    Attributes:
        core_std: standard deviation of the core's normal initialization: 1 for KaSA, 0 for
            AdaLoRA.
    """

    core_std: NonNegative = 1.0
    starts_plain: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def extras(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec, key: Key
    ) -> Extras:
        del kernel, factors, scale
        shape = (spec.num_experts, spec.rank)
        core = self.core_std * jax.random.normal(key, shape, jnp.float32)
        return Extras({"core": core}, {})

    def pairs(self, arrays: Factors) -> tuple[Array, Array]:
        a, core = arrays["a"], arrays["core"]
        return a * jnp.broadcast_to(core[:, None, :], a.shape), arrays["b"]


@part("combine", "output_gains")
@dataclasses.dataclass(frozen=True)
class OutputGains(SumOfExperts):
    """MultiLoRA's combine: ``s sum_i (x a_i b_i) * gain_i``; a gain per output, initially zero."""

    starts_plain: ClassVar[bool] = False

    def extras(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec, key: Key
    ) -> Extras:
        del factors, scale, key
        return Extras({"gain": jnp.zeros((spec.num_experts, kernel.shape[1]), jnp.float32)}, {})

    def pairs(self, arrays: Factors) -> tuple[Array, Array]:
        b, gain = arrays["b"], arrays["gain"]
        return arrays["a"], b * jnp.broadcast_to(gain[:, None, :], b.shape)


@part("combine", "magnitude_and_direction")
@dataclasses.dataclass(frozen=True)
class MagnitudeAndDirection(SumOfExperts):
    """DoRA's combine: scales each column of ``W0 + s a b`` to a trained length, one per output.

    No gradient flows through the column's actual length, as published. With dropout, the terms
    ``x W0`` and ``x a b`` of the adapter see the same dropped-out x; the frozen branch sees x.
    """

    scales: ClassVar[bool] = True

    def check(self, spec: AdapterSpec) -> None:
        """Refuses weights that differ by token or task: each output has a single length."""
        if not spec.router.mergeable:
            raise UserError(
                f"MagnitudeAndDirection normalises one kernel, and {type(spec.router).__name__} "
                "weights experts by token: choose router=none"
            )

    def extras(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec, key: Key
    ) -> Extras:
        del spec, key
        return Extras({"magnitude": column_norms(kernel, factors["a"], factors["b"], scale)}, {})

    def _gain(self, kernel: Array, arrays: Factors, scale: Array) -> Array:
        norms = column_norms(kernel, *self.pairs(arrays), scale)
        return arrays["magnitude"] / jax.lax.stop_gradient(norms)

    def __call__(self, inputs: CombineInputs) -> Array:
        x, kernel = inputs.x, inputs.kernel
        if inputs.copied:
            raise UserError(
                "DoRA applies one dropout mask to x for all terms: set dropout_per_expert=false"
            )
        product = inputs.product
        product = jnp.dot(x, kernel.astype(x.dtype)) if product is None else product
        gain = self._gain(kernel, inputs.arrays, inputs.scale)
        return scaling_change(gain, product, super().__call__(inputs))

    def output(self, inputs: CombineInputs) -> Array:
        assert inputs.product is not None
        gain = self._gain(inputs.kernel, inputs.arrays, inputs.scale)
        return scaled_sum(gain, inputs.product, super().__call__(inputs))

    def products(self, inputs: CombineInputs) -> tuple[tuple[Array, Array], ...]:
        gain = self._gain(inputs.kernel, inputs.arrays, inputs.scale)
        ((hidden, b),) = super().products(inputs)
        kernel = inputs.kernel.astype(gain.dtype)
        longer = kernel * jnp.broadcast_to(gain - 1, kernel.shape)
        return (inputs.x, longer), (hidden, b * jnp.broadcast_to(gain, b.shape))

    def merge(self, kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec) -> Array:
        whole = super().merge(kernel.astype(scale.dtype), arrays, scale, spec)
        gain = jnp.broadcast_to(self._gain(kernel, arrays, scale), kernel.shape)
        return (gain * whole).astype(kernel.dtype)


@part("combine", "shared_projection")
@dataclasses.dataclass(frozen=True)
class SharedProjection(SumOfExperts):
    """HydraLoRA's combine: ``sum_i w_i s_i (x a) b_i``, with one a for all experts."""

    layout: ClassVar[str] = "shared"
    starts_plain: ClassVar[bool] = False

    def inner(self, arrays: Factors) -> Array | None:
        return arrays["a"][0]

    def __call__(self, inputs: CombineInputs) -> Array:
        ((hidden, b),) = self.products(inputs)
        return expand(hidden, b)

    def products(self, inputs: CombineInputs) -> tuple[tuple[Array, Array], ...]:
        x, gate, hidden = inputs.x, inputs.gate, inputs.hidden
        a, b = inputs.arrays["a"][0], inputs.arrays["b"]
        if hidden is None:
            hidden = jnp.dot(x, a.astype(x.dtype), preferred_element_type=wide(x.dtype))
            hidden = checkpoint_name(hidden, HIDDEN)
        shared = jnp.moveaxis(hidden, 0, -2) if inputs.copied else hidden[..., None, :]
        shape = (*gate.shape, a.shape[-1])
        weighted = jnp.broadcast_to(shared, shape) * jnp.broadcast_to(gate[..., None], shape)
        flat = weighted.astype(x.dtype).reshape(*gate.shape[:-1], -1)
        return ((flat, b.reshape(-1, b.shape[-1])),)

    def pairs(self, arrays: Factors) -> tuple[Array, Array]:
        a, b = arrays["a"], arrays["b"]
        return jnp.broadcast_to(a, (b.shape[0], *a.shape[1:])), b

    def low_rank(self, arrays: Factors, scale: Array) -> tuple[Array, Array]:
        b = arrays["b"]
        return arrays["a"][0], (b * jnp.broadcast_to(scale[:, None, None], b.shape)).sum(0)
