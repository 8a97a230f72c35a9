"""Dispatch: equal to the plain sum over experts, and never larger than it has to be."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from goat_jax.core.dispatch import dispatch
from goat_jax.core.routers import route_top_k, router_logits
from goat_jax.testing import assert_close

TOKENS, IN, OUT, EXPERTS, RANK = 41, 19, 31, 5, 2


def random_inputs(dtype=np.float32, tokens=(TOKENS,), seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*tokens, IN))
    a, b = rng.normal(size=(EXPERTS, IN, RANK)), rng.normal(size=(EXPERTS, RANK, OUT))
    gate = rng.uniform(size=(*tokens, EXPERTS)) * (rng.uniform(size=(*tokens, EXPERTS)) < 0.4)
    wide = [jnp.asarray(v, jnp.float32) for v in (x, a, b, gate)]
    return [wide[0].astype(dtype), *wide[1:]]


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
    assert_close(dispatch(*inputs), exact(*inputs), 1e-6)
    assert_close(dispatch(*inputs), full_outputs(*inputs), 1e-6)


def test_copies_of_x_go_to_their_own_expert():
    x, a, b, gate = random_inputs()
    copies = jnp.stack([x * (i + 1) for i in range(EXPERTS)])
    assert_close(dispatch(copies, a, b, gate), exact(copies, a, b, gate), 1e-6)
    assert_close(dispatch(jnp.stack([x] * EXPERTS), a, b, gate), dispatch(x, a, b, gate), 1e-6)


def test_gradients_equal_those_of_the_definition():
    inputs = random_inputs()
    weigh = np.random.default_rng(5).normal(size=(TOKENS, OUT)).astype(np.float32)
    ours, theirs = (
        jax.jit(jax.grad(lambda *v, f=f: (f(*v) * weigh).sum(), argnums=(0, 1, 2, 3)))(*inputs)
        for f in (dispatch, full_outputs)
    )
    assert_close(ours, theirs, 2e-6)
    idle = np.asarray(inputs[3]).sum(0) == 0
    assert not idle.any(), "every expert is used by some token here"
    # An expert that no token selects gets exactly nothing.
    gate = inputs[3].at[:, 2].set(0.0)
    a_gradient = jax.jit(jax.grad(lambda a: dispatch(inputs[0], a, inputs[2], gate).sum()))
    gradient = np.asarray(a_gradient(inputs[1]))
    assert not gradient[2].any() and gradient[[0, 1, 3, 4]].any((1, 2)).all()


def test_bfloat16_tokens_keep_their_dtype_and_accuracy():
    inputs = random_inputs(jnp.bfloat16)
    delta = dispatch(*inputs)
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
    router = jnp.asarray(np.random.default_rng(1).normal(size=(IN, EXPERTS)), jnp.float32)
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
    assert program.memory_analysis().temp_size_in_bytes < 4 * whole

    # The check sees the array where there is one.
    naive = compiled(full_outputs)
    assert largest_array(naive.as_text()) >= whole
    assert naive.memory_analysis().temp_size_in_bytes > 4 * whole
