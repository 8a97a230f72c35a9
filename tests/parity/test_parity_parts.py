"""The parts of a replay by themselves: published names, alignment, tolerances, the report."""

import io
import json
import math

import numpy as np
import pytest

from goat_jax.adapters.parts.aux_losses import LoadBalancing
from goat_jax.adapters.parts.scales import (
    AlphaOverRank,
    AlphaOverRootRank,
    ConstantScale,
    TheoreticalScale,
)
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core import svd
from goat_jax.errors import UserError
from goat_jax.parity.align import agreeing_steps, align_signs, svd_noise
from goat_jax.parity.checks import GIVEN, LAYER, MODEL, OWN, Check, Comparison, Note, worst
from goat_jax.parity.reference_code import read_init_type
from goat_jax.parity.report import ParityReport, main, to_json, to_text
from kinds import expect


@pytest.mark.parametrize(
    ("name", "choice", "scale", "fixed"),
    [
        ("goat", svd.block_heads, AlphaOverRank(), False),
        ("goat_mini", svd.block_tails, AlphaOverRank(), False),
        ("pissa", svd.principal, ConstantScale(2.0), True),
        ("pissa_scale", svd.principal, TheoreticalScale(0.1), True),
        ("pissa_rs", svd.principal, AlphaOverRootRank(), False),
        ("milora", svd.minor_descending, AlphaOverRank(), False),
        ("pissa_milora", svd.principal_and_minor, AlphaOverRank(), False),
        ("lora", None, AlphaOverRank(), False),
        ("mole", None, AlphaOverRank(), False),
        ("lora_scale", None, TheoreticalScale(0.1), True),
        ("rslora", None, AlphaOverRootRank(), False),
        ("lora_rs", None, AlphaOverRootRank(), False),
        ("goat_rs_scale", svd.block_heads, TheoreticalScale(0.1), True),
    ],
)
def test_published_names_mean_these_parts(name, choice, scale, fixed):
    kind = read_init_type(name, eta=0.1)
    assert (kind.segments, kind.scale, kind.fixed) == (choice, scale, fixed)


@pytest.mark.parametrize("name", ["", "scale", "guassian", "bert", "goat_mega", "lora_", "rs"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="init_type"):
        read_init_type(name)


def test_signs_are_aligned_triplet_by_triplet_and_products_kept():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 5, 2)), rng.normal(size=(2, 3, 2, 4))
    sign = rng.choice([-1.0, 1.0], size=(2, 3, 2))
    flipped = a * sign[..., None, :], b * sign[..., :, None]
    found = align_signs(*flipped, a, b)
    np.testing.assert_array_equal(found[0], a)
    np.testing.assert_array_equal(found[1], b)
    np.testing.assert_allclose(found[0] @ found[1], flipped[0] @ flipped[1])


def test_the_noise_of_an_svd_grows_as_a_gap_closes():
    def noise(gap):
        return svd_noise(np.diag([4.0, 2.0, 2.0 - gap, 1.0]), svd.block_heads, 2, 1)

    eps = np.finfo(np.float32).eps
    assert noise(0.5) == pytest.approx(eps * 4 / 0.5)
    assert noise(1e-3) == pytest.approx(eps * 4 / min(1.0 - 1e-3, 1e-3, 0.999 * 2), rel=1e-3)
    assert noise(0.0) == math.inf
    assert math.isnan(svd_noise(np.full((3, 3), np.nan), svd.principal, 1, 1))
    # A kernel that is not square has a null space that small singular vectors can leak into.
    wide = np.diag([4.0, 2.0, 0.01])[:, :3]
    assert svd_noise(np.vstack([wide, np.zeros((1, 3))]), svd.minor, 1, 1) == pytest.approx(
        eps * 4 / 0.01
    )


def test_runs_agree_until_a_token_goes_elsewhere():
    loads = np.full((4, 2, 3), 0.25)
    other = loads.copy()
    assert agreeing_steps(loads, other) == 4
    other[2, 1, 0] += 0.01
    assert agreeing_steps(loads, other) == 2


def test_the_published_tolerances_are_not_widened_from_the_given_factors():
    for name in ("y", "aux", "loss", "grad_x", "grad_A", "grad_B", "grad_router"):
        assert LAYER[name].limit <= 1e-5
    for name in ("adamw_losses", "y_final"):
        assert LAYER[name].limit <= 1e-4
    assert MODEL["logits_first"].limit <= 1e-4
    assert MODEL["loss"].limit <= 1e-4
    assert MODEL["grad_norm"].limit <= 5e-4


def test_our_own_start_may_be_off_by_the_noise_of_the_svd_the_given_one_may_not():
    one = np.ones(3)
    near = one + np.array([0.0, 0.0, 5e-5])
    for start, ok in ((GIVEN, False), (OWN, True)):
        compare = Comparison(LAYER, "bundle", "case", start, svd_noise=1e-5)
        assert compare.check("init A", near, one).ok == ok
    assert not Comparison(LAYER, "b", "c", OWN, svd_noise=1e-6).check("init A", near, one).ok
    assert not Comparison(LAYER, "b", "c", OWN, svd_noise=math.nan).check("init A", one, one).ok


@pytest.mark.parametrize("quantity", [*LAYER, *MODEL])
def test_nan_and_other_shapes_never_pass(quantity):
    table = LAYER if quantity in LAYER else MODEL
    compare = Comparison(table, "bundle", "case", OWN)
    good, bad = np.ones(3), np.array([1.0, np.nan, 1.0])
    assert compare.check(quantity, good, good).ok
    assert not compare.check(quantity, bad, good).ok
    assert not compare.check(quantity, good, bad).ok
    assert not compare.check(quantity, bad, bad).ok
    assert not compare.check(quantity, np.full(3, np.inf), good).ok
    with pytest.raises(UserError, match=r"bundle: case: .* has shape"):
        compare.check(quantity, good, np.ones(4))


def test_zeros_are_compared_absolutely():
    compare = Comparison(LAYER, "b", "c", GIVEN)
    assert compare.check("grad_A", np.full(2, 9e-6), np.zeros(2)).ok
    assert not compare.check("grad_A", np.full(2, 2e-5), np.zeros(2)).ok


def make(error, quantity="y", case="goat"):
    return Check("folder", case, GIVEN, quantity, error, 1e-5)


def test_the_report_repeats_what_failed_and_counts():
    report = ParityReport([make(1e-6), make(2e-4, case="minor"), make(math.nan, "aux")], [], [])
    text = to_text(report)
    assert report.exit_code == 1
    assert "FAILED folder, minor, given start: y is off by 2.00e-04, tolerance 1.0e-05" in text
    assert "aux is off by nan" in text
    assert text.endswith("2 of 3 checks are out of tolerance")
    table = text.split("\n\n")[0].splitlines()
    assert [line.rstrip().endswith("FAILED") for line in table[2:]] == [True, True]
    assert "goat_goes_unnamed" not in text and "2.0e-04" in table[2] and "minor" in table[2]


def test_exit_codes():
    good = make(1e-6)
    assert ParityReport([good], [], []).exit_code == 0
    assert ParityReport([good, make(1.0)], [], []).exit_code == 1
    assert ParityReport([good], [], ["broken"]).exit_code == 2
    assert ParityReport([], [Note("a", "b", "c")], []).exit_code == 2


def test_the_worst_check_is_the_failing_one_whatever_its_size():
    loose = Check("b", "c", OWN, "y", 5.0, 10.0)
    assert worst([loose, make(1e-4)]).error == 1e-4
    assert math.isnan(worst([make(1e-6), make(math.nan), make(2e-6)]).error)


def test_json_is_plain(tmp_path, make_layer_case, write_layers):
    folder = write_layers(tmp_path, [make_layer_case("one", tokens=5, init_type="lora")])
    stream = io.StringIO()
    assert main([folder], as_json=True, stream=stream) == 0
    found = json.loads(stream.getvalue())
    assert found["ok"] is True
    assert found["errors"] == [] and found["notes"] == []
    assert {"bundle", "case", "start", "quantity", "error", "tolerance", "where", "ok"} == set(
        found["checks"][0]
    )
    broken = to_json(ParityReport([make(math.nan), make(math.inf)], [], []))
    assert json.loads(json.dumps(broken, allow_nan=False))["checks"][0]["error"] == "nan"
    assert not broken["ok"]


def test_the_spec_of_a_bundle_is_made_of_the_package_s_parts(make_layer_case, tmp_path):
    from goat_jax.parity.bundle import Record
    from goat_jax.parity.reference_code import read_spec

    case = make_layer_case("one", rank=10)
    spec = read_spec(Record(case, "here"), read_init_type("goat"), ConstantScale(2.0))
    assert isinstance(spec, AdapterSpec)
    assert (spec.total_rank, spec.rank) == (8, 2)
    assert expect(LoadBalancing, spec.aux_loss).reference_code
