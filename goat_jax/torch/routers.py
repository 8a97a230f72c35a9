"""Routers in PyTorch: the experts' weights of every token, in float32.

Each is the counterpart of the part of the same name in `goat_jax.adapters.parts.routers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Routing(NamedTuple):
    """Weights of the experts for every token, and the probabilities behind them.

    Attributes:
        weights: the experts' weights (..., E), zero where an expert is not selected.
        probs: the softmax of the logits over the experts (..., E).
        selected: a mask of the selected experts (..., E).
        margins: each probability minus the token's threshold (..., E), or None.
    """

    weights: Tensor
    probs: Tensor
    selected: Tensor
    margins: Tensor | None = None

    def without(self, shared: int) -> Routing:
        """Returns the routing without the first experts."""
        margins = None if self.margins is None else self.margins[..., shared:]
        weights, probs = self.weights[..., shared:], self.probs[..., shared:]
        return Routing(weights, probs, self.selected[..., shared:], margins)


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Uses all experts, with the softmax of their logits; subclasses select among them.

    Attributes:
        num_experts: the number of experts E.
        top_k: the number of experts of a token, for routers that choose by number.
    """

    num_experts: int
    top_k: int
    shared: ClassVar[int] = 0
    """Number of the first experts that all tokens have, and that no logits stand for."""

    def init(self, in_features: int) -> dict[str, Tensor]:
        """Returns the initial trained arrays by name."""
        return {"weight": _uniform(self.num_experts - self.shared, in_features)}

    def __call__(self, x: Tensor, arrays: Mapping[str, Tensor], tasks: Tensor | None) -> Routing:
        """Routes tokens (..., I)."""
        del tasks
        return self.route(functional.linear(x.float(), arrays["weight"].float()), arrays)

    def route(self, logits: Tensor, arrays: Mapping[str, Tensor]) -> Routing:
        """Routes tokens by their logits (..., E)."""
        del arrays
        probs = logits.softmax(-1)
        return Routing(probs, probs, torch.ones_like(probs, dtype=torch.bool))


@dataclasses.dataclass(frozen=True)
class NoRouter(Softmax):
    """Gives every expert the weight 1."""

    def init(self, in_features: int) -> dict[str, Tensor]:
        del in_features
        return {}

    def __call__(self, x: Tensor, arrays: Mapping[str, Tensor], tasks: Tensor | None) -> Routing:
        del arrays, tasks
        weights = torch.ones(*x.shape[:-1], self.num_experts, device=x.device)
        return Routing(weights, weights / self.num_experts, weights > 0)


@dataclasses.dataclass(frozen=True)
class TopK(Softmax):
    """Keeps the `top_k` most probable experts; their weights sum to 1 if renormalised."""

    renormalise: bool = True

    def route(self, logits: Tensor, arrays: Mapping[str, Tensor]) -> Routing:
        del arrays
        return _top_k(logits, self.top_k, self.renormalise)


@dataclasses.dataclass(frozen=True)
class TopKWithShared(Softmax):
    """Uses the first expert for every token, and the `top_k` best of the others."""

    shared: ClassVar[int] = 1

    def route(self, logits: Tensor, arrays: Mapping[str, Tensor]) -> Routing:
        del arrays
        routed = _top_k(logits, self.top_k, True)
        one = torch.ones_like(logits[..., :1])
        weights = torch.cat([one, routed.weights], -1)
        probs = torch.cat([0 * one, routed.probs], -1)
        return Routing(weights, probs, torch.cat([one > 0, routed.selected], -1))


@dataclasses.dataclass(frozen=True)
class TopP(Softmax):
    """Keeps the fewest experts whose probabilities reach p."""

    p: float = 0.25

    def route(self, logits: Tensor, arrays: Mapping[str, Tensor]) -> Routing:
        del arrays
        probs = logits.softmax(-1)
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        kept = ordered.cumsum(-1) - ordered < self.p
        selected = torch.zeros_like(kept).scatter(-1, order, kept)
        return Routing(_normalized(probs * selected), probs, selected)


@dataclasses.dataclass(frozen=True)
class Threshold(Softmax):
    """AdaMoLE's router: keeps the experts above a threshold that a token determines."""

    tau_max: float | None = None

    def init(self, in_features: int) -> dict[str, Tensor]:
        weight = _uniform(self.num_experts + 1, in_features)
        return {"weight": weight, "bias": torch.empty(1).uniform_(-1, 1) * in_features**-0.5}

    def route(self, logits: Tensor, arrays: Mapping[str, Tensor]) -> Routing:
        probs = logits[..., :-1].softmax(-1)
        largest = 1 / self.num_experts if self.tau_max is None else self.tau_max
        margins = probs - largest * (logits[..., -1:] + arrays["bias"].float()).sigmoid()
        selected = margins >= 0
        return Routing(_normalized(margins * selected), probs, selected, margins)


@dataclasses.dataclass(frozen=True)
class TaskGate(Softmax):
    """MOELoRA's router: weighs all experts by the example's task."""

    num_tasks: int = 16
    task_width: int = 64

    def init(self, in_features: int) -> dict[str, Tensor]:
        del in_features
        table = torch.randn(self.num_tasks + 1, self.task_width)
        return {"embedding": table, "gate": _uniform(self.num_experts, self.task_width)}

    def __call__(self, x: Tensor, arrays: Mapping[str, Tensor], tasks: Tensor | None) -> Routing:
        """Weighs the experts for tokens (B, ..., I) of tasks (B,)."""
        if tasks is None:
            raise ValueError("the adapter weighs its experts by task: call the model with tasks")
        vectors, gate = arrays["embedding"][tasks], arrays["gate"]
        weights = functional.linear(vectors.float(), gate.float()).softmax(-1)
        weights = weights.reshape(len(weights), *(1,) * (x.ndim - 2), -1)
        weights = weights.expand(*x.shape[:-1], -1)
        return Routing(weights, weights, torch.ones_like(weights, dtype=torch.bool))


def _uniform(rows: int, columns: int) -> Tensor:
    """Returns a matrix (rows, columns) with the start of `torch.nn.Linear`."""
    return torch.empty(rows, columns).uniform_(-1, 1) * columns**-0.5


def _top_k(logits: Tensor, top_k: int, renormalise: bool) -> Routing:
    probs = logits.softmax(-1)
    chosen, experts = logits.topk(top_k, -1)
    selected = torch.zeros_like(probs, dtype=torch.bool).scatter(-1, experts, True)
    if not renormalise:
        return Routing(probs * selected, probs, selected)
    weights = torch.zeros_like(probs).scatter(-1, experts, chosen.softmax(-1))
    return Routing(weights, probs, selected)


def _normalized(values: Tensor) -> Tensor:
    """Divides the values by their sum over the experts; zeros stay zeros if the sum is zero."""
    total = values.sum(-1, keepdim=True)
    return values / torch.where(total == 0, 1.0, total)


ROUTERS: dict[str, Callable[..., Softmax]] = {
    "none": NoRouter,
    "softmax": Softmax,
    "top_k": TopK,
    "top_p": TopP,
    "top_k_shared": TopKWithShared,
    "threshold": Threshold,
    "task": TaskGate,
}
"""Routers by the names of goat_jax's parts."""
