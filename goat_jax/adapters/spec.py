"""`AdapterSpec`: a method as a combination of parts, with the sizes that every method has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from goat_jax.adapters.parts.phases import CONSTANT_PHASE, Phases
from goat_jax.adapters.protocols import (
    LAYOUTS,
    AuxLoss,
    Combine,
    Initializer,
    KernelEdit,
    Router,
    ScaleRule,
)
from goat_jax.errors import UserError
from goat_jax.optim.transforms import PLAIN, Transform
from goat_jax.registry import find_part
from goat_jax.validation.fields import NonNegative, Rate, check_fields
from goat_jax.validation.other_names import did_you_mean
from goat_jax.validation.records import Dataclass, is_record
from goat_jax.validation.renamed import check_present

PARTS = (
    "initializer",
    "kernel_edit",
    "router",
    "combine",
    "scale",
    "aux_loss",
    "transform",
    "phases",
)


START_ONLY = frozenset({"initializer", "kernel_edit", "scale", "alpha"})
"""Spec fields used only to initialize an adapter: afterwards its arrays hold their effect."""

OF_THE_RUN = ("transform", "phases", "aux_weight", "whole_model")
"""Spec fields that apply to the whole run, and so cannot be overridden per module."""


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """A method and its sizes. It is frozen and hashable, so that it can be static under jit.

    Attributes:
        initializer: the part that makes the initial factors. Any part may be given by its name.
        kernel_edit: the part that makes the frozen kernel.
        router: the part that computes the experts' weights.
        combine: the part that computes what is added to the layer's output.
        scale: the part that computes each expert's scale.
        aux_loss: the part that adds a loss per layer.
        transform: the part that changes the optimizer.
        phases: the part that changes the adapters' constants once during training.
        total_rank: the rank r of all experts together, divided equally among them.
        num_experts: the number E of experts.
        top_k: the number K of experts per token (used by top-k routers).
        alpha: LoRA's alpha, for the scale rules that have one.
        dropout: dropout rate on the adapter's input; the frozen branch and the router see x itself.
        dropout_per_expert: whether each expert has a separate dropout mask (as in the published
            code) instead of a shared one.
        aux_weight: weight of the auxiliary loss, which is summed over layers.
        whole_model: whether everything without an adapter is trained too: norms, biases,
            embeddings, other layers.
    """

    initializer: Initializer
    kernel_edit: KernelEdit
    router: Router
    combine: Combine
    scale: ScaleRule
    aux_loss: AuxLoss
    transform: Transform = PLAIN
    phases: Phases = CONSTANT_PHASE
    total_rank: int = 8
    num_experts: int = 1
    top_k: int = 1
    alpha: float = 16.0
    dropout: Rate = 0.0
    dropout_per_expert: bool = False
    aux_weight: NonNegative = 1e-3
    whole_model: bool = False

    def __post_init__(self) -> None:
        for kind in PARTS:
            object.__setattr__(self, kind, find_part(kind, getattr(self, kind)))
        check_fields(self)
        check_sizes(self.total_rank, self.num_experts, self.top_k)
        _check_layouts(self.initializer, self.combine)
        for part in PARTS:
            check = getattr(getattr(self, part), "check", None)
            if check is not None:
                check(self)

    @property
    def rank(self) -> int:
        """The rank R of one expert."""
        return self.total_rank // self.num_experts

    def after_start(self) -> dict[str, Any]:
        """Returns the fields that still matter once an adapter is initialized, with their values.

        Specs that agree in them, and whose adapters have arrays of the same shapes, compute the
        same function of these arrays.

        >>> from goat_jax.adapters.methods import METHODS
        >>> specs = [METHODS[name].spec for name in ("lora", "pissa", "molora")]
        >>> [spec.after_start() == specs[0].after_start() for spec in specs]
        [True, True, False]
        """
        fields = (field.name for field in dataclasses.fields(self))
        return {name: getattr(self, name) for name in fields if name not in START_ONLY}

    @property
    def is_plain_sum(self) -> bool:
        """True if the adapter is a sum of s a b, which some optimizers rely on."""
        return self.combine.layout == "pairs" and self.combine.starts_plain

    @property
    def has_products(self) -> bool:
        """True if each expert is a product s a b, possibly with factors that experts share."""
        return self.is_plain_sum or self.combine.layout == "shared"

    def replace(self, **options: Any) -> AdapterSpec:
        """Returns a copy with some sizes, parts, or options of its parts replaced, by name.

        Raises:
            UserError: an unknown option, or values that do not fit together.

        >>> from goat_jax.adapters.methods import METHODS
        >>> METHODS["goat"].spec.replace(total_rank=16, rho=5.0).initializer.rho
        5.0
        """
        fields = {f.name for f in dataclasses.fields(self)}
        # Replaced all at once: a check between two changes could refuse a valid combination.
        values = {
            name: find_part(name, value) if name in PARTS else value
            for name, value in options.items()
            if name in fields
        }
        for name in sorted(options.keys() - fields):
            part = self._part_with(name, values)
            values[part] = _set_option(self._part(part, values), name, options[name])
        return dataclasses.replace(self, **values)

    def has_option(self, name: str) -> bool:
        """True if one of its parts has an option of this name.

        >>> from goat_jax.adapters.methods import METHODS
        >>> [METHODS[name].spec.has_option("eta") for name in ("goat", "goat_plus", "lora")]
        [True, True, False]
        """
        return any(name in _options(getattr(self, part)) for part in PARTS)

    def _part(self, name: str, values: Mapping[str, Any]) -> Any:
        return values[name] if name in values else getattr(self, name)

    def _part_with(self, option: str, values: Mapping[str, Any]) -> str:
        by_option = {o: part for part in PARTS for o in _options(self._part(part, values))}
        if option not in by_option:
            check_present(f"adapter.{option}")
            sizes = [f.name for f in dataclasses.fields(self) if f.name not in PARTS]
            known = [*sizes, *sorted(by_option), *PARTS]
            raise UserError(
                f"this method has no option {option!r}{did_you_mean(option, known)}: its options "
                f"are {', '.join(known)}"
            )
        return by_option[option]


def _options(part: Dataclass) -> list[str]:
    """Returns the names of a part's fields and of the fields of parts nested in it."""
    names = []
    for field in dataclasses.fields(part):
        inner = getattr(part, field.name)
        names += [field.name, *(_options(inner) if is_record(inner) else [])]
    return names


def _set_option(part: Dataclass, name: str, value: object) -> Any:
    """Returns the part with one of its `_options` replaced."""
    for field in dataclasses.fields(part):
        inner = getattr(part, field.name)
        if field.name == name:
            return dataclasses.replace(part, **{name: value})
        if is_record(inner) and name in _options(inner):
            return dataclasses.replace(part, **{field.name: _set_option(inner, name, value)})
    raise AssertionError(f"{type(part).__name__} has no option {name}")


def _check_layouts(initializer: Initializer, combine: Combine) -> None:
    produced, expected = initializer.layout, combine.layout
    if produced != expected:
        raise UserError(
            f"{type(combine).__name__} works on {expected}, {LAYOUTS[expected]}, but "
            f"{type(initializer).__name__} makes {produced}, {LAYOUTS[produced]}: choose parts of "
            "one kind"
        )


def check_sizes(total_rank: int, num_experts: int, top_k: int) -> None:
    """Raises `UserError` unless num_experts divides total_rank and top_k is at most num_experts."""
    if num_experts < 1 or total_rank < 1:
        raise UserError(f"total_rank {total_rank} and num_experts {num_experts} must be at least 1")
    if total_rank % num_experts:
        below = max(total_rank - total_rank % num_experts, num_experts)
        raise UserError(
            f"total rank {total_rank} is not divisible by {num_experts} experts: "
            f"choose {below} or another multiple of {num_experts}"
        )
    if not 1 <= top_k <= num_experts:
        raise UserError(f"top_k {top_k} is not in 1..{num_experts}, the number of experts")
