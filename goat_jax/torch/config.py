"""Config of a routed adapter, as PEFT stores it in adapter_config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from goat_jax.torch.aux_losses import AUX_LOSSES
from goat_jax.torch.modeling_goat import ROUTERS

TYPE = "GOAT"
"""Value of peft_type."""


@dataclass
class GoatConfig(PeftConfig):
    """Config of a mixture of LoRA experts: ``y = W x + sum_i w_i(x) s_i B_i A_i x - B0 A0 x``.

    Attributes:
        r: the rank of one expert.
        num_experts: the number of experts E.
        start_rank: the rank of the frozen pair A0, B0, which is taken off the pretrained weight; 0
            for adapters that start at zero.
        shared_a: whether one A serves all experts, as in HydraLoRA.
        top_k: the number of experts of a token, for routers that choose by number.
        router: the rule that weighs the experts, a key of `ROUTERS`.
        router_options: the rule's options.
        scaling: the scale of every expert, one number or a list of E; a loaded adapter brings its
            own.
        aux_loss: the balance loss, a key of `AUX_LOSSES`.
        aux_loss_options: the loss's options.
        aux_weight: the weight of the balance loss.
        dropout: the probability of dropping an input of the experts; routers see all inputs.
        patterns: module -> the fields above that differ there.
        recipe: the settings of the goat_jax run that made the adapter, for importing it there
            again; the tuner does not read them.
        target_modules: the modules to adapt, names or a pattern.
        exclude_modules: the modules to leave out, names or a pattern.
        modules_to_save: the modules that are trained in full.
        trainable_token_indices: the tokens whose vectors are trained, by module or as a list.
        layers_to_transform: the numbers of the layers to adapt.
        layers_pattern: the name of the list of layers.
    """

    r: int = 4
    num_experts: int = 8
    start_rank: int = 0
    shared_a: bool = False
    top_k: int = 2
    router: str = "top_k"
    router_options: dict[str, Any] = field(default_factory=dict)
    scaling: float | list[float] = 1.0
    aux_loss: str = "balance"
    aux_loss_options: dict[str, Any] = field(default_factory=dict)
    aux_weight: float = 1e-3
    dropout: float = 0.0
    patterns: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    trainable_token_indices: dict[str, list[int]] | list[int] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type: Any = TYPE
        for name, known in (("router", ROUTERS), ("aux_loss", AUX_LOSSES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown: one of {', '.join(known)}"
                )

    def of_module(self, name: str) -> GoatConfig:
        """Returns the config of one module, by its full name."""
        return dataclasses.replace(self, **self.patterns.get(name, {}))
