"""Alignment is what two real steps of gradient descent show: of the adapter, and of the kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from goat_jax.adapters.context import Context
from goat_jax.adapters.methods import method_spec
from goat_jax.analysis.alignment import compared, gradient_alignment, mean_kernels
from goat_jax.injection.inject import inject
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.nn.dense import Factor
from goat_jax.nn.named_modules import find_modules
from goat_jax.training.losses import CLASSIFICATION
from kinds import present

RATE = 1e-3
EXPERTS = {"num_experts": 4, "top_k": 2}


def batch():
    keys = jax.random.split(jax.random.key(5), 2)
    return {
        "input_ids": jax.random.randint(keys[0], (6, 9), 5, 40),
        "attention_mask": jnp.ones((6, 9), jnp.int32),
        "token_type_ids": jnp.zeros((6, 9), jnp.int32),
        "labels": jax.random.randint(keys[1], (6,), 0, 2),
        "weights": jnp.ones(6),
    }


def adapted(method, **options):
    model = Encoder(tiny_config(), rngs=nnx.Rngs(0))
    spec = method_spec(method, total_rank=8, **options)
    inject(model, spec, key=jax.random.key(1))
    return model


def stepped(model, moved):
    """The model after a step of gradient descent on the variables that a filter selects."""
    graph, variables, rest = nnx.split(model, moved, ...)

    def loss_of(variables):
        run = nnx.merge(graph, variables, rest)
        loss, _, _ = CLASSIFICATION.loss(run, batch(), Context.of_batch(batch(), None, None))
        return loss / 6

    gradients = jax.jit(jax.grad(loss_of))(variables)
    return nnx.merge(graph, jax.tree.map(lambda v, g: v - RATE * g, variables, gradients), rest)


def kernels_of(model):
    """The frozen kernels (L, I, O) of all adapted layers."""
    refs = [ref for ref in find_modules(model) if ref.module.adapter is not None]
    return {ref.pattern: ref.each(ref.module.weights()) for ref in refs}


def is_kernel(path, _):
    return path[-1] == "kernel" and path[0] == "layers"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lora", {}),
        ("goat", EXPERTS),
        pytest.param("hydralora", {"num_experts": 4}, marks=pytest.mark.nightly),
    ],
)
def test_it_is_what_two_steps_show(method, options):
    model = adapted(method, **options)
    found = gradient_alignment(model, CLASSIFICATION, batch())
    before, after = mean_kernels(model), mean_kernels(stepped(model, Factor))
    frozen, full = kernels_of(model), kernels_of(stepped(model, is_kernel))
    assert found.keys() == before.keys()
    for pattern, layers in found.items():
        want = compared(after[pattern] - before[pattern], full[pattern] - frozen[pattern])
        np.testing.assert_allclose(layers.mean.cosine, want.cosine, atol=2e-3)
        np.testing.assert_allclose(layers.mean.length, want.length, rtol=2e-2)


def test_lemma_2_2_holds_for_a_single_lora():
    model = adapted("pissa")
    (ref,) = [r for r in find_modules(model) if r.pattern.endswith("self.query")]
    gradient = (
        kernels_of(model)[ref.pattern] - kernels_of(stepped(model, is_kernel))[ref.pattern]
    ) / RATE
    adapter = present(ref.module.adapter)
    factors, scale = adapter.factors(), adapter.scale[...]
    a, b = factors["a"][:, 0], factors["b"][:, 0]
    s = scale[:, 0, None, None]
    equivalent = s**2 * (gradient @ b.mT @ b + a @ a.mT @ gradient)
    want = compared(equivalent, gradient)
    found = gradient_alignment(model, CLASSIFICATION, batch())[ref.pattern]
    np.testing.assert_allclose(found.mean.along, want.along, rtol=1e-2)
    np.testing.assert_allclose(found.experts.along[:, 0], want.along, rtol=1e-2)


def test_experts_add_up_to_the_mean_kernel():
    found = gradient_alignment(adapted("goat", **EXPERTS), CLASSIFICATION, batch())
    for layers in found.values():
        assert layers.experts.cosine.shape == (*layers.mean.cosine.shape, 4)
        np.testing.assert_allclose(layers.experts.along.mean(-1), layers.mean.along, rtol=1e-4)


def test_adapters_without_products_are_left_out():
    model = adapted("full")
    assert gradient_alignment(model, CLASSIFICATION, batch()) == {}
    plain = Encoder(tiny_config(), rngs=nnx.Rngs(0))
    kernel = next(r for r in find_modules(plain) if r.pattern.endswith("self.query")).module
    (query,) = [v for name, v in mean_kernels(model).items() if name.endswith("self.query")]
    np.testing.assert_array_equal(query, kernel.weights())
