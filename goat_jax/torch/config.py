"""Config of a routed adapter, as PEFT stores it in adapter_config.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from goat_jax.torch.aux_losses import AUX_LOSSES
from goat_jax.torch.modeling_goat import ROUTERS

SEGMENTS = ("block_heads", "block_tails", "principal", "minor")
"""Assignments of singular triplets to experts, the keys of `goat_jax.torch.start.SEGMENTS`."""

KNOWN = {
    "router": ROUTERS,
    "aux_loss": AUX_LOSSES,
    "init": ("zero", "svd"),
    "segments": SEGMENTS,
}
"""Field -> its values."""

SIZES = ("r", "num_experts", "top_k")
"""Fields that are counts."""

TYPE = "GOAT"
"""Value of peft_type."""


@dataclass
class GoatConfig(PeftConfig):
    """Config of a mixture of LoRA experts: ``y = W x + sum_i w_i(x) s_i B_i A_i x - B0 A0 x``.

    Attributes:
        r: the rank of one expert.
        num_experts: the number of experts E.
        start_rank: the rank of the frozen pair A0, B0, which is taken off the pretrained weight; 0
            for adapters that start at zero. With init "svd" it is num_experts * r.
        shared_a: whether one A serves all experts, as in HydraLoRA.
        top_k: the number of experts of a token, for routers that choose by number.
        router: the rule that weighs the experts, a key of `ROUTERS`.
        router_options: the rule's options.
        scaling: the scale of every expert, one number or a list of E, or "theory" for GOAT's
            sqrt(3 I / r) of a layer with I inputs; a loaded adapter brings its own.
        init: the start of new adapters: "zero", as in LoRA, or "svd" for GOAT's, whose mean output
            A0, B0 take off the pretrained weight. A loaded adapter brings its own.
        segments: the singular triplets that the experts start from, a key of `SEGMENTS`.
        rho: the damping of the experts' first output with init "svd".
        aux_loss: the balance loss, a key of `AUX_LOSSES`.
        aux_loss_options: the loss's options.
        aux_weight: the weight of the balance loss.
        dropout: the probability of dropping an input of the experts; routers see all inputs.
        patterns: module -> the fields above that differ there.
        other_base: whether the base model may be another one than the adapter was trained on.
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
    scaling: float | list[float] | str = 1.0
    init: str = "zero"
    segments: str = "block_heads"
    rho: float = 10.0
    aux_loss: str = "balance"
    aux_loss_options: dict[str, Any] = field(default_factory=dict)
    aux_weight: float = 1e-3
    dropout: float = 0.0
    patterns: dict[str, dict[str, Any]] = field(default_factory=dict)
    other_base: bool = False
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
        for name, known in KNOWN.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown: one of {', '.join(known)}"
                )
        for name in SIZES:
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}: give a number from 1 on")
        if isinstance(self.scaling, str) and self.scaling != "theory":
            raise ValueError(f"scaling {self.scaling!r} is unknown: give a number, or 'theory'")
        if self.init == "svd":
            if self.shared_a:
                raise ValueError("init 'svd' gives every expert its own A: set shared_a=False")
            self.start_rank = self.num_experts * self.r
        self.loaded = False

    @classmethod
    def from_pretrained(cls, *args: Any, other_base: bool = False, **kwargs: Any) -> GoatConfig:
        """Reads the config of an adapter whose start is in its file.

        Args:
            args: PEFT's own arguments, of which the first is the folder.
            other_base: whether the base model may be another one than the adapter was trained on.
            kwargs: PEFT's own arguments.
        """
        config: Any = super().from_pretrained(*args, **kwargs)
        config.loaded, config.other_base = True, config.other_base or other_base
        return config

    def of_module(self, name: str) -> GoatConfig:
        """Returns the config of one module, by its full name."""
        config = dataclasses.replace(self, **self.patterns.get(name, {}))
        config.loaded = self.loaded
        return config
