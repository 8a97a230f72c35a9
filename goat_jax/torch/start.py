"""Start of experts from segments of the pretrained weight's SVD, as in `goat_jax`'s SvdSegments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from goat_jax.torch.experts import Experts
from goat_jax.torch.modeling_goat import NoRouter

SEGMENTS: dict[str, Callable[[int, Tensor, int, int], Tensor]] = {
    "block_heads": lambda h, expert, experts, rank: expert * (h // experts),
    "block_tails": lambda h, expert, experts, rank: (expert + 1) * (h // experts) - rank,
    "principal": lambda h, expert, experts, rank: expert * rank,
    "minor": lambda h, expert, experts, rank: h - (expert + 1) * rank,
}
"""Name -> (h, expert, E, R) -> the first of R neighbouring triplets, of h, that an expert has."""


def start_from_svd(experts: Experts, weight: Tensor) -> None:
    """Sets the experts to segments of a weight's SVD, and what they take off it to their mean.

    Args:
        experts: the experts of a layer.
        weight: the layer's pretrained weight (O, I).

    Raises:
        ValueError: the weight is not a matrix of this layer's shape, as if it is quantized, or it
            has not as many singular values as the experts need.
    """
    config = experts.config
    count, rank, shape = config.num_experts, config.r, experts.expert_b.out_features
    if tuple(weight.shape) != (shape, experts.expert_a.in_features):
        raise ValueError("init 'svd' needs pretrained weights that are not quantized")
    if count * rank > min(weight.shape):
        raise ValueError(
            f"init 'svd' needs {count} * {rank} singular values, and a weight of shape "
            f"{tuple(weight.shape)} has {min(weight.shape)}: set a smaller r or num_experts"
        )
    u, s, vh = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    first = SEGMENTS[config.segments](len(s), torch.arange(count), count, rank)
    index = (first[:, None] + torch.arange(rank)).flatten().to(s.device)
    scaling = experts.get_buffer("expert_scaling").to(s.device)
    root = (s[index] / (scaling[0] * config.rho)).sqrt()
    a, b = root[:, None] * vh[index], u[:, index] * root
    mean = scaling * mean_weights(experts).to(s.device)
    with torch.no_grad():
        experts.expert_a.weight.copy_(a)
        experts.expert_b.weight.copy_(b)
        experts.get_buffer("start_a").copy_(a)
        experts.get_buffer("start_b").copy_(b * mean.repeat_interleave(rank))


def mean_weights(experts: Experts) -> Tensor:
    """Returns the weights (E,) that a router which knows nothing yet gives the experts."""
    count, router = experts.config.num_experts, experts.router
    shared = int(getattr(router, "shared", 0))
    if isinstance(router, NoRouter):
        return torch.ones(count)
    weights = torch.full((count,), 1 / (count - shared))
    weights[:shared] = 1.0
    return weights
