"""Parts: initializers of the factors, and kernel edits, which make the frozen kernel."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from goat_jax.adapters.protocols import Initializer, InitInputs
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core import initializers, svd
from goat_jax.core.residual import residual_kernel, side_by_side
from goat_jax.core.svd import Segments, Svd
from goat_jax.errors import UserError
from goat_jax.registry import find_function, part
from goat_jax.typing import Array, Factors, Key
from goat_jax.validation.fields import Positive, Share, check_fields


@part("initializer", "zero_delta")
@dataclasses.dataclass(frozen=True)
class ZeroDelta(Initializer):
    """LoRA's initialization: random a, zero b.

    Attributes:
        a_std: standard deviation of a normal a; None is LoRA's kaiming uniform.
    """

    a_std: Positive | None = None
    layout: ClassVar[str] = "pairs"

    def __post_init__(self) -> None:
        check_fields(self)

    def for_table(self) -> Initializer:
        return ZeroRows(self)

    def factors(self, inputs: InitInputs, spec: AdapterSpec, key: Key) -> Factors:
        in_features, out_features = inputs.kernel.shape
        sizes = (in_features, out_features, spec.num_experts, spec.rank)
        start = initializers.zero_delta(key, *sizes)
        if self.a_std is not None:
            start["a"] = self.a_std * jax.random.normal(key, start["a"].shape, jnp.float32)
        return start


@dataclasses.dataclass(frozen=True)
class ZeroRows(Initializer):
    """LoRA's initialization of a table, as in PEFT: zero a, normal b.

    So the vector of a token changes only if the token occurs in training. It has no name: a table's
    adapter takes it in place of `ZeroDelta` (`for_table`).

    Attributes:
        linear: the initializer of linear layers, which makes factors of the same shapes.
    """

    linear: ZeroDelta = ZeroDelta()

    @property
    def layout(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.linear.layout

    def factors(self, inputs: InitInputs, spec: AdapterSpec, key: Key) -> Factors:
        start = self.linear.factors(inputs, spec, key)
        b = jax.random.normal(key, start["b"].shape, jnp.float32)
        return {"a": jnp.zeros_like(start["a"]), "b": b}


@part("initializer", "both_random")
@dataclasses.dataclass(frozen=True)
class BothRandom(ZeroDelta):
    """Random a and random b, for combines that are initially zero for another reason.

    Attributes:
        b_std: standard deviation of a normal b; None is kaiming uniform over R.
    """

    b_std: Positive | None = None

    def check(self, spec: AdapterSpec) -> None:
        """Refuses a combine that adds a b unchanged: the layer's initial output would change."""
        if spec.combine.starts_plain:
            raise UserError(
                f"{type(self).__name__} has no factor that is zero, and "
                f"{type(spec.combine).__name__} adds "
                "a b from the first step: choose initializer ZeroDelta"
            )

    def for_table(self) -> Initializer:
        return self

    def factors(self, inputs: InitInputs, spec: AdapterSpec, key: Key) -> Factors:
        start = super().factors(inputs, spec, key)
        b_key, shape = jax.random.fold_in(key, 1), start["b"].shape
        start["b"] = (
            initializers.kaiming_uniform(b_key, shape, spec.rank)
            if self.b_std is None
            else self.b_std * jax.random.normal(b_key, shape, jnp.float32)
        )
        return start


@part("initializer", "shared_zero_delta")
@dataclasses.dataclass(frozen=True)
class SharedZeroDelta(ZeroDelta):
    """HydraLoRA's initialization: one random a (1, I, R) for all experts, zero b."""

    layout: ClassVar[str] = "shared"

    def factors(self, inputs: InitInputs, spec: AdapterSpec, key: Key) -> Factors:
        start = super().factors(inputs, spec, key)
        return {"a": start["a"][:1], "b": start["b"]}


def check_added_as_it_is(initializer: Initializer, spec: AdapterSpec) -> None:
    """Raises `UserError` unless the combine initially adds exactly ``s a b``.

    An initializer with a nonzero product needs this: a kernel edit subtracts ``s a b``.
    """
    if not spec.combine.starts_plain:
        raise UserError(
            f"{type(initializer).__name__} starts with a nonzero product a b, which "
            f"{type(spec.combine).__name__} does not add unchanged: choose initializer ZeroDelta"
        )


@part("initializer", "svd_segments")
@dataclasses.dataclass(frozen=True)
class SvdSegments(Initializer):
    """Initializes each expert from a different segment of the kernel's SVD (paper eq. 13 and 19).

    Attributes:
        segments: the assignment of triplets to experts, a function or its name in
            `goat_jax.core.svd.SEGMENTS`: `block_heads` is GOAT's.
        rho: damping of the initial product; 1 keeps the complete segment.
        offset: shift of the choice down the spectrum, as a fraction of the room below it: with
            `principal`, 0 takes the largest triplets, 1 the smallest (the paper's first figure).
    """

    segments: Segments = svd.block_heads
    rho: Positive = 10.0
    offset: Share = 0.0
    layout: ClassVar[str] = "pairs"

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", find_function("segments", self.segments, svd.SEGMENTS))
        check_fields(self)

    def decompose(self, kernel: Array, spec: AdapterSpec, key: Key) -> Svd:
        index = self.triplets(min(kernel.shape), spec, key)
        return svd.take_segments(svd.svd_of_kernel(kernel), index)

    def triplets(self, h: int, spec: AdapterSpec, key: Key) -> Array:
        """Returns the index (E, R) of every expert's triplets among a kernel's h triplets."""
        svd.check_segments(h, spec.num_experts, spec.rank)
        return svd.moved(self.segments(h, spec.num_experts, spec.rank, key), h, self.offset)

    def check(self, spec: AdapterSpec) -> None:
        check_added_as_it_is(self, spec)

    def factors(self, inputs: InitInputs, spec: AdapterSpec, key: Key) -> Factors:
        del spec, key
        assert inputs.segments is not None
        # The first expert's scale for all: GOAT+ rescales the experts, not their initial factors
        # (appendix E).
        return initializers.factors_of_segments(inputs.segments, inputs.scale[0], self.rho)


@part("kernel_edit", "keep")
@dataclasses.dataclass(frozen=True)
class KeepKernel:
    """Keeps the pretrained kernel unchanged as the frozen kernel."""

    looks_at_kernel: ClassVar[bool] = False

    def __call__(self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec) -> Array:
        del factors, scale, spec
        return kernel

    def removed(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec
    ) -> tuple[Array, Array]:
        del factors, scale, spec
        i, o = kernel.shape
        return jnp.zeros((i, 0), jnp.float32), jnp.zeros((0, o), jnp.float32)


@part("kernel_edit", "drop_minor")
@dataclasses.dataclass(frozen=True)
class DropMinorTriplets:
    """KaSA's kernel edit: removes the r smallest singular triplets, which nothing compensates."""

    looks_at_kernel: ClassVar[bool] = True

    def triplets(self, h: int, spec: AdapterSpec, key: Key) -> Array:
        """Returns the index (E, R) of the dropped triplets among a kernel's h triplets."""
        svd.check_segments(h, spec.num_experts, spec.rank)
        return svd.minor(h, spec.num_experts, spec.rank, key)

    def __call__(self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec) -> Array:
        del factors, scale
        return self.without(kernel, self._minor(kernel, spec))

    def removed(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec
    ) -> tuple[Array, Array]:
        del factors, scale
        return self._product(self._minor(kernel, spec))

    def without(self, kernel: Array, minor: Svd) -> Array:
        """Returns the kernel minus these triplets, u (E, I, R), s (E, R), vt (E, R, O)."""
        dropped = jnp.dot(*self._product(minor), precision="highest")
        return (kernel.astype(jnp.float32) - dropped).astype(kernel.dtype)

    def _minor(self, kernel: Array, spec: AdapterSpec) -> Svd:
        index = self.triplets(min(kernel.shape), spec, jax.random.key(0))
        return svd.take_segments(svd.svd_of_kernel(kernel), index)

    def _product(self, minor: Svd) -> tuple[Array, Array]:
        """Returns factors (I, E R) and (E R, O) whose product is the sum of the triplets."""
        u, s, vt = (part.astype(jnp.float32) for part in minor)
        return side_by_side(u * jnp.broadcast_to(s[:, None], u.shape), vt, jnp.ones(len(u)))


@part("kernel_edit", "subtract_mean")
@dataclasses.dataclass(frozen=True)
class SubtractMeanDelta:
    """Subtracts the experts' expected initial output: ``W0 - (1/E) sum s_i a_i b_i`` (Thm 3.4).

    Without a router the experts' weight is 1 instead of 1/E, which gives PiSSA's residual.

    Attributes:
        with_first_scale: whether to use s_1 for every expert, as the published code does with
            unequal scales; the theorem uses s_i for expert i.
    """

    with_first_scale: bool = False
    looks_at_kernel: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, spec: AdapterSpec) -> None:
        """Refuses a combine that does not initially add ``s a b``, the product subtracted here."""
        if not spec.combine.starts_plain:
            raise UserError(
                "SubtractMeanDelta subtracts s a b from the kernel, and "
                f"{type(spec.combine).__name__} does not add it back: choose kernel_edit KeepKernel"
            )

    def __call__(self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec) -> Array:
        a, b, (scale, weight) = factors["a"], factors["b"], self._gains(scale, spec)
        return residual_kernel(kernel, a, b, scale, weight)

    def weight(self, spec: AdapterSpec) -> float | tuple[float, ...]:
        """Returns the weight of the subtracted products: one number, or one for each expert."""
        return spec.router.mean_weight(spec)

    def _gains(self, scale: Array, spec: AdapterSpec) -> tuple[Array, Array]:
        """Returns the scales (E,) and the weights, () or (E,), of the subtracted products."""
        if self.with_first_scale:
            scale = scale[:1].repeat(spec.num_experts)
        return scale, jnp.asarray(self.weight(spec), jnp.float32)

    def removed(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec
    ) -> tuple[Array, Array]:
        del kernel
        scale, weight = self._gains(scale, spec)
        gains = scale * jnp.broadcast_to(weight, scale.shape)
        return side_by_side(factors["a"], factors["b"], gains)
