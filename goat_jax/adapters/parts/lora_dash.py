"""LoRA-Dash: LoRA, then also coefficients of the pretrained directions that LoRA changed most.

Both phases use the same parts. The directions are constants that are zero at first, so that their
term is zero and the coefficients have no gradient. `find_directions` computes their values for the
phase change.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from goat_jax.adapters.parts.combines import SumOfExperts
from goat_jax.adapters.protocols import CombineInputs, Extras
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core.residual import delta_weight
from goat_jax.core.svd import svd_of_kernel
from goat_jax.errors import UserError
from goat_jax.registry import part
from goat_jax.typing import Array, Factors, Key
from goat_jax.validation.fields import Count, check_fields


@part("combine", "lora_and_directions")
@dataclasses.dataclass(frozen=True)
class LoraAndDirections(SumOfExperts):
    """LoRA-Dash's combine: ``s x a b + x u diag(coefficients) vt``; the second term has no scale.

    With dropout, the two terms see independently dropped-out copies of x.

    Attributes:
        num_directions: the number K of directions with a coefficient.
    """

    num_directions: Count = 8
    starts_plain: ClassVar[bool] = True
    looks_up: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, spec: AdapterSpec) -> None:
        """Refuses several experts and routers: the directions are those of one kernel."""
        if spec.num_experts > 1 or not spec.router.mergeable:
            raise UserError(
                "LoraAndDirections has one pair of factors: set num_experts=1 and router=none"
            )

    def extras(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec, key: Key
    ) -> Extras:
        del factors, scale, spec, key
        count, (in_features, out_features) = self.num_directions, kernel.shape
        if count > min(kernel.shape):
            raise UserError(
                f"num_directions {count} is above the layer's smaller side {min(kernel.shape)}: "
                f"choose at most {min(kernel.shape)}"
            )
        return Extras(
            {"coefficients": jnp.zeros((count,), jnp.float32)},
            {
                "u": jnp.zeros((in_features, count), jnp.float32),
                "vt": jnp.zeros((count, out_features), jnp.float32),
            },
        )

    def dropout_copies(self, spec: AdapterSpec) -> int | None:
        return 2 if spec.dropout else None

    def __call__(self, inputs: CombineInputs) -> Array:
        first, along, vt = self._along(inputs)
        return super().__call__(first) + jnp.dot(along, vt.astype(along.dtype))

    def products(self, inputs: CombineInputs) -> tuple[tuple[Array, Array], ...]:
        first, along, vt = self._along(inputs)
        return *super().products(first), (along, vt)

    def _along(self, inputs: CombineInputs) -> tuple[CombineInputs, Array, Array]:
        """Returns the inputs of plain LoRA, and the factors of the directions' term."""
        x, arrays = inputs.x, inputs.arrays
        first, second = (x[0], x[1]) if inputs.copied else (x, x)
        along = jnp.dot(second, arrays["u"].astype(x.dtype))
        along = along * jnp.broadcast_to(arrays["coefficients"].astype(x.dtype), along.shape)
        return inputs._replace(x=first), along, arrays["vt"]

    def merge(self, kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec) -> Array:
        plain = super().merge(kernel.astype(scale.dtype), arrays, scale, spec)
        u, coefficients, vt = arrays["u"], arrays["coefficients"], arrays["vt"]
        along_directions = jnp.einsum("IK,K,KO->IO", u, coefficients, vt, precision="highest")
        return (plain + along_directions).astype(kernel.dtype)

    def low_rank(self, arrays: Factors, scale: Array) -> tuple[Array, Array]:
        a, b = super().low_rank(arrays, scale)
        vt = arrays["vt"]
        along = jnp.broadcast_to(arrays["coefficients"][:, None], vt.shape) * vt
        return jnp.concatenate([a, arrays["u"]], 1), jnp.concatenate([b, along])


@part("phases", "find_directions")
@dataclasses.dataclass(frozen=True)
class FindDirections:
    """LoRA-Dash's phase change: after some LoRA steps, the directions get their values.

    Attributes:
        change_step: optimizer steps before the change (the original code counts forward passes).
    """

    change_step: Count = 100

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, spec: AdapterSpec) -> None:
        """Refuses a combine without directions."""
        if not hasattr(spec.combine, "num_directions"):
            raise UserError(
                f"FindDirections is for LoraAndDirections, not {type(spec.combine).__name__}"
            )

    def constants(self, kernel: Array, arrays: Factors, scale: Array) -> Factors:
        directions = find_directions(kernel, arrays, scale, arrays["coefficients"].shape[0])
        return {"u": directions.u, "vt": directions.vt}


class Directions(NamedTuple):
    """The pretrained directions that changed most, by descending change rate.

    Attributes:
        u: the left directions (I, K), the adapter's new constant `u`.
        vt: the right directions, transposed (K, O), the adapter's new constant `vt`.
        indices: the directions' indices in the kernel's spectrum, (K,).
        rates: the change rates of all H directions, (H,).
        values: the kernel's singular values, (H,).
    """

    u: Array
    vt: Array
    indices: Array
    rates: Array
    values: Array


def find_directions(kernel: Array, factors: Factors, scale: Array, count: int) -> Directions:
    """Finds the K directions of the frozen kernel that LoRA changed most relative to their size.

    The change rate of direction i is ``|u_i^T (s a b) v_i| / sigma_i``. Nothing is added to a small
    sigma, as published.

    Args:
        kernel: the frozen kernel (I, O).
        factors: LoRA's a (1, I, R) and b (1, R, O).
        scale: LoRA's scale (1,).
        count: the number K of directions.

    >>> kernel = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
    >>> factors = {"a": jnp.array([[[0.0], [0.0], [1.0]]]), "b": jnp.array([[[0.0, 0.0, 1.0]]])}
    >>> find_directions(kernel, factors, jnp.array([0.5]), 1).indices
    Array([2], dtype=int32)
    """
    u, s, vt = svd_of_kernel(kernel)
    change = delta_weight(factors["a"], factors["b"], scale)
    along = jnp.einsum("IH,IO,HO->H", u, change, vt, precision="highest")
    rates = jnp.abs(along) / s
    _, index = jax.lax.top_k(rates, count)
    return Directions(u[:, index], vt[index], index, rates, s)
