"""Parts by the names that config files and command lines give them."""

from collections.abc import Mapping
from typing import Any

from goat_jax.adapters.losses import Balance, LocalizedBalance, NoAuxLoss, ThresholdBalance
from goat_jax.adapters.routing import (
    NoRouter,
    Softmax,
    TaskGate,
    Threshold,
    TopK,
    TopKWithShared,
    TopP,
)
from goat_jax.adapters.scales import (
    AlphaOverRank,
    AlphaOverRootRank,
    AlphaOverTotalRank,
    BySpectrum,
    Fixed,
    Theory,
)
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.adapters.start import DropMinor, KeepBase, SubtractMean, SvdSegments, ZeroDelta
from goat_jax.core import svd
from goat_jax.errors import UserError, nearest
from goat_jax.optim.transforms import PLAIN, LoraPlus, LoraPro

CHOICES: dict[str, dict[str, Any]] = {
    "scale": {
        "alpha_over_rank": AlphaOverRank(),
        "alpha_over_root_rank": AlphaOverRootRank(),
        "alpha_over_total_rank": AlphaOverTotalRank(),
        "theory": Theory(),
        "by_spectrum": BySpectrum(),
        "fixed": Fixed(),
    },
    "router": {
        "none": NoRouter(),
        "softmax": Softmax(),
        "top_k": TopK(),
        "top_p": TopP(),
        "top_k_shared": TopKWithShared(),
        "threshold": Threshold(),
        "task": TaskGate(),
    },
    "aux_loss": {
        "none": NoAuxLoss(),
        "balance": Balance(),
        "threshold_balance": ThresholdBalance(),
        "localized_balance": LocalizedBalance(),
    },
    "transform": {"plain": PLAIN, "lora_plus": LoraPlus(), "lora_pro": LoraPro()},
    "initializer": {"zero_delta": ZeroDelta(), "svd_segments": SvdSegments()},
    "base_edit": {"keep": KeepBase(), "subtract_mean": SubtractMean(), "drop_minor": DropMinor()},
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


def with_options(spec: AdapterSpec, options: Mapping[str, Any]) -> AdapterSpec:
    """`AdapterSpec.replace`, with the names of `CHOICES` standing for what they name.

    >>> from goat_jax.adapters.methods import METHODS
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
