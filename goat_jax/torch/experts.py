"""Experts of one linear layer in PyTorch, with their router."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from goat_jax.torch.aux_losses import AUX_LOSSES
from goat_jax.torch.config import GoatConfig
from goat_jax.torch.routers import ROUTERS


@dataclasses.dataclass
class Inputs:
    """Inputs of a model besides its tokens, which the adapters of all layers read.

    Attributes:
        mask: (B, T), non-zero for real tokens, or None.
        tasks: the examples' tasks (B,), or None.
        task_types: the types of the examples' tasks (B,), or None.
    """

    mask: Tensor | None = None
    tasks: Tensor | None = None
    task_types: Tensor | None = None


class Experts(nn.Module):
    """Computes ``sum_i w_i(x) s_i B_i A_i x - B0 A0 x`` (..., O) in rank space, for x (..., I).

    All experts are two products, with the weights between them: nothing is done expert by expert.
    A0 and B0 are buffers: what the start of the experts takes off the pretrained weight.
    """

    def __init__(self, in_features: int, out_features: int, config: GoatConfig):
        super().__init__()
        experts, rank, start = config.num_experts, config.r, config.start_rank
        self.expert_a = nn.Parameter(
            torch.empty(rank if config.shared_a else experts * rank, in_features)
        )
        self.expert_b = nn.Parameter(torch.zeros(out_features, experts * rank))
        nn.init.kaiming_uniform_(self.expert_a, a=5**0.5)
        self.route = ROUTERS[config.router](experts, config.top_k, **config.router_options)
        # PEFT expects the names of arrays directly behind the adapter's name.
        self.router_names = tuple(self.route.init(1))
        for name, array in self.route.init(in_features).items():
            self.register_parameter(f"router_{name}", nn.Parameter(array))
        scaling = torch.as_tensor(config.scaling, dtype=torch.float32)
        self.register_buffer("expert_scaling", scaling.expand(experts).clone())
        self.register_buffer("start_a", torch.zeros(start, in_features))
        self.register_buffer("start_b", torch.zeros(out_features, start))
        self.config = config
        self.aux_loss: Tensor | None = None

    def forward(self, x: Tensor, inputs: Inputs) -> Tensor:
        """Returns the term that is added to the layer's output, in the factors' dtype."""
        config = self.config
        arrays = {name: self.get_parameter(f"router_{name}") for name in self.router_names}
        routing = self.route(x, arrays, inputs.tasks)
        if self.training:
            mask = inputs.mask
            mask = mask if mask is not None and mask.shape == x.shape[:-1] else None
            self.aux_loss = AUX_LOSSES[config.aux_loss](
                routing.without(self.route.shared),
                mask,
                inputs.task_types,
                **config.aux_loss_options,
            )
        x = x.to(self.expert_a.dtype)
        gate = (routing.weights * self.get_buffer("expert_scaling")).to(x.dtype)
        dropped = functional.dropout(x, config.dropout, self.training)
        hidden = functional.linear(dropped, self.expert_a)
        hidden = hidden.unflatten(-1, (-1, config.r)) * gate[..., None]
        delta = functional.linear(hidden.flatten(-2), self.expert_b)
        if config.start_rank:
            start = functional.linear(x, self.get_buffer("start_a"))
            delta = delta - functional.linear(start, self.get_buffer("start_b"))
        return delta
