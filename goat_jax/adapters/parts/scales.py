"""Parts: scale rules, the functions of `goat_jax.core.scaling` with their options."""

import dataclasses

import jax.numpy as jnp

from goat_jax.adapters.protocols import ScaleRule
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core import scaling
from goat_jax.core.svd import Svd
from goat_jax.errors import UserError
from goat_jax.registry import find_part, part
from goat_jax.typing import Array
from goat_jax.validation.checks import check_number
from goat_jax.validation.fields import Positive, check_fields


@part("scale", "alpha_over_rank")
@dataclasses.dataclass(frozen=True)
class AlphaOverRank:
    """LoRA's scale ``alpha / R``, also used by the published GOAT code."""

    def check(self, spec: AdapterSpec) -> None:
        """Refuses an alpha that is not above 0: the adapter would be off or have the wrong sign."""
        check_number("alpha", spec.alpha, above=0)

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        del in_features, segments
        return scaling.alpha_over_rank(spec.num_experts, spec.rank, spec.alpha)


@part("scale", "alpha_over_total_rank")
@dataclasses.dataclass(frozen=True)
class AlphaOverTotalRank:
    """MOELoRA's scale ``alpha / r``, with r the rank of all experts together."""

    def check(self, spec: AdapterSpec) -> None:
        """Refuses an alpha that is not above 0: the adapter would be off or have the wrong sign."""
        check_number("alpha", spec.alpha, above=0)

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        del in_features, segments
        return scaling.alpha_over_rank(spec.num_experts, spec.total_rank, spec.alpha)


@part("scale", "alpha_over_start_rank")
@dataclasses.dataclass(frozen=True)
class AlphaOverStartRank:
    """AdaLoRA's scale ``alpha / (r + 1e-5)``, with r the initial rank even after pruning.

    An alpha of 0 or less stands for the rank, as published.
    """

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        del in_features, segments
        alpha = spec.alpha if spec.alpha > 0 else float(spec.rank)
        return jnp.full((spec.num_experts,), alpha / (spec.rank + 1e-5), jnp.float32)


@part("scale", "alpha_over_root_rank")
@dataclasses.dataclass(frozen=True)
class AlphaOverRootRank:
    """rsLoRA's scale ``alpha / sqrt(R)``."""

    def check(self, spec: AdapterSpec) -> None:
        """Refuses an alpha that is not above 0: the adapter would be off or have the wrong sign."""
        check_number("alpha", spec.alpha, above=0)

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        del in_features, segments
        return scaling.alpha_over_root_rank(spec.num_experts, spec.rank, spec.alpha)


@part("scale", "theory")
@dataclasses.dataclass(frozen=True)
class TheoreticalScale:
    """GOAT's scale ``sqrt(3 I eta / R)``, Theorem 3.5 of the paper.

    Attributes:
        eta: the learning rate of full fine-tuning divided by that of the adapter.
    """

    eta: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        del segments
        return scaling.theory(spec.num_experts, spec.rank, in_features, self.eta)


@part("scale", "fixed")
@dataclasses.dataclass(frozen=True)
class ConstantScale:
    """A constant scale.

    Attributes:
        value: the scale of all experts, or one scale per expert.
    """

    value: Positive | tuple[Positive, ...] = 2.0

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, spec: AdapterSpec) -> None:
        """Refuses a list whose length is not the number of experts."""
        if isinstance(self.value, tuple) and len(self.value) != spec.num_experts:
            raise UserError(
                f"value has {len(self.value)} scales for {spec.num_experts} experts: give one each"
            )

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        del in_features, segments
        return jnp.broadcast_to(jnp.asarray(self.value, jnp.float32), (spec.num_experts,))


@part("scale", "by_spectrum")
@dataclasses.dataclass(frozen=True)
class BySpectrum:
    """GOAT+ (GOAT-s in v4): scales the first expert by another rule, the others by their spectrum.

    The scales are finite for every kernel: an expert whose segment is empty has the first one's.

    Attributes:
        first: the rule for the first expert's scale s_1, a part or its name.
    """

    first: ScaleRule = TheoreticalScale()

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", find_part("scale", self.first))
        if isinstance(self.first, BySpectrum):
            raise UserError("first must be a rule other than by_spectrum itself: give another one")

    def check(self, spec: AdapterSpec) -> None:
        """Refuses every spec that the rule `first` refuses."""
        check = getattr(self.first, "check", None)
        if check is not None:
            check(spec)

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        if segments is None:
            raise UserError(
                "scale by_spectrum needs experts initialized from SVD segments: choose another "
                "scale, or a method whose initializer is SvdSegments"
            )
        return scaling.by_spectrum(self.first(in_features, segments, spec), segments.s)
