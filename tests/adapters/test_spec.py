"""Methods as choices of parts: options, names, and what is refused at construction."""

import dataclasses
import re

import pytest

from goat_jax.adapters.methods import METHODS, method_spec
from goat_jax.adapters.parts.aux_losses import LoadBalancing
from goat_jax.adapters.parts.full import CopiesOfKernel, TakeOutKernel
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
from goat_jax.adapters.parts.neat import ZeroNetwork
from goat_jax.adapters.parts.routers import NoRouter, Softmax, TaskGate, Threshold, TopK
from goat_jax.adapters.parts.scales import (
    AlphaOverRank,
    BySpectrum,
    ConstantScale,
    TheoreticalScale,
)
from goat_jax.adapters.spec import PARTS
from goat_jax.core import svd
from goat_jax.errors import UserError
from goat_jax.optim.transforms import PrunedRanks
from goat_jax.registry import REGISTRY
from kinds import expect

# Row -> initializer, kernel edit, router, scale: the matrix of methods.md 24.2.
MATRIX = {
    "lora": (ZeroDelta, KeepKernel, NoRouter, "AlphaOverRank"),
    "rslora": (ZeroDelta, KeepKernel, NoRouter, "AlphaOverRootRank"),
    "lora_plus": (ZeroDelta, KeepKernel, NoRouter, "AlphaOverRank"),
    "lora_pro": (ZeroDelta, KeepKernel, NoRouter, "AlphaOverRank"),
    "pissa": (svd.principal, SubtractMeanDelta, NoRouter, "AlphaOverRank"),
    "milora": (svd.minor_descending, SubtractMeanDelta, NoRouter, "AlphaOverRank"),
    "dora": (ZeroDelta, KeepKernel, NoRouter, "AlphaOverRank"),
    "kasa": (ZeroDelta, DropMinorTriplets, NoRouter, "AlphaOverRank"),
    "neat": (ZeroNetwork, KeepKernel, NoRouter, "ConstantScale"),
    "adalora": (BothRandom, KeepKernel, NoRouter, "AlphaOverStartRank"),
    "lora_ga": (GradientSegments, SubtractMeanDelta, NoRouter, "AlphaOverRootRank"),
    "lora_dash": (ZeroDelta, KeepKernel, NoRouter, "AlphaOverRank"),
    "multilora": (BothRandom, KeepKernel, NoRouter, "AlphaOverRank"),
    "molora": (ZeroDelta, KeepKernel, TopK, "AlphaOverRank"),
    "molora_soft": (ZeroDelta, KeepKernel, Softmax, "AlphaOverRank"),
    "hydralora": (SharedZeroDelta, KeepKernel, Softmax, "AlphaOverRank"),
    "loramoe": (ZeroDelta, KeepKernel, Softmax, "AlphaOverRank"),
    "moelora": (ZeroDelta, KeepKernel, TaskGate, "AlphaOverTotalRank"),
    "adamole": (ZeroDelta, KeepKernel, Threshold, "AlphaOverRank"),
    "goat": (svd.block_heads, SubtractMeanDelta, TopK, "TheoreticalScale"),
    "goat_plus": (svd.block_heads, SubtractMeanDelta, TopK, "BySpectrum"),
    "full": (CopiesOfKernel, TakeOutKernel, NoRouter, "ConstantScale"),
    "full_moe": (CopiesOfKernel, TakeOutKernel, TopK, "ConstantScale"),
}


def test_the_matrix_has_every_row():
    assert set(MATRIX) == set(METHODS)


@pytest.mark.parametrize("name", MATRIX)
def test_rows_are_the_published_choices(name):
    spec = METHODS[name].spec
    start, edit, router, scale = MATRIX[name]
    initializer = spec.initializer
    segments = initializer.segments if isinstance(initializer, SvdSegments) else type(initializer)
    assert (segments, type(spec.kernel_edit), type(spec.router)) == (start, edit, router)
    assert type(spec.scale).__name__ == scale
    assert isinstance(spec.aux_loss, LoadBalancing) == (router is TopK)


def test_goat_has_the_papers_numbers():
    spec = METHODS["goat"].spec
    assert (spec.num_experts, spec.top_k, spec.aux_weight) == (8, 2, 1e-3)
    assert expect(SvdSegments, spec.initializer).rho == 10.0 and spec.scale == TheoreticalScale(
        eta=1.0
    )
    assert spec.aux_loss == LoadBalancing(reference_code=False)


@pytest.mark.parametrize("name", METHODS)
def test_every_spec_is_static_under_jit(name):
    spec = METHODS[name].spec
    again = dataclasses.replace(spec)
    assert again == spec and hash(again) == hash(spec)
    assert spec.replace(aux_weight=0.25) != spec


def test_options_reach_the_part_that_has_them():
    spec = method_spec(
        "goat", total_rank=32, rho=5.0, eta=0.1, reference_code=True, segments="minor"
    )
    assert spec.rank == 4 and spec.initializer == SvdSegments(svd.minor, 5.0)
    assert spec.scale == TheoreticalScale(0.1)
    assert expect(LoadBalancing, spec.aux_loss).reference_code


def test_options_reach_a_part_inside_a_part():
    spec = method_spec("goat_plus", eta=0.1)
    assert spec.scale == BySpectrum(first=TheoreticalScale(0.1))


def test_a_new_part_and_its_option_can_be_given_together():
    spec = METHODS["molora"].spec
    assert spec.replace(scale=TheoreticalScale(), eta=0.1).scale == TheoreticalScale(0.1)
    assert spec.replace(scale="theory", eta=0.1).scale == TheoreticalScale(0.1)


def name_of(kind, part):
    return next(name for name, cls in REGISTRY[kind].items() if cls is type(part))


@pytest.mark.parametrize("name", METHODS)
def test_every_part_of_every_row_has_a_name(name):
    """The names alone make a spec of the same classes."""
    spec = METHODS[name].spec
    names = {kind: name_of(kind, getattr(spec, kind)) for kind in PARTS}
    again = spec.replace(**names)
    assert [type(getattr(again, kind)) for kind in PARTS] == [
        type(getattr(spec, kind)) for kind in PARTS
    ]


def test_every_named_part_is_in_a_row_or_among_the_papers_routers():
    used = {
        (kind, name_of(kind, getattr(m.spec, kind))) for m in METHODS.values() for kind in PARTS
    }
    every = {(kind, name) for kind, named in REGISTRY.items() for name in named}
    assert every - used == {("router", "top_p"), ("router", "top_k_shared")}
    for _, name in every - used:
        assert name_of("router", method_spec("goat", router=name).router) == name


@pytest.mark.parametrize("name", svd.SEGMENTS)
def test_every_choice_of_segments_has_a_name(name):
    made = expect(SvdSegments, method_spec("goat", segments=name).initializer)
    assert made.segments is svd.SEGMENTS[name]


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("value", ["nosuch", "", None, 3, True, ["none"], TopK])
def test_what_names_no_part_is_refused_with_all_names(kind, value):
    with pytest.raises(UserError) as raised:
        method_spec("lora", **{kind: value})
    assert str(raised.value).startswith(f"{kind} ") and "\n" not in str(raised.value)
    assert ", ".join(REGISTRY[kind]) in str(raised.value)


def test_a_part_of_another_kind_is_refused():
    with pytest.raises(UserError, match="scale TopK"):
        method_spec("goat", scale=TopK())


def test_a_part_inside_a_part_has_a_name_too():
    assert method_spec("goat_plus", first="alpha_over_rank").scale == BySpectrum(AlphaOverRank())
    for wrong in ("nosuch", 3, "by_spectrum"):
        with pytest.raises(UserError):
            method_spec("goat_plus", first=wrong)


def test_an_unknown_option_lists_the_sizes_as_well():
    with pytest.raises(UserError, match="did you mean 'total_rank'") as raised:
        method_spec("goat", rank=8)
    for known in ("total_rank", "num_experts", "top_k", "alpha", "rho", "eta", "scale"):
        assert known in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_rank": 7}, "total rank 7 is not divisible by 8 experts: choose 8 or another"),
        ({"total_rank": 20}, "total rank 20 is not divisible by 8 experts: choose 16 or another"),
        ({"top_k": 9}, "top_k 9 is not in 1..8, the number of experts"),
        ({"top_k": 0}, "top_k 0 is not in 1..8"),
        ({"num_experts": 0}, "num_experts 0 must be at least 1"),
        ({"total_rank": 0}, "total_rank 0 and num_experts 8 must be at least 1"),
        ({"dropout": 1.0}, "dropout 1.0 is not valid: give a number of at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout -0.1 is not valid"),
        ({"dropout": float("nan")}, "dropout nan is not valid"),
        ({"total_rnk": 8}, "no option 'total_rnk' (did you mean 'total_rank'?)"),
        ({"rh": 1.0}, "no option 'rh' (did you mean 'rho'?)"),
        ({"scale": "theorie"}, "scale 'theorie' is not known (did you mean 'theory'?)"),
        (
            {"segments": "principle"},
            "segments 'principle' is not known (did you mean 'principal'?)",
        ),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        method_spec("goat", **options)
    assert "\n" not in str(raised.value)


def test_unknown_method_names_the_nearest_and_all():
    with pytest.raises(UserError, match=r"unknown method 'gaot' \(did you mean 'goat'\?\)") as e:
        method_spec("gaot")
    assert all(name in str(e.value) for name in METHODS)


def test_an_option_of_another_method_is_refused():
    with pytest.raises(UserError, match="no option 'rho'"):
        method_spec("lora", rho=5.0)


def test_scale_rules_know_their_options():
    assert ConstantScale(3.0)(8, None, METHODS["goat"].spec).tolist() == [3.0] * 8
    spec = METHODS["goat"].spec.replace(num_experts=2)
    assert ConstantScale((1.0, 2.0))(8, None, spec).tolist() == [1.0, 2.0]
    assert AlphaOverRank()(8, None, spec).tolist() == [4.0, 4.0]


def test_spectrum_scale_without_segments_is_refused():
    spec = method_spec("molora", scale="by_spectrum")
    with pytest.raises(UserError, match="by_spectrum needs experts initialized from SVD segments"):
        spec.scale(8, None, spec)


def test_expected_weight_of_an_expert():
    spec = METHODS["goat"].spec
    assert [router.mean_weight(spec) for router in (NoRouter(), TopK(), Softmax())] == [
        1.0,
        1 / 8,
        1 / 8,
    ]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adalora", {"total_rank": 8}, "total rank 8 leaves nothing to prune to target_rank 8"),
        ("lora", {"transform": PrunedRanks()}, "a core, which SumOfExperts does not have"),
        ("adalora", {"every": 0}, "every 0 is not valid: give a whole number of at least 1"),
        (
            "adalora",
            {"kernel_edit": "subtract_mean"},
            "does not add it back: choose kernel_edit Keep",
        ),
        (
            "kasa",
            {"initializer": "svd_segments"},
            "DiagonalCore does not add unchanged: choose initializer ZeroDelta",
        ),
        ("dora", {"router": "top_k"}, "normalises one kernel, and TopK weights experts by token"),
        ("neat", {"initializer": "zero_delta"}, "KernelNetwork works on network"),
        ("neat", {"num_experts": 2}, "KernelNetwork is one network: set num_experts=1"),
        ("neat", {"dropout": 0.1}, "takes no dropout: set dropout=0, not 0.1"),
        ("neat", {"activation": "rel"}, "activation 'rel' is not known (did you mean 'relu'?)"),
        ("neat", {"depth": -1}, "depth -1 is not valid: give a whole number of at least 0"),
        ("lora", {"kernel_edit": TakeOutKernel()}, "leaves no kernel for SumOfExperts"),
        (
            "lora",
            {"initializer": BothRandom()},
            "has no factor that is zero, and SumOfExperts adds a b",
        ),
        ("lora_ga", {"directions": "ArB2r"}, "directions 'ArB2r' is not known"),
        ("lora_ga", {"num_experts": 2}, "makes one pair of factors, not 2"),
        ("lora_dash", {"num_directions": 0}, "num_directions 0 is not valid"),
        (
            "lora_dash",
            {"router": "top_k"},
            "has one pair of factors: set num_experts=1 and router=none",
        ),
        ("loramoe", {"delta": 1.0}, "delta 1.0 is not valid"),
        ("loramoe", {"num_experts": 4, "total_rank": 9}, "total rank 9 is not divisible by 4"),
        ("loramoe", {"delta": 0.1, "num_experts": 1}, "num_experts 1 cannot be halved"),
        ("adamole", {"tau_max": 0.5}, "tau_max 0.5 is not in (0, 1/4]"),
        (
            "molora",
            {"aux_loss": "threshold_balance"},
            "needs a router with a threshold, which TopK does",
        ),
        ("goat", {"router": "top_k_shared", "top_k": 8}, "leaves no shared one: choose a top_k of"),
        (
            "goat",
            {"router": "top_p", "p": 0.0},
            "p 0.0 is not valid",
        ),
        ("full", {"num_experts": 2, "total_rank": 2}, "2 complete kernels without a router add up"),
        ("full", {"dropout": 0.1}, "WholeKernels computes the layer itself"),
        ("hydralora", {"initializer": "svd_segments"}, "SharedProjection works on shared"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_in_one_line(name, options, message):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        method_spec(name, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", METHODS)
def test_every_row_says_where_it_is_from_and_what_it_computes(name):
    method = METHODS[name]
    assert re.search(r"arXiv \d{4}\.\d{5}|full fine-tuning", method.source)
    assert method.equation.startswith("y = ") and " x " in method.equation
