"""`AdapterSpec`: a method as a choice of parts, plus the sizes every method has.

A part is a frozen dataclass. It may have a method ``check(spec)`` that raises `UserError` for a
spec it does not fit; it runs when the spec is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

from goat_jax.adapters.context import Context
from goat_jax.adapters.parts.phases import STEADY, Course
from goat_jax.core.routers import Routing
from goat_jax.core.svd import Svd
from goat_jax.errors import UserError, nearest
from goat_jax.optim.transforms import PLAIN, Transform
from goat_jax.registry import find_part
from goat_jax.typing import Array, Factors, Key
from goat_jax.validation.fields import NonNegative, Rate, check_fields


class Given(NamedTuple):
    """What the factors of a layer can start from.

    Attributes:
        kernel: the pretrained one, (I, O).
        segments: the experts' segments of its SVD, if the initializer asked for them.
        scale: (E,).
        gradient: of the loss with respect to the kernel, (I, O), if it is known.
    """

    kernel: Array
    segments: Svd | None
    scale: Array
    gradient: Array | None


class Initializer(Protocol):
    """Makes the start values of the factors of one layer.

    Attributes:
        layout: what the factors look like, a key of `LAYOUTS`.
        gradient_batches: training batches whose mean gradient it starts from, 0 for none.
    """

    layout: ClassVar[str]
    gradient_batches: int = 0

    def segments(self, kernel: Array, spec: AdapterSpec, key: Key) -> Svd | None:
        """The experts' segments of the kernel's SVD, or None when the start does not use them."""
        del kernel, spec, key
        return None

    def factors(self, given: Given, spec: AdapterSpec, key: Key) -> Factors:
        """The factors.

        Raises:
            UserError: the start needs a gradient that is not there.
        """
        ...


class BaseEdit(Protocol):
    """Says which frozen kernel the adapter is trained on.

    Attributes:
        looks_at_kernel: whether what is taken off depends on the numbers of the pretrained kernel,
            not on the factors alone.
    """

    looks_at_kernel: ClassVar[bool]

    def __call__(self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec) -> Array:
        """The frozen kernel (I, O) in the pretrained one's dtype.

        A method that replaces ``x @ kernel`` may give back an empty one, (0, O).
        """
        ...

    def removed(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec
    ) -> tuple[Array, Array]:
        """What was taken off the pretrained kernel, as factors (I, Q) and (Q, O).

        Args: as when it was taken off; the factors are those of the start.
        """
        ...


class Router(Protocol):
    """Weighs the experts for every token.

    Attributes:
        mergeable: whether all tokens get the same weights, so that the adapter folds into a kernel.
        varies: if not, how the weights vary: "token by token", "task by task".
    """

    mergeable: ClassVar[bool]
    varies: ClassVar[str]

    def init(self, in_features: int, spec: AdapterSpec, key: Key) -> Factors:
        """The router's own trained arrays."""
        ...

    def mean_weight(self, spec: AdapterSpec) -> float | tuple[float, ...]:
        """An expert's expected weight, E[w_i] of Lemma 3.3: what the residual is taken with.

        One number for all experts, or one each.
        """
        ...

    def matrix(self, factors: Factors) -> Array | None:
        """What x is multiplied with for its logits, (I, N), None if it does not look at x."""
        del factors
        return None

    def __call__(
        self,
        x: Array,
        factors: Factors,
        spec: AdapterSpec,
        ctx: Context,
        logits: Array | None = None,
    ) -> Routing:
        """Routing of the tokens x (..., I).

        Args:
            logits: x times `matrix`, (..., N) in float32, if it is known already.
        """
        ...


class Combine(Protocol):
    """Turns tokens and routing into what the adapter adds to the layer's output.

    ``arrays`` are all arrays of the adapter by name: factors, extras of its own, router, constants.

    Attributes:
        layout: the factors it works on, a key of `LAYOUTS`.
        replaces: whether it computes the layer's output in place of ``x @ kernel``, not on top.
        starts_plain: whether it starts as ``sum_i w_i s_i a_i b_i``, which base edits may subtract.
    """

    layout: ClassVar[str]
    replaces: ClassVar[bool]
    starts_plain: ClassVar[bool]

    def extras(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec, key: Key
    ) -> Extras:
        """Arrays of its own besides the factors; the kernel is the frozen one."""
        del kernel, factors, scale, spec, key
        return Extras({}, {})

    def dropout_copies(self, spec: AdapterSpec) -> int | None:
        """How many independently dropped-out copies of x it takes; None is one, without an axis."""
        del spec
        return None

    def inner(self, arrays: Factors) -> Array | None:
        """The narrow matrix (I, R) that x meets first, None if there is none."""
        del arrays
        return None

    def __call__(
        self,
        x: Array,
        kernel: Array,
        arrays: Factors,
        scale: Array,
        routing: Routing,
        hidden: Array | None = None,
    ) -> Array:
        """(..., O); x (..., I), or (copies, ..., I) while there is dropout.

        Args:
            hidden: x times `inner`, (..., R) in float32, if it is known already.
        """
        ...

    def merge(self, kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec) -> Array:
        """The kernel (I, O) that computes frozen kernel and adapter at once."""
        ...

    def low_rank(self, arrays: Factors, scale: Array) -> tuple[Array, Array]:
        """Factors (I, Q) and (Q, O) of what is added to the kernel if all experts have weight 1.

        Raises:
            UserError: what it does to the kernel has no low rank.
        """
        ...


class ScaleRule(Protocol):
    """The number that multiplies every expert."""

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        """(E,) float32."""
        ...


class AuxLoss(Protocol):
    """An additional loss of one layer, before its weight."""

    def __call__(self, routing: Routing, arrays: Factors, ctx: Context) -> Array:
        """A scalar in float32."""
        ...


class Extras(NamedTuple):
    """Arrays that a combine has besides the factors.

    Attributes:
        trained: by name.
        constants: by name; frozen, but a method may exchange them between steps.
    """

    trained: Factors
    constants: Factors


LAYOUTS = {
    "pairs": "a (E, I, R), b (E, R, O)",
    "shared": "a (1, I, R), b (E, R, O)",
    "network": "a (1, O, R), b (1, R, O), or over I",
    "kernels": "kernels (E, I, O)",
}
"""What factors there are: an initializer makes one kind, a combine works on one."""

PARTS = (
    "initializer",
    "base_edit",
    "router",
    "combine",
    "scale",
    "aux_loss",
    "transform",
    "course",
)


START_ONLY = frozenset({"initializer", "base_edit", "scale", "alpha"})
"""Fields of a spec that only the start of an adapter reads: its arrays hold what comes of them."""

OF_THE_RUN = ("transform", "course", "aux_weight", "whole_model")
"""Fields of a spec that are not of a module's adapter but of the training of all of them."""


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """A method and its sizes. Frozen and hashable: it is static under jit.

    Attributes:
        initializer: the part that makes the factors' start. Every part may be given by its name.
        base_edit: the part that makes the frozen kernel.
        router: the part that weighs the experts.
        combine: the part that computes what is added to the layer's output.
        scale: the part that gives every expert its scale.
        aux_loss: the part that adds a loss per layer.
        transform: the part that changes the optimizer.
        course: the part that changes the adapters in mid-training.
        total_rank: r, shared out among the experts.
        num_experts: E, how many there are.
        top_k: K, experts per token (used by top-k routers).
        alpha: LoRA's alpha, for the scale rules that have one.
        dropout: rate on the adapter's input; the frozen branch and the router see x itself.
        dropout_per_expert: draw one mask per expert (as the published code does), not a shared one.
        aux_weight: weight of the auxiliary loss, summed over layers.
        whole_model: train what has no adapter, too: norms, biases, embeddings, other layers.
    """

    initializer: Initializer
    base_edit: BaseEdit
    router: Router
    combine: Combine
    scale: ScaleRule
    aux_loss: AuxLoss
    transform: Transform = PLAIN
    course: Course = STEADY
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
        """Rank R of one expert."""
        return self.total_rank // self.num_experts

    def after_start(self) -> dict[str, Any]:
        """The fields that a started adapter still reads. Specs that agree in them, and whose
        adapters have arrays of the same shapes, compute the same function of these arrays.

        >>> from goat_jax.adapters.methods import METHODS
        >>> specs = [METHODS[name].spec for name in ("lora", "pissa", "molora")]
        >>> [spec.after_start() == specs[0].after_start() for spec in specs]
        [True, True, False]
        """
        fields = (field.name for field in dataclasses.fields(self))
        return {name: getattr(self, name) for name in fields if name not in START_ONLY}

    @property
    def is_plain_sum(self) -> bool:
        """Whether the adapter is a sum of s a b, whose algebra optimizers may use."""
        return self.combine.layout == "pairs" and self.combine.starts_plain

    def replace(self, **options: Any) -> AdapterSpec:
        """A copy with other sizes or with other options of its parts, found by their name.

        >>> from goat_jax.adapters.methods import METHODS
        >>> METHODS["goat"].spec.replace(total_rank=16, rho=5.0).initializer.rho
        5.0
        """
        own = {f.name for f in dataclasses.fields(self)}
        # All at once: a check must not see half of what was asked for.
        values = {
            name: find_part(name, value) if name in PARTS else value
            for name, value in options.items()
            if name in own
        }
        for name in sorted(options.keys() - own):
            part = self._part_with(name, values)
            values[part] = _set_option(self._part(part, values), name, options[name])
        return dataclasses.replace(self, **values)

    def has_option(self, name: str) -> bool:
        """Whether one of its parts has an option of this name.

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
            sizes = [f.name for f in dataclasses.fields(self) if f.name not in PARTS]
            known = [*sizes, *sorted(by_option), *PARTS]
            raise UserError(
                f"this method has no option {option!r}{nearest(option, known)}; it has: "
                f"{', '.join(known)}"
            )
        return by_option[option]


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


def _check_layouts(initializer: Initializer, combine: Combine) -> None:
    made, wanted = initializer.layout, combine.layout
    if made != wanted:
        raise UserError(
            f"{type(combine).__name__} works on {wanted}, {LAYOUTS[wanted]}, but "
            f"{type(initializer).__name__} makes {made}, {LAYOUTS[made]}: choose parts of one kind"
        )


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
