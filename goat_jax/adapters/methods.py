"""`METHODS`: every method by name, as a combination of parts, with its source and equation."""

import dataclasses
from typing import Any

from goat_jax.adapters.parts.aux_losses import (
    CoreAndOrthogonality,
    LoadBalancing,
    LocalizedBalance,
    NoAuxLoss,
    Orthogonality,
    ThresholdBalance,
)
from goat_jax.adapters.parts.combines import (
    DiagonalCore,
    MagnitudeAndDirection,
    OutputGains,
    SharedProjection,
    SumOfExperts,
)
from goat_jax.adapters.parts.full import CopiesOfKernel, TakeOutKernel, WholeKernels
from goat_jax.adapters.parts.gradient_init import GradientSegments
from goat_jax.adapters.parts.initializers import (
    BothRandom,
    DropMinorTriplets,
    KeepKernel,
    SharedZeroDelta,
    SubtractMeanDelta,
    SvdSegments,
    ZeroDelta,
)
from goat_jax.adapters.parts.lora_dash import FindDirections, LoraAndDirections
from goat_jax.adapters.parts.neat import KernelNetwork, ZeroNetwork
from goat_jax.adapters.parts.routers import (
    NoRouter,
    Softmax,
    TaskGate,
    Threshold,
    TopK,
)
from goat_jax.adapters.parts.scales import (
    AlphaOverRank,
    AlphaOverRootRank,
    AlphaOverStartRank,
    AlphaOverTotalRank,
    BySpectrum,
    ConstantScale,
    TheoreticalScale,
)
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core import svd
from goat_jax.errors import UserError, nearest
from goat_jax.optim.transforms import LateStart, LoraPlus, LoraPro, PrunedRanks


@dataclasses.dataclass(frozen=True)
class Method:
    """One method: a row of `METHODS`.

    Attributes:
        spec: the method's parts, with the paper's sizes.
        source: the paper, and the equation or section in it.
        equation: the layer's output y for a token x; a, b, router, core, gains, c and m are
            trained, s is the scale, R the rank of one expert.
        note: variants, and deviations from the paper or its code.
    """

    spec: AdapterSpec
    source: str
    equation: str
    note: str = ""


_LORA = AdapterSpec(
    initializer=ZeroDelta(),
    kernel_edit=KeepKernel(),
    router=NoRouter(),
    combine=SumOfExperts(),
    scale=AlphaOverRank(),
    aux_loss=NoAuxLoss(),
)
_MOLORA = _LORA.replace(
    router=TopK(), scale=AlphaOverRank(), aux_loss=LoadBalancing(), num_experts=8, top_k=2
)
_GOAT = _MOLORA.replace(
    initializer=SvdSegments(), kernel_edit=SubtractMeanDelta(), scale=TheoreticalScale()
)
_PISSA = _LORA.replace(
    initializer=SvdSegments(svd.principal, rho=1.0), kernel_edit=SubtractMeanDelta(), alpha=8.0
)

_HYDRA = _LORA.replace(
    initializer=SharedZeroDelta(),
    combine=SharedProjection(),
    router=Softmax(),
    total_rank=16,
    num_experts=4,
    alpha=32.0,
)

METHODS: dict[str, Method] = {
    "lora": Method(_LORA, "Hu et al. 2021, arXiv 2106.09685", "y = x W0 + alpha/R x a b"),
    "rslora": Method(
        _LORA.replace(scale=AlphaOverRootRank()),
        "Kalajdzievski 2023, arXiv 2312.03732",
        "y = x W0 + alpha/sqrt(R) x a b",
    ),
    "lora_plus": Method(
        _LORA.replace(transform=LoraPlus()),
        "Hayou et al. 2024, arXiv 2402.12354",
        "y = x W0 + alpha/R x a b; rate of b = lr_ratio * rate of a",
        "b learns lr_ratio times as fast; its decay is multiplied as well, as in PEFT",
    ),
    "lora_pro": Method(
        _LORA.replace(transform=LoraPro()),
        "Wang et al. 2024, arXiv 2407.18242",
        "y = x W0 + s x a b; ga, gb minimise ||s (ga b + a gb) - dL/dW||",
        "moments=full keeps Adam's moments of the full gradient; x chooses the free matrix",
    ),
    "pissa": Method(
        _PISSA,
        "Meng et al. 2024, arXiv 2404.02948",
        "y = x (W0 - s a b) + s x a b; s a b = the r largest triplets of W0 at first",
        "its scripts keep alpha = r, so scale 1: change both together",
    ),
    "milora": Method(
        _PISSA.replace(initializer=SvdSegments(svd.minor_descending, rho=1.0)),
        "Wang et al. 2024, arXiv 2406.09044",
        "y = x (W0 - s a b) + s x a b; s a b = the r smallest triplets of W0 at first",
        "its scripts keep alpha = r, so scale 1: change both together",
    ),
    "dora": Method(
        _LORA.replace(combine=MagnitudeAndDirection()),
        "Liu et al. 2024, arXiv 2402.09353, eq. 5, section 4.3",
        "y = m x (W0 + s a b) / ||W0 + s a b|| by columns",
        "the column length carries no gradient, as published",
    ),
    "kasa": Method(
        _LORA.replace(
            combine=DiagonalCore(core_std=1.0),
            kernel_edit=DropMinorTriplets(),
            aux_loss=CoreAndOrthogonality(),
            aux_weight=1.0,
        ),
        "Wang et al. 2024, arXiv 2412.06071",
        "y = x W0' + s x a diag(core) b; W0' = W0 without its r smallest triplets",
        "initially not W0: the r smallest triplets are gone; reference_code=true for its own loss",
    ),
    "neat": Method(
        _LORA.replace(
            initializer=ZeroNetwork(),
            combine=KernelNetwork(),
            scale=ConstantScale(1.0),
            total_rank=32,
        ),
        "Zhong et al. 2024, arXiv 2410.01870 (PEANuT in later versions)",
        "y = x W0 + x act(W0 a) b",
        "depth, activation; over_inputs=true for the paper's axis; no dropout",
    ),
    "adalora": Method(
        _LORA.replace(
            initializer=BothRandom(a_std=0.02, b_std=0.02),
            combine=DiagonalCore(core_std=0.0),
            scale=AlphaOverStartRank(),
            aux_loss=Orthogonality(),
            transform=PrunedRanks(),
            total_rank=12,
            aux_weight=0.1,
        ),
        "Zhang et al. 2023, arXiv 2303.10512",
        "y = x W0 + s x a diag(core) b; the cores of least sensitivity are 0",
        "total_rank is the start, pruned to target_rank; warmup, cooldown, every, in steps; "
        "aux_weight is omega / layers",
    ),
    "lora_ga": Method(
        _LORA.replace(
            initializer=GradientSegments(),
            kernel_edit=SubtractMeanDelta(),
            scale=AlphaOverRootRank(),
        ),
        "Wang et al. 2024, arXiv 2407.05000, algorithm 1",
        "y = x (W0 - s a0 b0) + s x a b; a0, b0 from the triplets of dL/dW0",
        "needs the loss's gradient at the start; directions, size, gamma, norm_clip",
    ),
    "lora_dash": Method(
        _LORA.replace(
            combine=LoraAndDirections(),
            transform=LateStart(("coefficients",)),
            phases=FindDirections(),
        ),
        "Si et al. 2024, arXiv 2409.01035",
        "y = x W0 + s x a b + sum_i c_i (x u_i) v_i",
        "is LoRA for change_step steps; then num_directions of W0 get coefficients",
    ),
    "multilora": Method(
        _LORA.replace(
            initializer=BothRandom(), combine=OutputGains(), total_rank=24, num_experts=3
        ),
        "Wang et al. 2023, arXiv 2311.11501",
        "y = x W0 + sum_i gain_i (s x a_i b_i)",
        "no official code: the layer of MTL-LoRA's repository is the reference",
    ),
    "molora": Method(
        _MOLORA,
        "zero-start mixture with top-k routing: the baseline of arXiv 2502.16894",
        "y = x W0 + sum_i w_i s x a_i b_i; w = softmax over the k largest of x router",
        "the soft form of Zadouri et al. 2023 is `molora_soft`",
    ),
    "molora_soft": Method(
        _LORA.replace(
            initializer=ZeroDelta(a_std=0.02),
            router=Softmax(router_std=0.02),
            total_rank=40,
            num_experts=10,
        ),
        "Zadouri et al. 2023, arXiv 2309.05444",
        "y = x W0 + sum_i w_i s x a_i b_i; w = softmax(x router)",
        "router=top_k with renormalise=false is its code's top_k",
    ),
    "hydralora": Method(
        _HYDRA,
        "Tian et al. 2024, arXiv 2404.19245",
        "y = x W0 + sum_i w_i s (x a) b_i; w = softmax(x router)",
        "all experts for every token, as published; the paper compares top_k with aux_loss=balance",
    ),
    "loramoe": Method(
        _LORA.replace(
            router=Softmax(),
            aux_loss=LocalizedBalance(),
            total_rank=32,
            num_experts=8,
            alpha=32.0,
        ),
        "Dou et al. 2023, arXiv 2312.09979",
        "y = x W0 + sum_i w_i s x a_i b_i; w = softmax(x router)",
        "delta > 0 makes the balance local and needs task types; published scripts keep it off",
    ),
    "moelora": Method(
        _LORA.replace(
            initializer=ZeroDelta(a_std=0.01),
            router=TaskGate(),
            scale=AlphaOverTotalRank(),
            total_rank=16,
            num_experts=8,
            alpha=32.0,
        ),
        "Liu et al. 2023, arXiv 2310.18339",
        "y = x W0 + sum_i w_i s x a_i b_i; w = softmax(task embedding gate)",
        "weighs experts by task: batches need task_ids; `tasks.for_task` gives one task's adapter",
    ),
    "adamole": Method(
        _LORA.replace(
            router=Threshold(), aux_loss=ThresholdBalance(), total_rank=32, num_experts=4
        ),
        "Liu and Luo 2024, arXiv 2405.00361",
        "y = x W0 + sum_i w_i s x a_i b_i; w ~ max(p_i - tau(x), 0)",
        "published with dropout_per_expert and aux_weight 1e-2; the paper compares it with 1e-3",
    ),
    "goat": Method(
        _GOAT,
        "arXiv 2502.16894, eq. 13, 19, Thm 3.4, 3.5",
        "y = x (W0 - s mean(a0 b0)) + sum_i w_i s x a_i b_i; s = sqrt(3 I eta / R)",
        "scale=alpha_over_rank and reference_code=true give what the published code runs",
    ),
    "goat_plus": Method(
        _GOAT.replace(scale=BySpectrum()),
        "arXiv 2502.16894, appendix E (GOAT-s in v4)",
        "y = x (W0 - mean(s_i a0 b0)) + sum_i w_i s_i x a_i b_i; s_i by segment",
        "per-expert scales from the spectrum",
    ),
    "full": Method(
        _LORA.replace(
            initializer=CopiesOfKernel(),
            kernel_edit=TakeOutKernel(),
            combine=WholeKernels(),
            scale=ConstantScale(1.0),
            total_rank=1,
            whole_model=True,
        ),
        "full fine-tuning: every parameter of the model",
        "y = x W; W = W0 at first",
        "rank and scale play no part; whole_model=false trains the targets' kernels alone",
    ),
    "full_moe": Method(
        _MOLORA.replace(
            initializer=CopiesOfKernel(),
            kernel_edit=TakeOutKernel(),
            combine=WholeKernels(),
            scale=ConstantScale(1.0),
            whole_model=True,
        ),
        "arXiv 2502.16894, section 3.1: upcycled experts, top-k softmax",
        "y = sum_i w_i x W_i; W_i = W0 at first",
        "rank and scale play no part; no code was published: the experts share the bias here",
    ),
}


def method_spec(name: str, **options: Any) -> AdapterSpec:
    """Returns the spec of a method, with some sizes, parts or options of its parts replaced.

    Raises:
        UserError: an unknown method, option or choice, or sizes that do not fit together.

    >>> method_spec("goat", total_rank=32, scale="alpha_over_rank", segments="minor").rank
    4
    """
    if name not in METHODS:
        raise UserError(
            f"unknown method {name!r}{nearest(name, METHODS)}: choose one of {', '.join(METHODS)}"
        )
    return METHODS[name].spec.replace(**options)
