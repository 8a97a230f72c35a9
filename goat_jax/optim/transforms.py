"""Parts: optimizer transforms, which compose the stages of the usual chain for a method."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, NamedTuple, Protocol

import optax

from goat_jax.errors import UserError
from goat_jax.optim.late_start import with_late_start
from goat_jax.optim.lora_plus import lora_plus
from goat_jax.optim.lora_pro import CHOICES, lora_pro, lora_pro_full
from goat_jax.optim.rank_budget import RankBudget, with_rank_budget
from goat_jax.registry import part
from goat_jax.typing import PyTree
from goat_jax.validation.fields import Count, Natural, OneOf, Positive, Rate, check_fields


class Stages(NamedTuple):
    """Stages of the usual optimizer chain, between which methods insert theirs.

    Attributes:
        clip: clipping of the raw gradients.
        direction: Adam's update direction.
        finish: weight decay and learning rate.
    """

    clip: optax.GradientTransformation
    direction: optax.GradientTransformation
    finish: optax.GradientTransformation


class MethodSpec(Protocol):
    """The fields of `AdapterSpec` that transforms check."""

    @property
    def combine(self) -> HasLayout: ...

    @property
    def router(self) -> CanMerge: ...

    @property
    def is_plain_sum(self) -> bool: ...

    @property
    def total_rank(self) -> int: ...

    @property
    def num_experts(self) -> int: ...


class HasLayout(Protocol):
    """The field of a combine that transforms check."""

    layout: ClassVar[str]


class CanMerge(Protocol):
    """The field of a router that transforms check."""

    mergeable: ClassVar[bool]


class Transform(Protocol):
    """Builds a method's optimizer from the stages of the usual chain.

    Attributes:
        length_matters: whether the first steps depend on the length of the training.
    """

    length_matters: ClassVar[bool]

    def __call__(
        self, stages: Stages, scales: PyTree, total_steps: int
    ) -> optax.GradientTransformation:
        """Returns the complete chain.

        Args:
            stages: the stages of the usual chain.
            scales: the adapters' scales (`pairs.scales_of`).
            total_steps: length of the training in optimizer steps.
        """
        ...


@part("transform", "plain")
@dataclasses.dataclass(frozen=True)
class Plain:
    """The usual chain, unchanged.

    >>> Plain()(Stages(*[optax.identity()] * 3), None, 1).update({"a": 1.0}, ((), (), ()))[0]
    {'a': 1.0}
    """

    length_matters: ClassVar[bool] = False

    def __call__(
        self, stages: Stages, scales: PyTree, total_steps: int
    ) -> optax.GradientTransformation:
        del scales, total_steps
        return optax.chain(*stages)


PLAIN = Plain()


@part("transform", "lora_plus")
@dataclasses.dataclass(frozen=True)
class LoraPlus:
    """LoRA+: the usual chain with `lora_plus` at its end.

    Attributes:
        lr_ratio: the learning rate of b divided by that of a.

    Raises:
        UserError: a method whose adapters have no a and b.
    """

    length_matters: ClassVar[bool] = False

    lr_ratio: Positive = 16.0

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, spec: MethodSpec) -> None:
        """Refuses a method without factors a and b."""
        if spec.combine.layout not in ("pairs", "shared"):
            raise UserError("LoRA+ trains b faster than a: this method has no such factors")

    def __call__(
        self, stages: Stages, scales: PyTree, total_steps: int
    ) -> optax.GradientTransformation:
        del scales, total_steps
        return optax.chain(*stages, lora_plus(self.lr_ratio))


@part("transform", "lora_pro")
@dataclasses.dataclass(frozen=True)
class LoraPro:
    """LoRA-Pro: `lora_pro` before Adam, or `lora_pro_full` in Adam's place.

    Attributes:
        x: the choice of the free matrix, a key of `lora_pro.CHOICES`, with "factors" only.
        moments: the arrays whose moments Adam keeps: "factors" for a and b (the paper's efficient
            AdamW), "full" for the full gradient, which is as large as the kernels.
        beta1: decay of Adam's first moment, with "full" only.
        beta2: decay of Adam's second moment, with "full" only.
        epsilon: term in Adam's denominator, with "full" only.

    Raises:
        UserError: an unknown x or moments, or an adapter that is not a sum of ``s a b``.
    """

    length_matters: ClassVar[bool] = False

    x: Annotated[str, OneOf(CHOICES)] = "sylvester"
    moments: Annotated[str, OneOf(("factors", "full"))] = "factors"
    beta1: Rate = 0.9
    beta2: Rate = 0.999
    epsilon: Positive = 1e-8

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, spec: MethodSpec) -> None:
        """Refuses adapters that are not a sum of ``s a b``, as LoRA-Pro's formulas require."""
        if not spec.is_plain_sum:
            raise UserError(
                "LoRA-Pro projects the gradient of a product s a b, which this method's adapter "
                "is not"
            )

    def __call__(
        self, stages: Stages, scales: PyTree, total_steps: int
    ) -> optax.GradientTransformation:
        del total_steps
        if self.moments == "full":
            adam = lora_pro_full(scales, self.beta1, self.beta2, self.epsilon)
            return optax.chain(stages.clip, adam, stages.finish)
        return optax.chain(stages.clip, lora_pro(scales, self.x), stages.direction, stages.finish)


@part("transform", "late_start")
@dataclasses.dataclass(frozen=True)
class LateStart:
    """Keeps a separate Adam state for arrays that are trained later (`late_start`).

    Attributes:
        late: the names of these arrays.
    """

    length_matters: ClassVar[bool] = False

    late: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, stages: Stages, scales: PyTree, total_steps: int
    ) -> optax.GradientTransformation:
        del scales, total_steps
        direction = with_late_start(stages.direction, self.late.__contains__)
        return optax.chain(stages.clip, direction, stages.finish)


@part("transform", "pruned_ranks")
@dataclasses.dataclass(frozen=True)
class PrunedRanks:
    """AdaLoRA: `with_rank_budget` around Adam, after clipping.

    Attributes:
        target_rank: the average number of triplets per layer at the end.
        warmup: steps without pruning at the start.
        cooldown: steps at the end during which the kept triplets no longer change.
        every: steps between two prunings.
        beta1: decay of the smoothed sensitivity.
        beta2: decay of the sensitivity's uncertainty.
    """

    length_matters: ClassVar[bool] = True

    target_rank: Count = 8
    warmup: Natural = 0
    cooldown: Natural = 0
    every: Count = 1
    beta1: Rate = 0.85
    beta2: Rate = 0.85

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, spec: MethodSpec) -> None:
        """Refuses a combine without core, several experts, and a rank that needs no pruning."""
        if not hasattr(spec.combine, "core_std"):
            raise UserError(
                f"PrunedRanks prunes a core, which {type(spec.combine).__name__} does not have"
            )
        if spec.num_experts > 1 or not spec.router.mergeable:
            raise UserError(
                "PrunedRanks prunes one pair of factors: set num_experts=1 and router=none"
            )
        if spec.total_rank <= self.target_rank:
            raise UserError(
                f"total rank {spec.total_rank} leaves nothing to prune to target_rank "
                f"{self.target_rank}: raise total_rank, for example to "
                f"{3 * self.target_rank // 2 + 1}"
            )

    def __call__(
        self, stages: Stages, scales: PyTree, total_steps: int
    ) -> optax.GradientTransformation:
        del scales
        budget = RankBudget(total_steps=total_steps, **dataclasses.asdict(self))
        inner = optax.chain(stages.direction, stages.finish)
        return optax.chain(stages.clip, with_rank_budget(inner, budget))
