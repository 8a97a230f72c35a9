"""Linear layers with routed experts, and what gives them to a model of transformers.

``goat-jax export --to transformers`` copies this file into the folder it writes and adds the
model's classes at its end; `goat_jax.torch` makes the layers of PEFT's adapters with it. It needs
torch alone. A layer computes ``y = W x + sum_i w_i(x) B_i A_i x`` with the weights w of a router.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Routing(NamedTuple):
    """Weights of the experts for every token, and the probabilities behind them, in float32.

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


class Softmax(nn.Module):
    """Router that uses all experts, with the softmax of their logits; others select among them.

    Args:
        in_features: the number of inputs I.
        num_experts: the number of experts E.
        top_k: the number of experts of a token, for routers that choose by number.
    """

    shared: ClassVar[int] = 0
    """Number of the first experts that all tokens have, and that no logits stand for."""

    def __init__(self, in_features: int, num_experts: int, top_k: int):
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.linear = nn.Linear(in_features, num_experts - self.shared, bias=False)

    def forward(self, x: Tensor, tasks: Tensor | None) -> Routing:
        """Routes tokens (B, ..., I) of examples with these tasks (B,)."""
        del tasks
        return self.route(self.linear(x).float())

    def route(self, logits: Tensor) -> Routing:
        """Routes tokens by their logits (..., E)."""
        probs = logits.softmax(-1)
        return Routing(probs, probs, torch.ones_like(probs, dtype=torch.bool))


class NoRouter(nn.Module):
    """Gives every expert the weight 1."""

    shared: ClassVar[int] = 0

    def __init__(self, in_features: int, num_experts: int, top_k: int):
        del in_features, top_k
        super().__init__()
        self.num_experts = num_experts

    def forward(self, x: Tensor, tasks: Tensor | None) -> Routing:
        del tasks
        weights = torch.ones(*x.shape[:-1], self.num_experts, device=x.device)
        return Routing(weights, weights / self.num_experts, weights > 0)


class TopK(Softmax):
    """Keeps the `top_k` most probable experts; their weights sum to 1 if renormalised."""

    def __init__(self, *sizes: int, renormalise: bool = True):
        super().__init__(*sizes)
        self.renormalise = renormalise
        if not 0 < self.top_k <= self.num_experts - self.shared:
            experts = self.num_experts - self.shared
            raise ValueError(f"top_k is {self.top_k}, and there are {experts} experts to choose")

    def route(self, logits: Tensor) -> Routing:
        probs = logits.softmax(-1)
        chosen, experts = logits.topk(self.top_k, -1)
        selected = torch.zeros_like(probs, dtype=torch.bool).scatter(-1, experts, True)
        if not self.renormalise:
            return Routing(probs * selected, probs, selected)
        weights = torch.zeros_like(probs).scatter(-1, experts, chosen.softmax(-1))
        return Routing(weights, probs, selected)


class TopKWithShared(TopK):
    """Uses the first expert for every token, and the `top_k` best of the others."""

    shared: ClassVar[int] = 1

    def __init__(self, *sizes: int):
        super().__init__(*sizes)

    def route(self, logits: Tensor) -> Routing:
        routed = super().route(logits)
        one = torch.ones_like(logits[..., :1])
        weights = torch.cat([one, routed.weights], -1)
        probs = torch.cat([0 * one, routed.probs], -1)
        return Routing(weights, probs, torch.cat([one > 0, routed.selected], -1))


class TopP(Softmax):
    """Keeps the fewest experts whose probabilities reach p."""

    def __init__(self, *sizes: int, p: float = 0.25):
        super().__init__(*sizes)
        self.p = p

    def route(self, logits: Tensor) -> Routing:
        probs = logits.softmax(-1)
        ordered, order = probs.sort(dim=-1, descending=True, stable=True)
        kept = ordered.cumsum(-1) - ordered < self.p
        selected = torch.zeros_like(kept).scatter(-1, order, kept)
        return Routing(_normalized(probs * selected), probs, selected)


class Threshold(Softmax):
    """AdaMoLE's router: keeps the experts above a threshold that a token determines."""

    def __init__(
        self, in_features: int, num_experts: int, top_k: int, tau_max: float | None = None
    ):
        super().__init__(in_features, num_experts + 1, top_k)
        self.largest = 1 / num_experts if tau_max is None else tau_max
        self.bias = nn.Parameter(torch.empty(1).uniform_(-1, 1) * in_features**-0.5)

    def route(self, logits: Tensor) -> Routing:
        probs = logits[..., :-1].softmax(-1)
        margins = probs - self.largest * (logits[..., -1:] + self.bias.float()).sigmoid()
        selected = margins >= 0
        return Routing(_normalized(margins * selected), probs, selected, margins)


class TaskGate(nn.Module):
    """MOELoRA's router: weighs all experts by the example's task."""

    shared: ClassVar[int] = 0

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        top_k: int,
        num_tasks: int = 16,
        task_width: int = 64,
    ):
        del in_features, top_k
        super().__init__()
        self.embedding = nn.Embedding(num_tasks + 1, task_width)
        self.gate = nn.Linear(task_width, num_experts, bias=False)

    def forward(self, x: Tensor, tasks: Tensor | None) -> Routing:
        if tasks is None:
            raise ValueError("the adapter weighs its experts by task: call the model with tasks")
        weights = self.gate(self.embedding(tasks)).float().softmax(-1)
        weights = weights.reshape(len(weights), *(1,) * (x.ndim - 2), -1)
        weights = weights.expand(*x.shape[:-1], -1)
        return Routing(weights, weights, torch.ones_like(weights, dtype=torch.bool))


def _normalized(values: Tensor) -> Tensor:
    """Divides the values by their sum over the experts; zeros stay zeros if the sum is zero."""
    total = values.sum(-1, keepdim=True)
    return values / torch.where(total == 0, 1.0, total)


ROUTERS: dict[str, Callable[..., nn.Module]] = {
    "none": NoRouter,
    "softmax": Softmax,
    "top_k": TopK,
    "top_p": TopP,
    "top_k_shared": TopKWithShared,
    "threshold": Threshold,
    "task": TaskGate,
}
"""Routers by the names of goat_jax's parts."""


class Mixture(nn.Module):
    """Experts of one linear layer and their router.

    All experts are two products, with the router's weights between them: nothing is done expert by
    expert. The products are layers of their own, so that a server can replace them by its own.

    Args:
        in_features: the number of inputs I.
        out_features: the number of outputs O.
        r: the rank of one expert.
        num_experts: the number of experts E.
        router: the rule that weighs the experts, a key of `ROUTERS`.
        top_k: the number of experts of a token, for routers that choose by number.
        router_options: the rule's options.
        shared_a: whether one A serves all experts, as in HydraLoRA.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int,
        num_experts: int,
        router: str,
        top_k: int,
        router_options: dict[str, Any],
        shared_a: bool,
    ):
        super().__init__()
        self.expert_a = nn.Linear(in_features, r if shared_a else num_experts * r, bias=False)
        self.expert_b = nn.Linear(num_experts * r, out_features, bias=False)
        if router not in ROUTERS:
            raise ValueError(f"router {router!r} is unknown: one of {', '.join(ROUTERS)}")
        try:
            self.router = ROUTERS[router](in_features, num_experts, top_k, **router_options)
        except TypeError:
            raise ValueError(f"router {router!r} has no such options: {router_options}") from None
        self.rank = r

    def mix(self, x: Tensor, weights: Tensor) -> Tensor:
        """Returns ``sum_i w_i B_i A_i x`` (..., O) for x (..., I) and weights (..., E)."""
        hidden = self.expert_a(x).unflatten(-1, (-1, self.rank))
        hidden = hidden * weights.to(hidden.dtype)[..., None]
        return self.expert_b(hidden.flatten(-2))


class RoutedLinear(Mixture):
    """Linear layer with experts.

    Attributes:
        base_layer: the layer without its experts.
        tasks: the tasks of the current batch (B,), or None.
    """

    tasks: Tensor | None = None

    def __init__(self, base_layer: nn.Linear, **settings: Any):
        super().__init__(base_layer.in_features, base_layer.out_features, **settings)
        self.base_layer = base_layer

    @property
    def weight(self) -> Tensor:
        """The weight without the experts."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.mix(x, self.router(x, self.tasks).weights)


class WithExperts:
    """Gives a model of transformers the experts that its config describes.

    ``config.goat`` is a list of groups of layers: their names, "modules", and the arguments of
    `Mixture` that they share. A model whose experts go by tasks takes ``tasks`` (B,).

    Attributes:
        tasks: the tasks (B,) of batches that have none, such as those of ``generate``; or None.
    """

    tasks: Tensor | None = None

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)  # pyright: ignore[reportCallIssue]
        model: Any = self
        prefix = model.base_model_prefix
        for group in config.goat:
            settings = {key: value for key, value in group.items() if key != "modules"}
            for name in group["modules"]:
                if not hasattr(model, prefix):  # is the model without its head
                    name = name.removeprefix(f"{prefix}.")
                if model.base_model is model and name.split(".")[0] not in model._modules:
                    continue  # the layer is one of the head
                parent, _, leaf = name.rpartition(".")
                layer = RoutedLinear(model.get_submodule(name), **settings)
                setattr(model.get_submodule(parent), leaf, layer)
        model.register_forward_pre_hook(_pass_tasks, with_kwargs=True)
        model.post_init()

    @classmethod
    def from_pretrained(
        cls, folder: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Loads the model as transformers does, but refuses missing tensors and damaged experts."""
        parent: Any = super()
        model, info = parent.from_pretrained(folder, *args, output_loading_info=True, **kwargs)
        for name in sorted(info["missing_keys"]):
            raise ValueError(f"{folder} has no {name}: copy it again")
        for name, parameter in model.named_parameters():
            own = ".expert_" in name or ".router." in name
            if own and not parameter.is_meta and not parameter.isfinite().all():
                raise ValueError(f"{folder}: {name} is not finite: copy it again")
        return (model, info) if output_loading_info else model


def _pass_tasks(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Gives the batch's tasks to the layers that need them, and takes them out."""
    tasks = kwargs.pop("tasks", model.tasks)
    for layer in model.modules():
        if isinstance(layer, RoutedLinear) and isinstance(layer.router, TaskGate):
            layer.tasks = tasks
    return args, kwargs
