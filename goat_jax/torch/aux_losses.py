"""Balance losses in PyTorch, counterparts of the parts in `goat_jax.adapters.parts.aux_losses`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from goat_jax.torch.modeling_goat import Routing


def no_loss(routing: Routing, mask: Tensor | None, types: Tensor | None) -> Tensor:
    """Returns zero."""
    del mask, types
    return routing.weights.new_zeros(())


def balance(
    routing: Routing,
    mask: Tensor | None,
    types: Tensor | None,
    reference_code: bool = False,
    count_padding: bool = False,
) -> Tensor:
    """Computes the paper's load balancing loss, 1 if balanced; `reference_code` gives k times that.

    Args:
        routing: the routing of a layer, without experts that all tokens share.
        mask: (...), non-zero for real tokens; None if all are.
        types: not used.
        reference_code: whether to use the published code's form.
        count_padding: whether padding tokens count too.
    """
    del types
    mask = None if count_padding else mask
    load = _mean(routing.selected.float(), mask)
    loss = load.numel() * (load * _mean(routing.probs, mask)).sum()
    return loss if reference_code else loss / load.sum().clamp(min=1e-9)


def threshold_balance(
    routing: Routing, mask: Tensor | None, types: Tensor | None, count_padding: bool = False
) -> Tensor:
    """Computes AdaMoLE's balance loss, with margins above the threshold as probabilities."""
    assert routing.margins is not None
    by_margin = routing._replace(probs=routing.margins)
    return balance(by_margin, mask, types, reference_code=True, count_padding=count_padding)


def localized_balance(
    routing: Routing,
    mask: Tensor | None,
    types: Tensor | None,
    delta: float = 0.0,
    count_padding: bool = False,
) -> Tensor:
    """Computes LoRAMoE's squared coefficient of variation of the experts' use per example.

    Args:
        routing: the routing of a layer; its first axis is the batch.
        mask: (B, ...), non-zero for real tokens; None if all are.
        types: the types 0 or 1 of the examples' tasks, (B,), needed if delta is not 0.
        delta: the strength of the localization.
        count_padding: whether padding tokens count too.
    """
    weights = routing.weights
    if mask is not None and not count_padding:
        weights = weights * mask[..., None]
    use = weights.reshape(len(weights), -1, weights.shape[-1]).sum(1)
    if delta:
        if types is None:
            raise ValueError("the balance loss goes by types of tasks: give the model task_types")
        first = torch.arange(use.shape[-1], device=use.device) < use.shape[-1] // 2
        right = types.long()[:, None] == first.long()
        use = use * torch.where(right, 1.0 + delta, 1.0 - delta)
    if use.numel() == 1:
        return use.new_zeros(())
    return use.var() / (use.mean().square() + 1e-10)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Averages (..., E) over all tokens, or over those whose mask is non-zero, to (E,)."""
    flat = values.reshape(-1, values.shape[-1])
    if mask is None:
        return flat.mean(0)
    keep = mask.reshape(-1, 1).to(flat.dtype)
    return (flat * keep).sum(0) / keep.sum().clamp(min=1.0)


AUX_LOSSES: dict[str, Callable[..., Tensor]] = {
    "none": no_loss,
    "balance": balance,
    "threshold_balance": threshold_balance,
    "localized_balance": localized_balance,
}
"""Balance losses by the names of goat_jax's parts."""
