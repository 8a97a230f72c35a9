"""`AdapterSpec`: a method as a combination of parts, with the sizes that every method has.

A part is a frozen dataclass. Its optional method ``check(spec)`` runs when a spec is made, and
raises `UserError` if the part does not fit the spec.
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
    """Inputs from which an initializer makes the factors of one layer.

    Attributes:
        kernel: the pretrained kernel, (I, O).
        segments: the experts' segments of the kernel's SVD; None if the initializer uses none.
        scale: the experts' scales (E,).
        gradient: the gradient of the loss with respect to the kernel, (I, O); None if not given.
    """

    kernel: Array
    segments: Svd | None
    scale: Array
    gradient: Array | None


class Initializer(Protocol):
    """Makes the initial factors of one layer.

    Attributes:
        layout: the shapes of the factors, a key of `LAYOUTS`.
        gradient_batches: the number of training batches whose mean gradient it needs; 0 for none.
    """

    layout: ClassVar[str]
    gradient_batches: int = 0

    def decompose(self, kernel: Array, spec: AdapterSpec, key: Key) -> Svd | None:
        """Returns the experts' segments of the kernel's SVD, or None if it does not use the SVD."""
        del kernel, spec, key
        return None

    def factors(self, given: Given, spec: AdapterSpec, key: Key) -> Factors:
        """Returns the initial factors by name, float32.

        Raises:
            UserError: it needs a gradient and none was given.
        """
        ...


class BaseEdit(Protocol):
    """Makes the frozen kernel from the pretrained one.

    Attributes:
        looks_at_kernel: whether the subtracted part depends on the values of the pretrained kernel,
            not on the factors alone.
    """

    looks_at_kernel: ClassVar[bool]

    def __call__(self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec) -> Array:
        """Returns the frozen kernel (I, O) in the dtype of the pretrained one.

        A method that replaces ``x @ kernel`` may return an empty kernel, (0, O).
        """
        ...

    def removed(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec
    ) -> tuple[Array, Array]:
        """Returns the part subtracted from the pretrained kernel, as factors (I, Q) and (Q, O).

        The arguments are those of the original call, with the initial factors.
        """
        ...


class Router(Protocol):
    """Computes the experts' weights for every token.

    Attributes:
        mergeable: whether all tokens get the same weights, so that the adapter can be merged into
            the kernel.
        varies: the way the weights vary, for error messages: "token by token", "task by task".
    """

    mergeable: ClassVar[bool]
    varies: ClassVar[str]

    def init(self, in_features: int, spec: AdapterSpec, key: Key) -> Factors:
        """Returns the router's initial trained arrays by name."""
        ...

    def mean_weight(self, spec: AdapterSpec) -> float | tuple[float, ...]:
        """Returns the experts' expected weight E[w_i] (Lemma 3.3), used for the residual kernel.

        One number for all experts, or one for each.
        """
        ...

    def matrix(self, factors: Factors) -> Array | None:
        """Returns the matrix (I, N) that maps x to logits, or None if x has no influence."""
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
        """Routes the tokens x (..., I).

        Args:
            x: tokens (..., I).
            factors: all trained arrays of the adapter by name.
            spec: the method and its sizes.
            ctx: inputs besides x, such as the tasks.
            logits: x times `matrix`, (..., N) in float32; None computes it here.
        """
        ...


class Combine(Protocol):
    """Computes what the adapter adds to the layer's output from tokens and routing.

    ``arrays`` are all arrays of the adapter by name: factors, the combine's extras, router,
    constants.

    Attributes:
        layout: the factors it works on, a key of `LAYOUTS`.
        replaces: whether it computes the layer's complete output instead of an addition to
            ``x @ kernel``.
        starts_plain: whether it initially equals ``sum_i w_i s_i a_i b_i``, which base edits may
            subtract.
    """

    layout: ClassVar[str]
    replaces: ClassVar[bool]
    starts_plain: ClassVar[bool]

    def extras(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec, key: Key
    ) -> Extras:
        """Returns its additional arrays besides the factors; `kernel` is the frozen one."""
        del kernel, factors, scale, spec, key
        return Extras({}, {})

    def dropout_copies(self, spec: AdapterSpec) -> int | None:
        """Returns the number of independently dropped-out copies of x, or None for x itself."""
        del spec
        return None

    def inner(self, arrays: Factors) -> Array | None:
        """Returns the narrow matrix (I, R) that multiplies x first, or None if there is none."""
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
        """Returns what is added to ``x @ kernel``, or replaces it: (..., O).

        Args:
            x: tokens (..., I), or (copies, ..., I) if dropout is active and `dropout_copies` is
                not None.
            kernel: the frozen kernel (I, O).
            arrays: all arrays of the adapter by name.
            scale: the experts' scales (E,).
            routing: the experts' weights for every token.
            hidden: x times `inner`, (..., R) in float32; None computes it here.
        """
        ...

    def merge(self, kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec) -> Array:
        """Returns the kernel (I, O) equivalent to frozen kernel plus adapter."""
        ...

    def low_rank(self, arrays: Factors, scale: Array) -> tuple[Array, Array]:
        """Returns factors (I, Q) and (Q, O) of the kernel's change if all experts have weight 1.

        Raises:
            UserError: the change of the kernel is not of low rank.
        """
        ...


class ScaleRule(Protocol):
    """Computes the scale that multiplies each expert."""

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        """Returns the experts' scales (E,), float32."""
        ...


class AuxLoss(Protocol):
    """Computes an additional loss of one layer, before its weight."""

    def __call__(self, routing: Routing, arrays: Factors, ctx: Context) -> Array:
        """Returns the loss, a float32 scalar."""
        ...


class Extras(NamedTuple):
    """Arrays of a combine besides the factors.

    Attributes:
        trained: the trained arrays by name.
        constants: the frozen arrays by name; a method may replace them between two steps.
    """

    trained: Factors
    constants: Factors


LAYOUTS = {
    "pairs": "a (E, I, R), b (E, R, O)",
    "shared": "a (1, I, R), b (E, R, O)",
    "network": "a (1, O, R), b (1, R, O), or over I",
    "kernels": "kernels (E, I, O)",
}
"""Layouts of the factors and their shapes: an initializer makes one, a combine works on one."""

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
"""Spec fields used only to initialize an adapter: afterwards its arrays hold their effect."""

OF_THE_RUN = ("transform", "course", "aux_weight", "whole_model")
"""Spec fields that apply to the whole run, and so cannot be overridden per module."""


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """A method and its sizes. It is frozen and hashable, so that it can be static under jit.

    Attributes:
        initializer: the part that makes the initial factors. Any part may be given by its name.
        base_edit: the part that makes the frozen kernel.
        router: the part that computes the experts' weights.
        combine: the part that computes what is added to the layer's output.
        scale: the part that computes each expert's scale.
        aux_loss: the part that adds a loss per layer.
        transform: the part that changes the optimizer.
        course: the part that changes the adapters' constants once during training.
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

    def replace(self, **options: Any) -> AdapterSpec:
        """Returns a copy with some sizes, parts, or options of its parts replaced, by name.

        Raises:
            UserError: an unknown option, or values that do not fit together.

        >>> from goat_jax.adapters.methods import METHODS
        >>> METHODS["goat"].spec.replace(total_rank=16, rho=5.0).initializer.rho
        5.0
        """
        own = {f.name for f in dataclasses.fields(self)}
        # Replaced all at once: a check between two changes could refuse a valid combination.
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
            sizes = [f.name for f in dataclasses.fields(self) if f.name not in PARTS]
            known = [*sizes, *sorted(by_option), *PARTS]
            raise UserError(
                f"this method has no option {option!r}{nearest(option, known)}; it has: "
                f"{', '.join(known)}"
            )
        return by_option[option]


def _options(part: Any) -> list[str]:
    """Returns the names of a part's fields and of the fields of parts nested in it."""
    names = []
    for field in dataclasses.fields(part):
        inner = getattr(part, field.name)
        names += [field.name, *(_options(inner) if dataclasses.is_dataclass(inner) else [])]
    return names


def _set_option(part: Any, name: str, value: Any) -> Any:
    """Returns the part with one of its `_options` replaced."""
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
    """Raises `UserError` unless num_experts divides total_rank and top_k is at most num_experts."""
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
