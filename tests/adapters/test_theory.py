"""Lemma 2.2 and theorem 3.2: LoRA experts train as the upcycled experts they stand for.

Expert i of a LoRA mixture is the kernel W_i = W + s a_i b_i. An upcycled layer (`full_moe`) with
these kernels and the same router computes the same, and its gradients g_i say all about the others:
those of a_i and b_i, and what a step of them makes of W_i.
"""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.adapters.adapter import apply_layer, init_adapter
from goat_jax.adapters.context import Context
from goat_jax.adapters.methods import method_spec
from goat_jax.core import scaling
from goat_jax.core.initializers import kaiming_uniform
from tiers import each

IN, OUT, EXPERTS, ACTIVE, TOKENS = 24, 16, 4, 2, 60
SIZES = {"num_experts": EXPERTS, "top_k": ACTIVE}
START = jax.jit(init_adapter, static_argnums=1)
UPCYCLED = method_spec("full_moe", **SIZES)


def made(key, *shape):
    return jax.random.normal(jax.random.key(key), shape, jnp.float32)


@cache
def mixture(method, width=OUT, **options):
    """A LoRA mixture on a random kernel, away from its start so that no factor is zero."""
    spec = method_spec(method, total_rank=8, **SIZES, **options)
    start = START(made(0, IN, width) / IN**0.5, spec, jax.random.key(1))
    factors = {
        name: array + 0.02 * made(index + 2, *array.shape)
        for index, (name, array) in enumerate(sorted(start.factors.items()))
    }
    return spec, start.kernel, factors, start.scale


def kernels_of(kernel, factors, scale):
    return kernel[None] + scale[:, None, None] * factors["a"] @ factors["b"]


def loss(arrays, spec, kernel, scale):
    """A loss that is not quadratic in the output, with the balance loss."""
    x, target = made(10, TOKENS, IN), made(11, TOKENS, kernel.shape[-1])
    y, report = apply_layer(x, kernel, arrays, scale, spec, Context())
    return jnp.square(jnp.tanh(y) - target).sum() / TOKENS + 0.1 * report.aux_loss


gradients = jax.jit(jax.value_and_grad(loss), static_argnums=1)


def upcycled(kernel, factors, scale):
    """The arrays of the mixture with whole kernels that computes the same, and its constants."""
    arrays = {"kernels": kernels_of(kernel, factors, scale), "router": factors["router"]}
    return arrays, (UPCYCLED, kernel[:0], jnp.ones(EXPERTS))


METHODS = {
    "goat": {},
    "goat, published scale": {"scale": "alpha_over_rank"},
    "goat_plus": {},
    "molora": {"scale": "theory"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_the_experts_are_those_of_whole_kernels(name):
    """dL/da_i = s g_i b_i^T and dL/db_i = s a_i^T g_i; the router's are the same."""
    spec, kernel, factors, scale = mixture(name.split(",")[0], **METHODS[name])
    whole, constants = upcycled(kernel, factors, scale)
    mine, own = gradients(factors, spec, kernel, scale)
    theirs, g = gradients(whole, *constants)
    assert mine == pytest.approx(float(theirs), rel=1e-6)
    s = scale[:, None, None]
    expected = {
        "a": s * g["kernels"] @ factors["b"].mT,
        "b": s * factors["a"].mT @ g["kernels"],
        "router": g["router"],
    }
    assert own.keys() == expected.keys()
    for part, gradient in own.items():
        for i in range(EXPERTS) if part != "router" else [slice(None)]:
            size = np.abs(expected[part][i]).max()
            assert size > 1e-3
            np.testing.assert_allclose(gradient[i] / size, expected[part][i] / size, atol=1e-5)


@pytest.mark.parametrize("name", each(METHODS, ["goat"]))
def test_a_step_moves_every_expert_by_its_equivalent_gradient(name):
    """Lemma 2.2: W_i moves by -mu s^2 (a a^T g + g b^T b), and by s^3 mu^2 g b^T a^T g more."""
    spec, kernel, factors, scale = mixture(name.split(",")[0], **METHODS[name])
    whole, constants = upcycled(kernel, factors, scale)
    (_, own), (_, g) = gradients(factors, spec, kernel, scale), gradients(whole, *constants)
    a, b, g, s = (
        np.asarray(each, np.float64)
        for each in (factors["a"], factors["b"], g["kernels"], scale[:, None, None])
    )
    turned = [np.swapaxes(each, 1, 2) for each in (a, b)]
    equivalent = s**2 * (a @ turned[0] @ g + g @ turned[1] @ b)
    second = s**3 * (g @ turned[1]) @ (turned[0] @ g)
    distances = []
    for mu in (1e-2, 1e-3, 1e-4):
        moved = s * (a - mu * np.asarray(own["a"])) @ (b - mu * np.asarray(own["b"])) - s * a @ b
        distances.append(np.abs(moved / -mu - equivalent).max() / np.abs(equivalent).max())
        np.testing.assert_allclose(
            moved, -mu * equivalent + mu**2 * second, atol=1e-5 * np.abs(moved).max()
        )
    assert distances[1] == pytest.approx(distances[0] / 10, rel=0.02)  # of first order in the step
    assert distances[2] < 1e-4 + distances[0] / 90


@pytest.mark.slow
def test_experts_of_aligned_gradients_train_as_whole_kernels():
    """Theorem 3.2: where s^2 a a^T = s^2 b^T b = 1/2, the equivalent gradient is g itself.

    Then the mixture follows the upcycled one for several steps, up to what is of second order: at
    half the rate the experts move half as far, and end half as far from the kernels, relatively.
    """
    spec = method_spec("molora", total_rank=EXPERTS * IN, scale="theory", **SIZES)
    start = START(made(0, IN, IN) / IN**0.5, spec, jax.random.key(1))
    scale, size = start.scale, (2.0 * start.scale[0] ** 2) ** -0.5
    turns = jnp.stack([jnp.linalg.qr(made(20 + n, IN, IN))[0] for n in range(2 * EXPERTS)])
    factors = {
        "a": size * turns[:EXPERTS],
        "b": size * turns[EXPERTS:],
        "router": start.factors["router"],
    }
    whole, constants = upcycled(start.kernel, factors, scale)

    @partial(jax.jit, static_argnums=2)
    def trained(arrays, mu, *constants):
        def step(arrays, _):
            g = jax.grad(loss)(arrays, *constants)
            return jax.tree.map(lambda array, own: array - mu * own, arrays, g), None

        return jax.lax.scan(step, arrays, length=8)[0]

    distances, ways = [], []
    for mu in (0.01, 0.005, 0.0025):
        mine = trained(factors, mu, spec, start.kernel, scale)
        theirs = trained(whole, mu, *constants)
        apart = kernels_of(start.kernel, mine, scale) - theirs["kernels"]
        ways.append(float(jnp.linalg.norm(theirs["kernels"] - whole["kernels"])))
        distances.append(float(jnp.linalg.norm(apart)) / ways[-1])
    assert distances[0] < 0.05 and min(ways) > 0.02, (distances, ways)
    for larger, smaller in itertools.pairwise(distances):
        assert larger / smaller == pytest.approx(2, rel=0.1), distances


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 8, 32])
def test_the_theorys_scale_matches_the_mean_and_does_not_minimise_the_error(rank):
    """Checks the claims of docs/mathematics.md about s = sqrt(3 I eta / R) on random starts."""
    width, draws = 256, 200
    keys = jax.random.split(jax.random.key(3), draws)
    a = np.stack([kaiming_uniform(key, (width, rank), fan_in=width) for key in keys], dtype=float)
    g = np.asarray(made(4, width, 4), float)
    once = a @ (np.swapaxes(a, 1, 2) @ g)  # of scale 1: a a^T g

    def error(scale):
        return np.sqrt(np.square(scale**2 * once - g).sum((1, 2)).mean() / np.square(g).sum())

    theory = float(scaling.theory(1, rank, width, 1.0)[0])
    along = (theory**2 * once * g).sum((1, 2)).mean() / np.square(g).sum()
    assert along == pytest.approx(1, abs=0.1)
    assert error(theory) == pytest.approx(((width - 0.2) / rank) ** 0.5, rel=0.1)
    least = (3 * width / (width + rank - 0.2)) ** 0.5
    assert least == pytest.approx(3**0.5, rel=0.07)
    nearby = [error(least * factor) for factor in (0.7, 1.0, 1.4)]
    assert min(nearby) == nearby[1] < 1 < error(theory)
