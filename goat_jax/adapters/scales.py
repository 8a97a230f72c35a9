"""Scale rules as parts: what `goat_jax.core.scaling` computes, with their options."""

import dataclasses

import jax.numpy as jnp

from goat_jax.adapters.spec import AdapterSpec, ScaleRule
from goat_jax.core import scaling
from goat_jax.core.svd import Svd
from goat_jax.errors import UserError
from goat_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class AlphaOverRank:
    """alpha / R: LoRA, and what the published GOAT code runs."""

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        del in_features, segments
        return scaling.alpha_over_rank(spec.num_experts, spec.rank, spec.alpha)


@dataclasses.dataclass(frozen=True)
class AlphaOverTotalRank:
    """alpha / r, r of all experts together: MOELoRA."""

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        del in_features, segments
        return scaling.alpha_over_rank(spec.num_experts, spec.total_rank, spec.alpha)


@dataclasses.dataclass(frozen=True)
class AlphaOverStartRank:
    """alpha / (r + 1e-5): AdaLoRA, which keeps the rank it starts with in here while it prunes.

    An alpha of 0 or less stands for the rank, as published.
    """

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        del in_features, segments
        alpha = spec.alpha if spec.alpha > 0 else float(spec.rank)
        return jnp.full((spec.num_experts,), alpha / (spec.rank + 1e-5), jnp.float32)


@dataclasses.dataclass(frozen=True)
class AlphaOverRootRank:
    """alpha / sqrt(R): rsLoRA."""

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        del in_features, segments
        return scaling.alpha_over_root_rank(spec.num_experts, spec.rank, spec.alpha)


@dataclasses.dataclass(frozen=True)
class Theory:
    """sqrt(3 I eta / R), Theorem 3.5 of the paper.

    Attributes:
        eta: full fine-tuning learning rate divided by the adapter's.
    """

    eta: float = 1.0

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        del segments
        return scaling.theory(spec.num_experts, spec.rank, in_features, self.eta)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A constant.

    Attributes:
        value: the scale, or one scale per expert.
    """

    value: float | tuple[float, ...] = 2.0

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        del in_features, segments
        return jnp.broadcast_to(jnp.asarray(self.value, jnp.float32), (spec.num_experts,))


@dataclasses.dataclass(frozen=True)
class BySpectrum:
    """GOAT+ (GOAT-s in v4): the first expert's scale by another rule, the others by their spectrum.

    Finite for every kernel: an expert whose segment is empty keeps the first one's scale.

    Attributes:
        first: the rule that gives s_1.
    """

    first: ScaleRule = Theory()

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        if segments is None:
            raise UserError(
                "scale by_spectrum needs experts that start from SVD segments: choose another "
                "scale, or a method whose initializer is SvdSegments"
            )
        return scaling.by_spectrum(self.first(in_features, segments, spec), segments.s)
