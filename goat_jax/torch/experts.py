"""Experts of one linear layer as a PEFT adapter: frozen start, dropout and balance loss."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from goat_jax.torch.aux_losses import AUX_LOSSES
from goat_jax.torch.config import GoatConfig
from goat_jax.torch.modeling_goat import Mixture
from goat_jax.validation.base_samples import COUNT

MIXTURE = ("r", "num_experts", "router", "top_k", "router_options", "shared_a")
"""Fields of `GoatConfig` that are arguments of `Mixture`."""


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


class Experts(Mixture):
    """Computes ``sum_i w_i(x) s_i B_i A_i x - B0 A0 x`` (..., O) in rank space, for x (..., I).

    A0 and B0 are buffers: what the start of the experts takes off the pretrained weight. So are a
    few samples of that weight, zeros if they are not known.
    """

    def __init__(self, in_features: int, out_features: int, config: GoatConfig):
        settings = {name: getattr(config, name) for name in MIXTURE}
        super().__init__(in_features, out_features, **settings)
        nn.init.zeros_(self.expert_b.weight)
        scaling = config.scaling
        if isinstance(scaling, str):  # "theory"
            scaling = (3 * in_features / config.r) ** 0.5
        scaling = torch.as_tensor(scaling, dtype=torch.float32)
        self.register_buffer("expert_scaling", scaling.expand(config.num_experts).clone())
        self.register_buffer("start_a", torch.zeros(config.start_rank, in_features))
        self.register_buffer("start_b", torch.zeros(out_features, config.start_rank))
        self.register_buffer("base_sample", torch.zeros(COUNT))
        self.config = config
        self.aux_loss: Tensor | None = None

    def forward(self, x: Tensor, inputs: Inputs) -> Tensor:
        """Returns the term that is added to the layer's output, in the factors' dtype."""
        config = self.config
        x = x.to(self.expert_a.weight.dtype)
        routing = self.router(x, inputs.tasks)
        if self.training:
            mask = inputs.mask
            mask = mask if mask is not None and mask.shape == x.shape[:-1] else None
            self.aux_loss = AUX_LOSSES[config.aux_loss](
                routing.without(self.router.shared),
                mask,
                inputs.task_types,
                **config.aux_loss_options,
            )
        weights = routing.weights * self.get_buffer("expert_scaling")
        delta = self.mix(functional.dropout(x, config.dropout, self.training), weights)
        if config.start_rank:
            start = functional.linear(x, self.get_buffer("start_a"))
            delta = delta - functional.linear(start, self.get_buffer("start_b"))
        return delta
