"""Parts: routers, with their trained arrays and the experts' weights computed from them."""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from goat_jax.adapters.protocols import Router, RouterInputs
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core import routers
from goat_jax.core.dispatch import HIDDEN
from goat_jax.core.initializers import kaiming_uniform
from goat_jax.core.products import router_logits
from goat_jax.core.routers import Routing
from goat_jax.errors import UserError
from goat_jax.registry import part
from goat_jax.typing import Array, Factors, Key
from goat_jax.validation.fields import Count, NonNegative, Positive, Range, check_fields


@part("router", "none")
@dataclasses.dataclass(frozen=True)
class NoRouter(Router):
    """No router: every expert has weight 1, as in plain LoRA and parallel adapters."""

    mergeable: ClassVar[bool] = True
    varies: ClassVar[str] = "not at all"

    def init(self, in_features: int, spec: AdapterSpec, key: Key) -> Factors:
        del in_features, spec, key
        return {}

    def mean_weight(self, spec: AdapterSpec) -> float:
        del spec
        return 1.0

    def __call__(self, inputs: RouterInputs) -> Routing:
        return routers.route_all(inputs.x.shape[:-1], inputs.spec.num_experts)


@part("router", "softmax")
@dataclasses.dataclass(frozen=True)
class Softmax(Router):
    """Softmax router that uses all experts.

    Attributes:
        router_std: standard deviation of the router's normal initialization; None is kaiming
            uniform.
    """

    router_std: NonNegative | None = None
    mergeable: ClassVar[bool] = False
    varies: ClassVar[str] = "token by token"

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, in_features: int, spec: AdapterSpec, key: Key) -> Factors:
        shape = (in_features, self.num_routed(spec))
        if self.router_std is None:
            return {"router": kaiming_uniform(key, shape, fan_in=in_features)}
        return {"router": self.router_std * jax.random.normal(key, shape, jnp.float32)}

    def num_routed(self, spec: AdapterSpec) -> int:
        """Returns the number of experts that the router chooses among."""
        return spec.num_experts

    def mean_weight(self, spec: AdapterSpec) -> float | tuple[float, ...]:
        return 1 / spec.num_experts

    def matrix(self, factors: Factors) -> Array:
        return factors["router"]

    def __call__(self, inputs: RouterInputs) -> Routing:
        logits = inputs.logits
        if logits is None:
            logits = router_logits(inputs.x, self.matrix(inputs.arrays))
            logits = checkpoint_name(logits, HIDDEN)
        return self.route(logits, inputs.arrays, inputs.spec)

    def route(self, logits: Array, factors: Factors, spec: AdapterSpec) -> Routing:
        """Routes tokens by their logits (..., N), the product of x and `matrix`."""
        del factors, spec
        return routers.route_softmax(logits)


@part("router", "top_k")
@dataclasses.dataclass(frozen=True)
class TopK(Softmax):
    """Softmax router that keeps the `top_k` most probable experts of each token.

    Attributes:
        renormalise: whether the kept weights are renormalized to sum to 1.
    """

    renormalise: bool = True

    def route(self, logits: Array, factors: Factors, spec: AdapterSpec) -> Routing:
        del factors
        if self.renormalise:
            return routers.route_top_k(logits, spec.top_k)
        return routers.route_top_k_masked(logits, spec.top_k)


@part("router", "top_p")
@dataclasses.dataclass(frozen=True)
class TopP(Softmax):
    """Softmax router that keeps the fewest experts whose probabilities reach p (paper's appendix).

    Attributes:
        p: the probability to reach, 0.25 in the paper.
    """

    p: Annotated[float, Range(above=0, at_most=1)] = 0.25

    def route(self, logits: Array, factors: Factors, spec: AdapterSpec) -> Routing:
        del factors, spec
        return routers.route_top_p(logits, self.p)


@part("router", "top_k_shared")
@dataclasses.dataclass(frozen=True)
class TopKWithShared(Softmax):
    """Router with one expert shared by all tokens, and the `top_k` best of the others.

    The first expert has weight 1 and no column in the router. It does not count in the balance
    loss, see `aux_losses.LoadBalancing`. (The paper's appendix.)
    """

    def check(self, spec: AdapterSpec) -> None:
        """Refuses a top_k above the number of experts other than the shared one."""
        if spec.top_k >= spec.num_experts:
            raise UserError(
                f"top_k {spec.top_k} of {spec.num_experts} experts leaves no shared one: "
                f"choose a top_k of at most {spec.num_experts - 1}"
            )

    def num_routed(self, spec: AdapterSpec) -> int:
        return spec.num_experts - 1

    def mean_weight(self, spec: AdapterSpec) -> tuple[float, ...]:
        others = spec.num_experts - 1
        return (1.0,) + (1 / others,) * others

    def route(self, logits: Array, factors: Factors, spec: AdapterSpec) -> Routing:
        del factors
        return routers.route_with_shared(logits, spec.top_k)


@part("router", "threshold")
@dataclasses.dataclass(frozen=True)
class Threshold(Softmax):
    """AdaMoLE's router: selects the experts above a threshold computed from each token.

    Attributes:
        tau_max: the largest threshold; None is 1 / E, up to which an expert is always selected.
    """

    tau_max: Positive | None = None

    def check(self, spec: AdapterSpec) -> None:
        """Refuses a threshold above 1 / E, which could leave a token without experts."""
        if self.tau_max is not None and self.tau_max > 1 / spec.num_experts:
            raise UserError(
                f"tau_max {self.tau_max} is not in (0, 1/{spec.num_experts}]: above 1 / experts, "
                "a token may be left without an expert"
            )

    def init(self, in_features: int, spec: AdapterSpec, key: Key) -> Factors:
        weight_key, bias_key = jax.random.split(jax.random.fold_in(key, 1))
        return super().init(in_features, spec, key) | {
            "threshold": kaiming_uniform(weight_key, (in_features, 1), in_features),
            "threshold_bias": kaiming_uniform(bias_key, (1,), in_features),
        }

    def matrix(self, factors: Factors) -> Array:
        return jnp.concatenate([factors["router"], factors["threshold"]], axis=-1)

    def route(self, logits: Array, factors: Factors, spec: AdapterSpec) -> Routing:
        logits, tau = jnp.split(logits, [spec.num_experts], axis=-1)
        tau = tau + jnp.broadcast_to(factors["threshold_bias"], tau.shape)
        largest = 1 / spec.num_experts if self.tau_max is None else self.tau_max
        return routers.route_threshold(logits, largest * jax.nn.sigmoid(tau))


@part("router", "task")
@dataclasses.dataclass(frozen=True)
class TaskGate(Router):
    """MOELoRA's router: uses all experts, weighted by the example's task.

    Attributes:
        num_tasks: the largest task number; tasks count from 0, so the embedding table has
            num_tasks + 1 rows, as published.
        task_width: size of a task's embedding.
    """

    num_tasks: Count = 16
    task_width: Count = 64
    mergeable: ClassVar[bool] = False
    varies: ClassVar[str] = "task by task (`for_task` gives the adapter of one task)"

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, in_features: int, spec: AdapterSpec, key: Key) -> Factors:
        del in_features
        table_key, gate_key = jax.random.split(key)
        table = jax.random.normal(table_key, (self.num_tasks + 1, self.task_width), jnp.float32)
        shape = (self.task_width, spec.num_experts)
        gate = kaiming_uniform(gate_key, shape, self.task_width)
        return {"task_embedding": table, "task_gate": gate}

    def mean_weight(self, spec: AdapterSpec) -> float:
        return 1 / spec.num_experts

    def weights(self, factors: Factors, task_ids: Array) -> Array:
        """Returns the experts' weights (..., E) for tasks (...,)."""
        logits = router_logits(factors["task_embedding"][task_ids], factors["task_gate"])
        return jax.nn.softmax(logits, axis=-1)

    def __call__(self, inputs: RouterInputs) -> Routing:
        x, task_ids, num_experts = inputs.x, inputs.ctx.task_ids, inputs.spec.num_experts
        if task_ids is None:
            raise UserError(
                "TaskGate weights experts by task: give task_ids (B,) with the batch; in a run, "
                "name their column with --task.task-id"
            )
        weights = self.weights(inputs.arrays, task_ids)
        inner = (1,) * (x.ndim - 1 - task_ids.ndim)
        weights = weights.reshape(*task_ids.shape, *inner, num_experts)
        weights = jnp.broadcast_to(weights, (*x.shape[:-1], num_experts))
        return Routing(weights, weights, jnp.ones_like(weights, bool))
