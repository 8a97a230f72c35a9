"""The paper's ablations and the forms of other methods, each a choice of options of a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.adapters.adapter import apply_layer, init_adapter, merge_adapter
from goat_jax.adapters.context import EVAL, Context
from goat_jax.adapters.methods import method_spec
from goat_jax.adapters.parts.gradient_init import DIRECTIONS, SIZES
from goat_jax.adapters.parts.lora_dash import find_directions
from goat_jax.adapters.protocols import RouterInputs
from goat_jax.adapters.task_gate import for_task
from goat_jax.core import aux_losses, routers
from goat_jax.errors import UserError
from goat_jax.testing import assert_close
from tiers import each, first_of_each

IN, OUT, TOKENS = 24, 20, 40
START, APPLY = (
    jax.jit(init_adapter, static_argnums=1),
    jax.jit(apply_layer, static_argnums=4),
)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


KERNEL, X = random(IN, OUT), random(TOKENS, IN, seed=1)

SEGMENTS = {"O": "block_heads", "P": "principal", "M": "minor", "R": "random"}
ZERO = {"initializer": "zero_delta", "kernel_edit": "keep"}
# Sections 9 and 17 of the paper: what is changed, and the routing that must come of it.
ABLATIONS = {
    **{f"segments {name}": {"segments": choice} for name, choice in SEGMENTS.items()},
    **{
        f"segments {name}, no MoE scaling": {"segments": choice, "scale": "alpha_over_rank"}
        for name, choice in SEGMENTS.items()
    },
    "zero start": ZERO,
    "zero start, no MoE scaling": {**ZERO, "scale": "alpha_over_rank"},
    "no MoE": {"router": "none", "aux_loss": "none", "scale": "alpha_over_rank"},
    "top-p": {"router": "top_p", "p": 0.25},
    "shared expert": {"router": "top_k_shared"},
    "no balance loss": {"aux_loss": "none"},
    "balance 1e-1": {"aux_weight": 0.1},
    "rank 16, 16 experts, 4 active": {"total_rank": 16, "num_experts": 16, "top_k": 4},
}


def options_of(name):
    return [(option, str(value)) for option, value in ABLATIONS[name].items()]


@pytest.mark.parametrize("name", first_of_each(ABLATIONS, options_of, ["segments O", "top-p"]))
def test_an_ablation_of_the_paper_is_a_choice_of_options(name):
    """It starts as W0: exactly with the expected weights, whatever starts and segments are."""
    spec = method_spec("goat", **ABLATIONS[name])
    start = START(KERNEL, spec, jax.random.key(0))
    weight = np.broadcast_to(spec.router.mean_weight(spec), spec.num_experts)
    a, b = (np.asarray(start.factors[key], np.float64) for key in "ab")
    scale = np.asarray(start.scale, np.float64)
    mean = np.einsum("EIR,ERO,E->IO", a, b, scale * weight)
    assert_close(np.asarray(start.kernel, np.float64) + mean, KERNEL, 2e-6)
    y, report = APPLY(X, start.kernel, start.factors, start.scale, spec, EVAL)
    assert np.isfinite(y).all() and np.isfinite(report.aux_loss)
    assert (report.aux_loss == 0) == (ABLATIONS[name].get("aux_loss") == "none")


def test_the_segments_of_the_ablation_are_all_different():
    starts = {
        name: START(KERNEL, method_spec("goat", segments=choice), jax.random.key(0)).factors["a"]
        for name, choice in SEGMENTS.items()
    }
    for one in starts:
        for other in starts:
            assert one == other or np.abs(starts[one] - starts[other]).max() > 1e-3


def test_top_p_takes_the_fewest_experts_that_reach_p():
    logits = random(50, 6, seed=3) * 2
    routing = jax.jit(lambda z: routers.route_top_p(z, 0.6))(logits)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for row, chosen, weights in zip(probs, routing.selected, routing.weights, strict=True):
        order = np.argsort(-row)
        count = int((np.cumsum(row[order]) < 0.6).sum()) + 1
        assert set(np.flatnonzero(chosen)) == set(order[:count])
        np.testing.assert_allclose(weights, np.where(chosen, row, 0) / row[chosen].sum(), rtol=1e-5)


@pytest.mark.slow
def test_top_p_of_equal_experts_takes_the_first():
    routing = routers.route_top_p(jnp.zeros((1, 4)), 0.5)
    assert routing.selected.tolist() == [[True, True, False, False]]
    assert routers.route_top_p(jnp.zeros((1, 4)), 1.0).selected.all()


@pytest.mark.slow
def test_a_shared_expert_is_always_on_and_outside_the_balance():
    spec = method_spec("goat", router="top_k_shared", num_experts=4, total_rank=4)
    start = START(KERNEL, spec, jax.random.key(0))
    assert start.factors["router"].shape == (IN, 3)
    routing = spec.router(RouterInputs(X, start.factors, spec, EVAL))
    weights = np.asarray(routing.weights)
    np.testing.assert_array_equal(weights[:, 0], 1.0)
    np.testing.assert_allclose(weights[:, 1:].sum(-1), 1.0, rtol=1e-6)
    assert ((weights[:, 1:] > 0).sum(-1) == 2).all()
    others = jax.tree.map(lambda v: v[..., 1:], routing)
    assert_close(spec.aux_loss(routing, start.factors, EVAL), aux_losses.balance_loss(others))


def test_molora_of_its_code_does_not_renormalise():
    spec = method_spec("molora_soft", router="top_k", renormalise=False, top_k=2)
    start = START(KERNEL, spec.replace(total_rank=10), jax.random.key(0))
    routing = spec.router(RouterInputs(X, start.factors, spec, EVAL))
    probs = np.sort(np.asarray(routing.probs), -1)
    np.testing.assert_allclose(routing.weights.sum(-1), probs[:, -2:].sum(-1), rtol=1e-5)


@pytest.mark.slow
def test_hydralora_with_one_expert_is_lora_and_top_k_is_one_option():
    spec = method_spec("hydralora", num_experts=1, total_rank=4)
    lora = method_spec("lora", total_rank=4, alpha=32.0)
    start = START(KERNEL, spec, jax.random.key(0))
    arrays = {**start.factors, "b": random(1, 4, OUT, seed=4)}
    ours, _ = APPLY(X, KERNEL, arrays, start.scale, spec, EVAL)
    theirs, _ = APPLY(X, KERNEL, arrays, start.scale, lora, EVAL)
    assert_close(ours, theirs, 1e-6)
    top = method_spec("hydralora", router="top_k", top_k=2, aux_loss="balance")
    start = START(KERNEL, top, jax.random.key(0))
    _, report = APPLY(X, KERNEL, start.factors, start.scale, top, EVAL)
    np.testing.assert_allclose(report.load.sum(), 2.0, rtol=1e-6)
    assert report.aux_loss > 0.5


@pytest.mark.parametrize("name", each(["hydralora", "lora_dash", "dora"], ["dora"]))
def test_dropout_of_the_others_is_inverted_too(name):
    """Averaged over masks the output is that of eval mode."""
    spec = method_spec(name, dropout=0.5, dropout_per_expert=name == "hydralora")
    start = START(KERNEL, spec, jax.random.key(0))
    arrays = {
        key: value + 0.3 * random(*value.shape, seed=number)
        for number, (key, value) in enumerate((start.factors | start.constants).items())
    }
    x = X[:2]
    quiet, _ = APPLY(x, start.kernel, arrays, start.scale, spec, EVAL)

    @jax.jit
    @jax.vmap
    def sample(key):
        return apply_layer(x, start.kernel, arrays, start.scale, spec, Context(key=key))[0]

    values = np.asarray(sample(jax.random.split(jax.random.key(0), 4000)), np.float64)
    error = values.std(0) / np.sqrt(len(values))
    assert (error > 0).all() and (np.abs(values.mean(0) - quiet) < 5 * error).all()


def test_the_two_terms_of_lora_dash_are_dropped_independently():
    spec = method_spec("lora_dash", dropout=0.5)
    assert spec.combine.dropout_copies(spec) == 2
    assert spec.replace(dropout=0.0).combine.dropout_copies(spec.replace(dropout=0.0)) is None


def test_dora_refuses_one_mask_per_expert():
    spec = method_spec("dora", dropout=0.5, dropout_per_expert=True)
    start = START(KERNEL, spec, jax.random.key(0))
    with pytest.raises(UserError, match="dropout_per_expert=false"):
        apply_layer(X, KERNEL, start.factors, start.scale, spec, Context(jax.random.key(0)))


def test_dora_on_segments_of_the_svd_starts_as_the_pretrained_layer():
    """Parts combine: PiSSA's start and residual under DoRA's magnitude."""
    spec = method_spec("pissa", combine=method_spec("dora").combine)
    start = START(KERNEL, spec, jax.random.key(0))
    y, _ = APPLY(X, start.kernel, start.factors, start.scale, spec, EVAL)
    assert_close(y, X @ KERNEL, 1e-5)
    norms = np.linalg.norm(KERNEL, axis=0)
    np.testing.assert_allclose(start.factors["magnitude"], norms, rtol=1e-5)


@pytest.mark.slow
def test_lora_dash_is_continuous_at_its_switch_and_lora_before():
    spec, lora = method_spec("lora_dash"), method_spec("lora")
    start = START(KERNEL, spec, jax.random.key(0))
    factors = {**start.factors, "b": random(1, 8, OUT, seed=5)}
    arguments = (X, start.kernel)
    first, _ = APPLY(*arguments, factors | start.constants, start.scale, spec, EVAL)
    found = find_directions(start.kernel, factors, start.scale, 8)
    second, _ = APPLY(*arguments, factors | {"u": found.u, "vt": found.vt}, start.scale, spec, EVAL)
    plain, _ = APPLY(*arguments, factors, start.scale, lora, EVAL)
    np.testing.assert_array_equal(first, second)
    assert_close(first, plain, 1e-6)


@pytest.mark.slow
def test_neat_over_inputs_is_neat_of_the_transposed_kernel():
    ours = method_spec("neat", total_rank=4, over_inputs=True, depth=1, activation="silu")
    theirs = ours.replace(over_inputs=False)
    start = START(KERNEL, ours, jax.random.key(0))
    arrays = {**start.factors, "b": random(*start.factors["b"].shape, seed=6)}
    merged = merge_adapter(KERNEL, arrays, start.scale, ours)
    assert_close(merged, merge_adapter(KERNEL.T, arrays, start.scale, theirs).T, 1e-5)
    assert np.abs(merged - KERNEL).max() > 0.01


@pytest.mark.slow
def test_one_task_of_moelora_is_an_adapter_that_merges():
    spec = method_spec("moelora", num_tasks=3)
    start = START(KERNEL, spec, jax.random.key(0))
    arrays = {**start.factors, "b": random(*start.factors["b"].shape, seed=7)}
    ids = jnp.array([1, 3])
    y, _ = APPLY(X.reshape(2, -1, IN), KERNEL, arrays, start.scale, spec, Context(task_ids=ids))
    for row, task in enumerate(ids):
        merged = merge_adapter(KERNEL, *for_task(arrays, start.scale, spec, int(task)))
        assert_close(X.reshape(2, -1, IN)[row] @ merged, y[row], 1e-5)
    with pytest.raises(UserError, match=r"task 4 is not in 0\.\.3"):
        for_task(arrays, start.scale, spec, 4)
    with pytest.raises(UserError, match="TopK does not depend on the task"):
        for_task(arrays, start.scale, method_spec("goat"), 0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [("moelora", {}, "give task_ids"), ("loramoe", {"delta": 0.1}, "give task_types")],
)
def test_a_method_that_goes_by_tasks_says_so(name, options, message):
    spec = method_spec(name, **options)
    start = START(KERNEL, spec.replace(total_rank=8), jax.random.key(0))
    with pytest.raises(UserError, match=message):
        apply_layer(X, KERNEL, start.factors, start.scale, spec, EVAL)


def test_lora_ga_without_a_gradient_says_what_to_give():
    with pytest.raises(UserError, match=r"gradient=\.\.\. to init_adapter, or gradients=\.\.\. to"):
        init_adapter(KERNEL, method_spec("lora_ga"), jax.random.key(0))
    with pytest.raises(UserError, match="rank 12 needs 24 singular vectors"):
        init_adapter(KERNEL, method_spec("lora_ga", total_rank=12), jax.random.key(0), KERNEL)


# Diagonal by diagonal: the first has every choice of triplets and every size once.
CHOICES = [
    (directions, list(SIZES)[(number + shift) % len(SIZES)])
    for shift in range(len(SIZES))
    for number, directions in enumerate(DIRECTIONS)
]


@pytest.mark.parametrize("choice", first_of_each(CHOICES, enumerate, CHOICES[:1]), ids="-".join)
def test_lora_ga_takes_disjoint_triplets_of_the_gradient(choice):
    directions, size = choice
    spec = method_spec("lora_ga", total_rank=4, directions=directions, size=size)
    gradient = random(IN, OUT, seed=8)
    start = START(KERNEL, spec, jax.random.key(0), gradient)
    u, _, vt = np.linalg.svd(np.asarray(gradient, np.float64), full_matrices=False)
    on_u = np.abs(u.T @ np.asarray(start.factors["a"][0], np.float64)).max(1) > 1e-3
    on_v = np.abs(vt @ np.asarray(start.factors["b"][0], np.float64).T).max(1) > 1e-3
    assert on_u.sum() == on_v.sum() == 4 and not (on_u & on_v).any()
    assert not (on_u | on_v)[8:].any()
    y, _ = APPLY(X, start.kernel, start.factors, start.scale, spec, EVAL)
    assert_close(y, X @ KERNEL, 1e-5)


def test_norm_clip_bounds_the_offset():
    spec = method_spec("lora_ga", total_rank=4, size="unit", norm_clip=True, alpha=200.0)
    start = START(KERNEL, spec, jax.random.key(0), random(IN, OUT, seed=8))
    offset = np.abs(KERNEL - np.asarray(start.kernel)).max()
    np.testing.assert_allclose(offset, np.abs(KERNEL).max(), rtol=1e-4)


def test_the_experts_of_full_moe_share_out_the_dense_gradient():
    """methods.md 2: at the start the experts' gradients add up to that of full fine-tuning."""
    spec, dense = method_spec("full_moe"), method_spec("full")
    start = START(KERNEL, spec, jax.random.key(0))

    def loss(arrays, spec):
        y, _ = apply_layer(X, start.kernel, arrays, start.scale, spec, EVAL)
        return jnp.square(y).mean()

    shares = jax.jit(jax.grad(loss), static_argnums=1)(start.factors, spec)["kernels"]
    whole = jax.jit(jax.grad(loss), static_argnums=1)({"kernels": KERNEL[None]}, dense)["kernels"]
    assert_close(shares.sum(0), whole[0], 1e-5)


@pytest.mark.slow
def test_padding_is_left_out_of_the_localized_balance():
    spec = method_spec("loramoe", delta=0.2)
    start = START(KERNEL, spec.replace(total_rank=8), jax.random.key(0))
    x, types = X.reshape(4, 10, IN), jnp.array([0, 1, 1, 0])
    mask = np.arange(10) < np.array([[10], [7], [4], [2]])

    def aux_of(spec, x, mask):
        ctx = Context(mask=mask, task_types=types)
        return APPLY(x, KERNEL, start.factors, start.scale, spec, ctx)[1].aux_loss

    other = np.where(mask[..., None], x, 5.0)
    assert_close(aux_of(spec, x, mask), aux_of(spec, other, mask), 1e-6)
    counting = spec.replace(count_padding=True)
    assert abs(aux_of(counting, x, mask) - aux_of(counting, other, mask)) > 1e-4
