"""How an adapter starts: initializers of the factors, and edits of the frozen kernel."""

import dataclasses

from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core import initializers, svd
from goat_jax.core.residual import residual_kernel
from goat_jax.core.svd import Segments, Svd
from goat_jax.typing import Array, Factors, Key


@dataclasses.dataclass(frozen=True)
class ZeroDelta:
    """LoRA's start: random a, zero b."""

    def segments(self, kernel: Array, spec: AdapterSpec, key: Key) -> None:
        del kernel, spec, key

    def factors(
        self, kernel: Array, segments: Svd | None, scale: Array, spec: AdapterSpec, key: Key
    ) -> Factors:
        del segments, scale
        in_features, out_features = kernel.shape
        return initializers.zero_delta(key, in_features, out_features, spec.num_experts, spec.rank)


@dataclasses.dataclass(frozen=True)
class SvdSegments:
    """Every expert starts from its own segment of the kernel's SVD (paper eq. 13 and 19).

    Attributes:
        choice: which triplets each expert gets (`goat_jax.core.svd`): `block_heads` is GOAT's.
        rho: damping of the start; 1 keeps the segment whole.
    """

    choice: Segments = svd.block_heads
    rho: float = 10.0

    def segments(self, kernel: Array, spec: AdapterSpec, key: Key) -> Svd:
        h = min(kernel.shape)
        svd.check_segments(h, spec.num_experts, spec.rank)
        index = self.choice(h, spec.num_experts, spec.rank, key)
        return svd.take_segments(svd.svd_of_kernel(kernel), index)

    def factors(
        self, kernel: Array, segments: Svd | None, scale: Array, spec: AdapterSpec, key: Key
    ) -> Factors:
        del kernel, spec, key
        assert segments is not None
        # The first expert's scale for all: GOAT+ rescales the experts, not their start (app. E).
        return initializers.factors_of_segments(segments, scale[0], self.rho)


@dataclasses.dataclass(frozen=True)
class KeepBase:
    """The frozen kernel is the pretrained one."""

    def __call__(self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec) -> Array:
        del factors, scale, spec
        return kernel


@dataclasses.dataclass(frozen=True)
class SubtractMean:
    """Takes the experts' expected start off the kernel: W0 - (1/E) sum s_i a_i b_i (Thm 3.4).

    Without a router the experts' weight is 1, not 1/E, which gives PiSSA's residual.

    Attributes:
        with_first_scale: use s_1 for every expert, as the published code does with unequal scales;
            the theorem uses each expert's own.
    """

    with_first_scale: bool = False

    def __call__(self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec) -> Array:
        if self.with_first_scale:
            scale = scale[:1].repeat(spec.num_experts)
        weight = spec.router.mean_weight(spec)
        return residual_kernel(kernel, factors["a"], factors["b"], scale, weight)
