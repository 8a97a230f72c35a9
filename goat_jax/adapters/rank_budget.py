"""AdaLoRA's rank budget: which triplets of all adapters are worth keeping, step by step.

The core (AdaLoRA's lambda) of a triplet that is not worth its rank is set to zero after an update;
no shape changes, and a triplet may come back.
"""

import dataclasses
from typing import ClassVar

from goat_jax.adapters.combines import DiagonalCore
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PrunedCore(DiagonalCore):
    """s x a diag(core) b, whose cores are pruned to `target_rank` a layer on average.

    Attributes:
        target_rank: triplets per layer that are left at the end.
    """

    target_rank: int = 8
    starts_plain: ClassVar[bool] = False

    def check(self, spec: AdapterSpec) -> None:
        """There has to be something to prune."""
        if self.target_rank < 1:
            raise UserError(f"target_rank {self.target_rank} must be at least 1")
        if spec.total_rank <= self.target_rank:
            raise UserError(
                f"total rank {spec.total_rank} leaves nothing to prune to target_rank "
                f"{self.target_rank}: start with more, for example {3 * self.target_rank // 2 + 1}"
            )
        if spec.num_experts > 1 or not spec.router.mergeable:
            raise UserError("PrunedCore prunes one pair of factors: num_experts=1, router=none")
