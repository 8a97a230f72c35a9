"""LoRA-GA: initial factors from the SVD of the loss's gradient with respect to the kernel."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from goat_jax.adapters.parts.initializers import check_added_as_it_is
from goat_jax.adapters.protocols import Initializer, InitInputs
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core.svd import svd_of_kernel
from goat_jax.errors import UserError
from goat_jax.registry import part
from goat_jax.typing import Array, Factors, Key
from goat_jax.validation.fields import Count, OneOf, Positive, check_fields

Directions = Callable[[int, Key], tuple[Array, Array]]

DIRECTIONS: dict[str, Directions] = {
    "first_and_next": lambda r, key: (jnp.arange(r), jnp.arange(r, 2 * r)),
    "next_and_first": lambda r, key: (jnp.arange(r, 2 * r), jnp.arange(r)),
    "odd_and_even": lambda r, key: (jnp.arange(1, 2 * r, 2), jnp.arange(0, 2 * r, 2)),
    "random": lambda r, key: _halves(jax.random.permutation(key, 2 * r)),
}
"""Choices of triplets for a and b among the first 2 R; published as ArB2r, A2rBr, ArBr, random."""


def _halves(index: Array) -> tuple[Array, Array]:
    return index[: len(index) // 2], index[len(index) // 2 :]


def _stable(gamma: float, kernel: Array, scale: Array, rank: int) -> Array:
    del scale, rank
    return jnp.asarray(kernel.shape[1] ** 0.25 / gamma**0.5, jnp.float32)


def _by_weight(gamma: float, kernel: Array, scale: Array, rank: int) -> Array:
    del gamma
    values = jnp.linalg.svd(kernel.astype(jnp.float32), compute_uv=False)[:rank]
    return jnp.sqrt(values / scale).mean()


SIZES: dict[str, Callable[[float, Array, Array, int], Array]] = {
    "stable": _stable,
    "unit": lambda gamma, kernel, scale, rank: jnp.ones((), jnp.float32),
    "gradient": lambda gamma, kernel, scale, rank: 1 / scale,
    "weight": _by_weight,
}
"""Multipliers of both factors' orthonormal vectors; published as stable, unit, gd and weightS.

Each is a function (gamma, kernel, scale, rank) -> scalar.
"""


@part("initializer", "gradient_segments")
@dataclasses.dataclass(frozen=True)
class GradientSegments(Initializer):
    """Initializes a and b from different singular vectors of the gradient.

    The first training step then follows the gradient.

    Attributes:
        directions: the choice of triplets, a key of `DIRECTIONS`.
        size: the multiplier of the singular vectors, a key of `SIZES`; "stable" is
            O^(1/4) / sqrt(gamma), without singular values.
        gamma: the constant of the size "stable", 16 or 64 as published.
        norm_clip: whether to shrink the factors until no entry of s a b exceeds the kernel's
            largest in absolute value.
        gradient_batches: the number of training batches whose mean gradient is used.
    """

    directions: Annotated[str, OneOf(DIRECTIONS)] = "first_and_next"
    size: Annotated[str, OneOf(SIZES)] = "stable"
    gamma: Positive = 16.0
    norm_clip: bool = False
    gradient_batches: Count = 4
    layout: ClassVar[str] = "pairs"

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, spec: AdapterSpec) -> None:
        """Refuses more than one expert, and combines that do not add a b unchanged."""
        if spec.num_experts > 1:
            raise UserError(
                f"GradientSegments makes one pair of factors, not {spec.num_experts}: set "
                "num_experts=1"
            )
        check_added_as_it_is(self, spec)

    def factors(self, inputs: InitInputs, spec: AdapterSpec, key: Key) -> Factors:
        kernel, scale, gradient = inputs.kernel, inputs.scale, inputs.gradient
        if gradient is None:
            raise UserError(
                "this method starts from the loss's gradient with respect to the kernel: give "
                "gradient=... to init_adapter, or gradients=... to inject"
            )
        rank, most = spec.rank, min(kernel.shape) // 2
        if rank > most:
            raise UserError(
                f"rank {rank} needs {2 * rank} singular vectors, and a kernel {kernel.shape} has "
                f"{min(kernel.shape)}: choose a rank of at most {most}"
            )
        u, _, vt = svd_of_kernel(gradient)
        for_a, for_b = DIRECTIONS[self.directions](rank, key)
        size = SIZES[self.size](self.gamma, kernel, scale[0], rank)
        a, b = u[:, for_a] * size, vt[for_b] * size
        if self.norm_clip:
            largest = jnp.abs(scale[0] * jnp.dot(a, b, precision="highest")).max()
            ratio = jnp.minimum(jnp.abs(kernel.astype(jnp.float32)).max() / largest, 1.0)
            a, b = a * jnp.sqrt(ratio), b * jnp.sqrt(ratio)
        return {"a": a[None], "b": b[None]}
