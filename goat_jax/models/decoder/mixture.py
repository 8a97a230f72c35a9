"""`MixtureConfig`: sizes and settings of a decoder's mixtures of experts."""

from __future__ import annotations

import dataclasses

from goat_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """Sizes and settings of the feed-forwards that are mixtures of experts.

    Attributes:
        num_experts: number of experts per layer.
        per_token: number of experts that compute each token.
        inner_size: width of an expert's hidden layer.
        layers: per layer, whether its feed-forward is a mixture.
        normalize: whether a token's weights sum to 1; else they are the chosen experts' share of
            the softmax over all of them.
        router_bias: whether the router has a bias.
        bias: whether the experts' layers have biases.
        clamp: (factor, limit) of a gate that is x * sigmoid(factor * x) of clamped values, with 1
            added to what it multiplies; None for the decoder's activation.
        balance_weight: weight of the routers' load balancing loss in training.

    Raises:
        UserError: more experts per token than there are.
    """

    num_experts: int
    per_token: int
    inner_size: int
    layers: tuple[bool, ...]
    normalize: bool = True
    router_bias: bool = False
    bias: bool = False
    clamp: tuple[float, float] | None = None
    balance_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.per_token > self.num_experts:
            raise UserError(
                f"num_experts_per_tok is {self.per_token}, and there are {self.num_experts} "
                "experts: correct one of them"
            )
