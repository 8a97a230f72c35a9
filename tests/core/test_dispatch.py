"""Dispatch: equal to the plain sum over experts, and never larger than it has to be."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from goat_jax.core.dispatch import dispatch
from goat_jax.core.products import router_logits
from goat_jax.core.routers import route_top_k
from goat_jax.testing import assert_close
from goat_jax.typing import DTypeLike
from kinds import present

TOKENS, IN, OUT, EXPERTS, RANK = 41, 19, 31, 5, 2
DISPATCH = jax.jit(dispatch)


def random_inputs(dtype: DTypeLike = np.float32, tokens=(TOKENS,), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*tokens, IN))
    a, b = rng.normal(size=(EXPERTS, IN, RANK)), rng.normal(size=(EXPERTS, RANK, OUT))
    gate = rng.uniform(size=(*tokens, EXPERTS)) * (rng.uniform(size=(*tokens, EXPERTS)) < 0.4)
    return [jnp.asarray(x.astype(dtype)), *(v.astype(np.float32) for v in (a, b, gate))]


def full_outputs(x, a, b, gate):
    """The definition: every expert's whole output, weighted. x may hold a copy per expert."""
    copies = x if x.ndim == gate.ndim + 1 else jnp.broadcast_to(x, (EXPERTS, *x.shape))
    outputs = jnp.einsum("E...I,EIR,ERO->E...O", copies, a, b)
    return jnp.einsum("E...O,...E->...O", outputs, gate)


def exact(*arrays):
    x, a, b, gate = (np.asarray(v, np.float64) for v in arrays)
    copies = x if x.ndim == gate.ndim + 1 else [x] * EXPERTS
    return sum(gate[..., [i]] * (copies[i] @ a[i] @ b[i]) for i in range(EXPERTS))


@pytest.mark.parametrize("tokens", [(TOKENS,), (3, 4)])
def test_equals_the_weighted_sum_of_full_expert_outputs(tokens):
    inputs = random_inputs(tokens=tokens)
    assert_close(DISPATCH(*inputs), exact(*inputs), 1e-6)


def test_copies_of_x_go_to_their_own_expert():
    x, a, b, gate = random_inputs()
    copies = np.stack([x * (i + 1) for i in range(EXPERTS)])
    assert_close(DISPATCH(copies, a, b, gate), exact(copies, a, b, gate), 1e-6)


def test_gradients_equal_those_of_the_definition():
    inputs = random_inputs()
    weigh = np.random.default_rng(5).normal(size=(TOKENS, OUT)).astype(np.float32)
    inputs[3][:, 2] = 0.0  # no token selects this one
    ours, theirs = (
        jax.jit(jax.grad(lambda *v, f=f: (f(*v) * weigh).sum(), argnums=(0, 1, 2, 3)))(*inputs)
        for f in (dispatch, full_outputs)
    )
    assert_close(ours, theirs, 2e-6)
    for factor in ours[1:3]:
        used = np.asarray(factor).any((1, 2))
        np.testing.assert_array_equal(used, [True, True, False, True, True])


def test_bfloat16_tokens_keep_their_dtype_and_accuracy():
    inputs = random_inputs(ml_dtypes.bfloat16)
    delta = DISPATCH(*inputs)
    assert delta.dtype == jnp.bfloat16
    # Three roundings to 8 bits (b, the hidden values, the result), averaged over E * R terms.
    assert_close(delta, exact(*inputs), 2**-7)


def loss(function):
    def of(x, a, b, router):
        gate = route_top_k(router_logits(x, router), 2).weights
        return jnp.square(function(x, a, b, gate)).sum()

    return of


def compiled(function):
    """The compiled value and all gradients of a routed layer built on a dispatch."""
    x, a, b, _ = random_inputs()
    router = np.random.default_rng(1).normal(size=(IN, EXPERTS)).astype(np.float32)
    step = jax.value_and_grad(loss(function), argnums=(0, 1, 2, 3))
    return jax.jit(step).lower(x, a, b, router).compile()


def largest_array(text):
    """Elements of the largest array anywhere in a compiled program."""
    shapes = re.findall(r"\b[a-z]+[0-9]+\[([0-9,]+)\]", text)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


def test_nothing_compiled_is_as_large_as_all_expert_outputs():
    """No [E, S, O] array: not forward, not backward, not fused with anything."""
    whole = EXPERTS * TOKENS * OUT
    # The factors, activations in rank space and the output, all of which must exist.
    needed = max(TOKENS * OUT, EXPERTS * TOKENS * RANK, EXPERTS * IN * RANK, EXPERTS * RANK * OUT)
    program = compiled(dispatch)
    assert largest_array(program.as_text()) <= needed < whole
    assert present(program.memory_analysis()).temp_size_in_bytes < 4 * whole

    # The check sees the array where there is one.
    naive = compiled(full_outputs)
    assert largest_array(naive.as_text()) >= whole
    assert present(naive.memory_analysis()).temp_size_in_bytes > 4 * whole
