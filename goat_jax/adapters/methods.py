"""METHODS: every method by name, each a choice of parts. The only place that knows their names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from goat_jax.adapters.combines import SumOfExperts
from goat_jax.adapters.losses import Balance, NoAuxLoss
from goat_jax.adapters.routing import NoRouter, TopK
from goat_jax.adapters.scales import AlphaOverRank, AlphaOverRootRank, BySpectrum, Theory
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.adapters.start import KeepBase, SubtractMean, SvdSegments, ZeroDelta
from goat_jax.core import svd
from goat_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        spec: the parts and the paper's sizes.
        source: paper and equation.
        note: what the reader must know: variants, deviations.
    """

    spec: AdapterSpec
    source: str
    note: str = ""


_LORA = AdapterSpec(
    initializer=ZeroDelta(),
    base_edit=KeepBase(),
    router=NoRouter(),
    combine=SumOfExperts(),
    scale=AlphaOverRank(),
    aux_loss=NoAuxLoss(),
)
_MOLORA = _LORA.replace(
    router=TopK(), scale=AlphaOverRank(), aux_loss=Balance(), num_experts=8, top_k=2
)
_GOAT = _MOLORA.replace(initializer=SvdSegments(), base_edit=SubtractMean(), scale=Theory())
_PISSA = _LORA.replace(
    initializer=SvdSegments(svd.principal, rho=1.0), base_edit=SubtractMean(), alpha=8.0
)

METHODS: dict[str, Method] = {
    "lora": Method(_LORA, "Hu et al. 2021, arXiv 2106.09685"),
    "rslora": Method(
        _LORA.replace(scale=AlphaOverRootRank()), "Kalajdzievski 2023, arXiv 2312.03732"
    ),
    "pissa": Method(
        _PISSA,
        "Meng et al. 2024, arXiv 2404.02948",
        "its scripts keep alpha = r, so scale 1: change both together",
    ),
    "milora": Method(
        _PISSA.replace(initializer=SvdSegments(svd.minor_descending, rho=1.0)),
        "Wang et al. 2024, arXiv 2406.09044",
        "its scripts keep alpha = r, so scale 1: change both together",
    ),
    "molora": Method(
        _MOLORA,
        "zero-start mixture with top-k routing: the baseline of arXiv 2502.16894",
        "the soft form of Zadouri et al. 2023 is another row",
    ),
    "goat": Method(
        _GOAT,
        "arXiv 2502.16894, eq. 13, 19, Thm 3.4, 3.5",
        "scale=alpha_over_rank and published=true give what the published code runs",
    ),
    "goat_plus": Method(
        _GOAT.replace(scale=BySpectrum()),
        "arXiv 2502.16894, appendix E (GOAT-s in v4)",
        "per-expert scales from the spectrum",
    ),
}


CHOICES: dict[str, dict[str, Any]] = {
    "scale": {
        "alpha_over_rank": AlphaOverRank(),
        "alpha_over_root_rank": AlphaOverRootRank(),
        "theory": Theory(),
        "by_spectrum": BySpectrum(),
    },
    "choice": {
        "block_heads": svd.block_heads,
        "block_tails": svd.block_tails,
        "principal": svd.principal,
        "minor": svd.minor,
        "minor_descending": svd.minor_descending,
        "principal_and_minor": svd.principal_and_minor,
        "random": svd.random_blocks,
    },
}
"""Parts and part options that a config file names by a string."""


def method_spec(name: str, **options: Any) -> AdapterSpec:
    """The spec of a method by name, with other sizes, parts or options of its parts.

    Raises:
        UserError: an unknown method, option or choice, or sizes that do not fit together.

    >>> method_spec("goat", total_rank=32, scale="alpha_over_rank", choice="minor").rank
    4
    """
    if name not in METHODS:
        raise UserError(
            f"unknown method {name!r}{nearest(name, METHODS)}; there are: {', '.join(METHODS)}"
        )
    return with_options(METHODS[name].spec, options)


def with_options(spec: AdapterSpec, options: Mapping[str, Any]) -> AdapterSpec:
    """`AdapterSpec.replace`, with the names of `CHOICES` standing for what they name.

    >>> with_options(METHODS["goat"].spec, {"scale": "alpha_over_rank", "alpha": 8.0}).scale
    AlphaOverRank()
    """
    return spec.replace(**{option: _resolve(option, value) for option, value in options.items()})


def _resolve(option: str, value: Any) -> Any:
    if option not in CHOICES or not isinstance(value, str):
        return value
    if value not in CHOICES[option]:
        known = CHOICES[option]
        raise UserError(
            f"{option} {value!r} is not known{nearest(value, known)}; there are: {', '.join(known)}"
        )
    return CHOICES[option][value]
