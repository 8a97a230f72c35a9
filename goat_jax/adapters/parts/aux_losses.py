"""Parts: auxiliary losses of a layer, such as load balancing and orthogonality."""

import dataclasses

import jax
import jax.numpy as jnp

from goat_jax.adapters.context import Context
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core import aux_losses
from goat_jax.core.orthogonality import gram_norms
from goat_jax.core.routers import Routing
from goat_jax.errors import UserError
from goat_jax.registry import part
from goat_jax.typing import Array, Factors
from goat_jax.validation.fields import NonNegative, Rate, check_fields


@part("aux_loss", "none")
@dataclasses.dataclass(frozen=True)
class NoAuxLoss:
    """No auxiliary loss: always zero, so that no code has to handle a missing part."""

    def __call__(self, routing: Routing, arrays: Factors, ctx: Context) -> Array:
        del routing, arrays, ctx
        return jnp.zeros((), jnp.float32)


@part("aux_loss", "balance")
@dataclasses.dataclass(frozen=True)
class LoadBalancing:
    """Load balancing of the experts: 1 if balanced in the paper's form, k in the published code's.

    An expert shared by all tokens has no column in the router and does not count.

    Attributes:
        reference_code: whether to use the form of the published code, k times the paper's.
        count_padding: whether padding tokens count too, as in the published code.
    """

    reference_code: bool = False
    count_padding: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, routing: Routing, arrays: Factors, ctx: Context) -> Array:
        if "router" in arrays and arrays["router"].shape[-1] < routing.probs.shape[-1]:
            shared = routing.probs.shape[-1] - arrays["router"].shape[-1]
            routing = jax.tree.map(lambda value: value[..., shared:], routing)
        form = aux_losses.balance_loss_published if self.reference_code else aux_losses.balance_loss
        return form(routing, None if self.count_padding else ctx.mask)


@part("aux_loss", "threshold_balance")
@dataclasses.dataclass(frozen=True)
class ThresholdBalance:
    """AdaMoLE's balance loss ``E sum_i f_i Q_i``; Q_i is the mean margin above the threshold.

    Attributes:
        count_padding: whether padding tokens count too, as in the published code.
    """

    count_padding: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, spec: AdapterSpec) -> None:
        """Refuses a router without a threshold, which has no margins."""
        if not hasattr(spec.router, "tau_max"):
            raise UserError(
                "ThresholdBalance needs a router with a threshold, which "
                f"{type(spec.router).__name__} does not have: choose aux_loss LoadBalancing"
            )

    def __call__(self, routing: Routing, arrays: Factors, ctx: Context) -> Array:
        del arrays
        return aux_losses.threshold_balance(routing, None if self.count_padding else ctx.mask)


@part("aux_loss", "localized_balance")
@dataclasses.dataclass(frozen=True)
class LocalizedBalance:
    """LoRAMoE's balance loss: squared coefficient of variation of the experts' use per example.

    Attributes:
        delta: the localization: experts of the half for the example's task type are weighted by
            1 + delta, the others by 1 - delta; 0 treats all alike and needs no task types.
        count_padding: whether padding tokens count too, as in the published code.
    """

    delta: Rate = 0.0
    count_padding: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, spec: AdapterSpec) -> None:
        """Refuses an odd number of experts if delta is not 0."""
        if self.delta and spec.num_experts % 2:
            raise UserError(
                f"num_experts {spec.num_experts} cannot be halved: give an even number, or delta 0"
            )

    def __call__(self, routing: Routing, arrays: Factors, ctx: Context) -> Array:
        del arrays
        types = ctx.task_types if self.delta else None
        if self.delta and types is None:
            raise UserError(
                "LocalizedBalance needs the type of each example's task: give task_types (B,) "
                "with the batch (in a run by task.task_type), or choose delta 0"
            )
        mask = None if self.count_padding else ctx.mask
        return aux_losses.localized_balance(routing, types, self.delta, mask)


@part("aux_loss", "orthogonality")
@dataclasses.dataclass(frozen=True)
class Orthogonality:
    """AdaLoRA's orthogonality loss: mean of ``|a^T a - 1|`` and ``|b b^T - 1|`` of one layer.

    The norms are not squared. AdaLoRA averages over all matrices of the model; here layers are
    summed, so its weight omega corresponds to an `aux_weight` of omega / (adapted layers).
    """

    def __call__(self, routing: Routing, arrays: Factors, ctx: Context) -> Array:
        del routing, ctx
        of_a, of_b = gram_norms(arrays["a"], arrays["b"])
        return (of_a.mean() + of_b.mean()) / 2


@part("aux_loss", "core_and_orthogonality")
@dataclasses.dataclass(frozen=True)
class CoreAndOrthogonality:
    """KaSA's loss ``beta |core|^2 + gamma (|a^T a - 1| + |b b^T - 1|)``.

    Attributes:
        beta: weight of the core's sum of squares.
        gamma: weight of both deviations from orthogonality.
        reference_code: whether to use the large Gram matrices, as KaSA's code does (it also
            averages over layers: divide `aux_weight` by their number), instead of the small ones,
            as PEFT does.
    """

    beta: NonNegative = 1e-4
    gamma: NonNegative = 1e-3
    reference_code: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, spec: AdapterSpec) -> None:
        """Refuses a combine without a core."""
        if not hasattr(spec.combine, "core_std"):
            raise UserError(
                f"CoreAndOrthogonality needs a core, which {type(spec.combine).__name__} does not "
                "have: choose combine DiagonalCore"
            )

    def __call__(self, routing: Routing, arrays: Factors, ctx: Context) -> Array:
        del routing, ctx
        of_a, of_b = gram_norms(arrays["a"], arrays["b"], self.reference_code)
        core = jnp.square(arrays["core"]).sum()
        return self.beta * core + self.gamma * (of_a + of_b).sum()
