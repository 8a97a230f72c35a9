"""`AdapterSpec`: a method as a choice of parts, plus the sizes every method has."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from goat_jax.adapters.context import Context
from goat_jax.core.routers import Routing
from goat_jax.core.svd import Svd
from goat_jax.errors import UserError, nearest
from goat_jax.typing import Array, Factors, Key


class Initializer(Protocol):
    """Makes the start values of the trained arrays of one layer."""

    def segments(self, kernel: Array, spec: AdapterSpec, key: Key) -> Svd | None:
        """The experts' segments of the kernel's SVD, or None when the start does not use them."""
        ...

    def factors(
        self, kernel: Array, segments: Svd | None, scale: Array, spec: AdapterSpec, key: Key
    ) -> Factors:
        """The factors ``a`` (E, I, R), ``b`` (E, R, O) and whatever else the method trains."""
        ...


class BaseEdit(Protocol):
    """Says which frozen kernel the adapter is trained on."""

    def __call__(self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec) -> Array:
        """The frozen kernel (I, O) in the pretrained one's dtype."""
        ...


class Router(Protocol):
    """Weighs the experts for every token."""

    mergeable: bool
    """Whether the weights are the same for all tokens, so that the adapter folds into a kernel."""

    def init(self, in_features: int, spec: AdapterSpec, key: Key) -> Factors:
        """The router's own trained arrays."""
        ...

    def mean_weight(self, spec: AdapterSpec) -> float:
        """An expert's expected weight, E[w_i] of Lemma 3.3: what the residual is taken with."""
        ...

    def __call__(self, x: Array, factors: Factors, spec: AdapterSpec) -> Routing:
        """Routing of the tokens x (..., I)."""
        ...


class Combine(Protocol):
    """Turns tokens and routing into what the adapter adds to the layer's output."""

    def __call__(
        self, x: Array, kernel: Array, factors: Factors, scale: Array, routing: Routing
    ) -> Array:
        """(..., O); x (..., I), or (E, ..., I) with a copy per expert, has dropout applied."""
        ...

    def merge(self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec) -> Array:
        """The kernel (I, O) that computes frozen kernel and adapter at once."""
        ...


class ScaleRule(Protocol):
    """The number that multiplies every expert."""

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        """(E,) float32."""
        ...


class AuxLoss(Protocol):
    """An additional loss of one layer, before its weight."""

    def __call__(self, routing: Routing, factors: Factors, ctx: Context) -> Array:
        """A scalar in float32."""
        ...


PARTS = ("initializer", "base_edit", "router", "combine", "scale", "aux_loss")


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """A method and its sizes. Frozen and hashable: it is static under jit.

    Attributes:
        initializer, base_edit, router, combine, scale, aux_loss: the parts.
        total_rank: r, shared out among the experts.
        num_experts: E.
        top_k: K, experts per token (used by top-k routers).
        alpha: LoRA's alpha, for the scale rules that have one.
        dropout: rate on the adapter's input; the frozen branch and the router see x itself.
        dropout_per_expert: draw one mask per expert (as the published code does), not a shared one.
        aux_weight: weight of the auxiliary loss, summed over layers.
    """

    initializer: Initializer
    base_edit: BaseEdit
    router: Router
    combine: Combine
    scale: ScaleRule
    aux_loss: AuxLoss
    total_rank: int = 8
    num_experts: int = 1
    top_k: int = 1
    alpha: float = 16.0
    dropout: float = 0.0
    dropout_per_expert: bool = False
    aux_weight: float = 1e-3

    def __post_init__(self) -> None:
        check_sizes(self.total_rank, self.num_experts, self.top_k)
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"dropout {self.dropout} is not in [0, 1)")

    @property
    def rank(self) -> int:
        """Rank R of one expert."""
        return self.total_rank // self.num_experts

    def replace(self, **options: Any) -> AdapterSpec:
        """A copy with other sizes or with other options of its parts, found by their name.

        >>> from goat_jax.adapters.methods import METHODS
        >>> METHODS["goat"].spec.replace(total_rank=16, rho=5.0).initializer.rho
        5.0
        """
        own = {f.name for f in dataclasses.fields(self)}
        changed = dataclasses.replace(self, **{n: v for n, v in options.items() if n in own})
        for name in sorted(options.keys() - own):
            part = changed._part_with(name)
            value = _set_option(getattr(changed, part), name, options[name])
            changed = dataclasses.replace(changed, **{part: value})
        return changed

    def _part_with(self, option: str) -> str:
        by_option = self.part_options()
        if option not in by_option:
            known = sorted([*by_option, *(f.name for f in dataclasses.fields(self))])
            raise UserError(
                f"this method has no option {option!r}{nearest(option, known)}; "
                f"its parts have: {', '.join(sorted(by_option)) or 'none'}"
            )
        return by_option[option]

    def part_options(self) -> dict[str, str]:
        """Name of every option of a part, or of a part inside it -> the part that has it."""
        return {option: part for part in PARTS for option in _options(getattr(self, part))}


def _options(part: Any) -> list[str]:
    """Names of a part's fields and of those of parts it holds, as GOAT+ holds the first scale."""
    names = []
    for field in dataclasses.fields(part):
        inner = getattr(part, field.name)
        names += [field.name, *(_options(inner) if dataclasses.is_dataclass(inner) else [])]
    return names


def _set_option(part: Any, name: str, value: Any) -> Any:
    """The part with one of its `_options` changed."""
    for field in dataclasses.fields(part):
        inner = getattr(part, field.name)
        if field.name == name:
            return dataclasses.replace(part, **{name: value})
        if dataclasses.is_dataclass(inner) and name in _options(inner):
            return dataclasses.replace(part, **{field.name: _set_option(inner, name, value)})
    raise AssertionError(f"{type(part).__name__} has no option {name}")


def check_sizes(total_rank: int, num_experts: int, top_k: int) -> None:
    """Raises `UserError` unless the rank divides among the experts and top_k of them exist."""
    if num_experts < 1 or total_rank < 1:
        raise UserError(f"total rank {total_rank} and experts {num_experts} must be at least 1")
    if total_rank % num_experts:
        below = max(total_rank - total_rank % num_experts, num_experts)
        raise UserError(
            f"total rank {total_rank} is not divisible by {num_experts} experts: "
            f"choose {below} or another multiple of {num_experts}"
        )
    if not 1 <= top_k <= num_experts:
        raise UserError(f"top_k {top_k} is not in 1..{num_experts}, the number of experts")
