"""Maps the init types of the published code to our adapter parts."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from goat_jax.adapters.parts.aux_losses import LoadBalancing
from goat_jax.adapters.parts.combines import SumOfExperts
from goat_jax.adapters.parts.initializers import (
    KeepKernel,
    SubtractMeanDelta,
    SvdSegments,
    ZeroDelta,
)
from goat_jax.adapters.parts.routers import TopK
from goat_jax.adapters.parts.scales import (
    AlphaOverRank,
    AlphaOverRootRank,
    ConstantScale,
    TheoreticalScale,
)
from goat_jax.adapters.protocols import KernelEdit, ScaleRule
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core import svd
from goat_jax.core.svd import Segments
from goat_jax.errors import UserError, nearest
from goat_jax.parity.bundle import Record

STARTS: dict[str, Segments | None] = {
    "goat": svd.block_heads,
    "goat_mini": svd.block_tails,
    "pissa": svd.principal,
    "milora": svd.minor_descending,
    "pissa_milora": svd.principal_and_minor,
    "lora": None,
    "mole": None,
}
"""Published init type without its scale affix -> choice of SVD segments, None for a zero init."""

OWN_SCALE = {"pissa": 2.0}
"""Init types that have a constant scale if they have no affix -> that scale."""

SPANS_WHOLE_RANK = ("pissa", "milora", "pissa_milora")
"""Init types that subtract r triplets from the kernel, even if E experts hold fewer than r."""


@dataclasses.dataclass(frozen=True)
class PublishedType:
    """The meaning of a bundle's `init_type`.

    Attributes:
        start: the init type without its scale affix, a key of `STARTS`.
        scale: the scale rule of the name.
        fixed: whether the name alone determines the scale. Otherwise the published code lets an
            environment variable replace alpha / R.
    """

    start: str
    scale: ScaleRule
    fixed: bool

    @property
    def segments(self) -> Segments | None:
        """Choice of SVD segments, None for a zero init."""
        return STARTS[self.start]


def read_init_type(name: str, eta: float = 1.0) -> PublishedType:
    """Parses a published name: a key of `STARTS`, optionally with ``rs`` or ``scale`` as an affix.

    As in the published code, the first rule that applies gives the scale: "scale" in the name is
    the theoretical sqrt(3 n eta / d); "pissa" alone is 2; "rs" is alpha / sqrt(d); all others are
    alpha / d.

    Args:
        name: the init type.
        eta: the eta of the theoretical scale.

    Raises:
        UserError: the name is unknown.

    >>> read_init_type("lora_scale", eta=0.1)
    PublishedType(start='lora', scale=TheoreticalScale(eta=0.1), fixed=True)
    """
    affixes = re.fullmatch(r"(rs_?)?(.*?)((?:_rs|_scale)*)", name)
    assert affixes is not None
    before, start, after = (part or "" for part in affixes.groups())
    if start not in STARTS:
        raise UserError(
            f"init_type {name!r} is not known{nearest(name, STARTS)}: give one of "
            f"{', '.join(STARTS)}, each also with _scale or _rs"
        )
    if "scale" in after:
        return PublishedType(start, TheoreticalScale(eta), True)
    if name in OWN_SCALE:
        return PublishedType(start, ConstantScale(OWN_SCALE[name]), True)
    rule = AlphaOverRootRank() if before or after else AlphaOverRank()
    return PublishedType(start, rule, False)


@dataclasses.dataclass(frozen=True)
class SubtractShare(SubtractMeanDelta):
    """`SubtractMeanDelta` with the weight `share` instead of 1/E: W0 - share * s_1 sum_i a_i b_i.

    Attributes:
        share: the weight of the sum.
    """

    with_first_scale: bool = True
    share: float = 1.0

    def weight(self, spec: AdapterSpec) -> float:
        return self.share


SPEC_KEYS = ("init_type", "rank", "num_experts", "top_k", "alpha")
"""Keys that `read_spec` needs of every init type."""


def read_spec(record: Record, kind: PublishedType, scale: ScaleRule) -> AdapterSpec:
    """Builds the spec of a published layer.

    It reads the keys rank, num_experts, top_k, alpha, rho and init_cof. A zero init needs neither
    rho nor init_cof. A remainder of the rank that does not divide among the experts is dropped, as
    in the published code.

    Args:
        record: an entry of layers.json, or meta.json.
        kind: the meaning of its init type.
        scale: the scale rule to run with, usually the numbers in the file.

    Raises:
        UserError: a key is missing or invalid, or the init type needs a rank that divides among the
            experts.

    >>> sizes = {"rank": 16, "num_experts": 8, "top_k": 2, "alpha": 32}
    >>> record = Record({**sizes, "rho": 10, "init_cof": 0.125}, "layers.json")
    >>> spec = read_spec(record, read_init_type("goat"), AlphaOverRank())
    >>> spec.rank, spec.kernel_edit
    (2, SubtractMeanDelta(with_first_scale=True))
    """
    rank, experts = record.integer("rank"), record.integer("num_experts")
    zero = kind.segments is None
    if not zero:
        record.require("rho", "init_cof")
    if rank % experts and kind.start in SPANS_WHOLE_RANK:
        raise UserError(
            f"{record.where}: rank {rank} does not divide among {experts} experts: PyTorch takes "
            f"{rank} triplets off the weight and trains {rank - rank % experts}, which no replay "
            "can make right: use a multiple"
        )
    init_cof = record.number("init_cof", 1 / experts if zero else None)
    rho = record.number("rho", 10.0 if zero else None)
    try:
        return AdapterSpec(
            initializer=ZeroDelta() if kind.segments is None else SvdSegments(kind.segments, rho),
            kernel_edit=KeepKernel() if zero else _residual(init_cof, experts),
            router=TopK(),
            combine=SumOfExperts(),
            scale=scale,
            aux_loss=LoadBalancing(reference_code=True, count_padding=True),
            total_rank=rank - rank % experts,
            num_experts=experts,
            top_k=record.integer("top_k"),
            alpha=record.number("alpha"),
        )
    except UserError as error:
        raise UserError(f"{record.where}: {error}") from None


def scale_note(theirs: np.ndarray, rule: np.ndarray) -> str:
    """Describes a scale that differs from the rule of an init type that does not determine it."""
    return (
        f"scale {np.unique(theirs).tolist()} is not {rule[0]:g}, what rank and alpha give: taken "
        "as the override that the published code allows"
    )


def _residual(init_cof: float, num_experts: int) -> KernelEdit:
    if abs(init_cof * num_experts - 1.0) < 1e-9:
        return SubtractMeanDelta(with_first_scale=True)
    return SubtractShare(share=init_cof)
