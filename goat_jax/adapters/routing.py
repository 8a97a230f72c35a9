"""Routers as parts: which trained arrays they have and how they weigh the experts."""

import dataclasses

from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core.initializers import kaiming_uniform
from goat_jax.core.routers import Routing, route_all, route_softmax, route_top_k, router_logits
from goat_jax.typing import Array, Factors, Key


@dataclasses.dataclass(frozen=True)
class NoRouter:
    """Every expert with weight 1: plain LoRA, and parallel adapters."""

    mergeable = True

    def init(self, in_features: int, spec: AdapterSpec, key: Key) -> Factors:
        del in_features, spec, key
        return {}

    def mean_weight(self, spec: AdapterSpec) -> float:
        del spec
        return 1.0

    def __call__(self, x: Array, factors: Factors, spec: AdapterSpec) -> Routing:
        del factors
        return route_all(x.shape[:-1], spec.num_experts)


@dataclasses.dataclass(frozen=True)
class TopK:
    """Softmax router that keeps the `top_k` best experts of each token, renormalised."""

    mergeable = False

    def init(self, in_features: int, spec: AdapterSpec, key: Key) -> Factors:
        shape = (in_features, spec.num_experts)
        return {"router": kaiming_uniform(key, shape, fan_in=in_features)}

    def mean_weight(self, spec: AdapterSpec) -> float:
        return 1 / spec.num_experts

    def __call__(self, x: Array, factors: Factors, spec: AdapterSpec) -> Routing:
        return route_top_k(router_logits(x, factors["router"]), spec.top_k)


@dataclasses.dataclass(frozen=True)
class Softmax(TopK):
    """Softmax router that uses all experts."""

    def __call__(self, x: Array, factors: Factors, spec: AdapterSpec) -> Routing:
        del spec
        return route_softmax(router_logits(x, factors["router"]))
