"""Mixtures of experts: the blocks, and adapters on the experts' kernels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from goat_jax import inject, method_spec
from goat_jax.adapters.context import Context
from goat_jax.core.expert_blocks import arrange, choose_experts
from goat_jax.errors import UserError
from goat_jax.interop.merged import fold_adapters
from goat_jax.models.decoder.mixture import MixtureConfig
from goat_jax.models.decoder.model import Decoder, tiny_decoder_config
from goat_jax.nn.dense import run_model
from goat_jax.nn.named_modules import find_modules, reports_by_name

IDS = jnp.asarray(np.random.default_rng(0).integers(3, 60, (2, 9)))
EXPERTS = ["gate_proj", "down_proj"]


def tiny():
    """A decoder of one layer with four experts, of which two compute each token."""
    config = tiny_decoder_config(
        family="olmoe", num_layers=1, mixture=MixtureConfig(4, 2, 16, (True,))
    )
    return Decoder(config, rngs=nnx.Rngs(0))


@jax.jit
def _reported(graph, state):
    model = nnx.merge(graph, state)
    return run_model(model, IDS, ctx=Context(mask=IDS > 10))


def reported(model):
    """Logits, and the reports by name."""
    with jax.default_matmul_precision("highest"):
        logits, sown = _reported(*nnx.split(model))
    return np.asarray(logits), reports_by_name(model, sown)


def test_every_assignment_has_a_slot_in_a_block_of_its_expert():
    chosen = jax.random.randint(jax.random.key(0), (150,), 0, 5) * 2
    blocks = arrange(chosen, 11)
    experts = np.repeat(blocks.experts, blocks.sources.shape[1])
    np.testing.assert_array_equal(blocks.sources.reshape(-1)[blocks.places], np.arange(150))
    np.testing.assert_array_equal(experts[blocks.places], chosen)
    assert (np.asarray(blocks.sources) < 150).sum() == 150


def test_weights_of_chosen_experts_sum_to_one_or_are_those_of_all():
    logits = jax.random.normal(jax.random.key(0), (3, 6))
    probs = np.asarray(jax.nn.softmax(logits))
    for normalize in (True, False):
        weights, experts = choose_experts(logits, 2, normalize)
        top = np.take_along_axis(probs, np.asarray(experts), 1)
        expected = top / top.sum(1, keepdims=True) if normalize else top
        np.testing.assert_allclose(weights, expected, rtol=1e-5)


@pytest.mark.slow
def test_each_expert_s_kernel_has_an_adapter_that_starts_from_its_own_svd():
    model = tiny()
    (kernel,) = [
        np.asarray(ref.module.kernel[...])
        for ref in find_modules(model)
        if ref.pattern.endswith("experts.{}.down_proj")
    ]
    spec = method_spec("goat", total_rank=4, num_experts=2, top_k=1)
    report = inject(model, spec, EXPERTS, key=jax.random.key(1))
    assert report.adapter_parameters == 4 * 2 * (4 * (32 + 16)) + 4 * 2 * (32 + 16)
    (adapted,) = [
        ref for ref in find_modules(model) if ref.pattern.endswith("experts.{}.down_proj")
    ]
    adapter: Any = adapted.module.adapter
    a = np.asarray(adapter.a[...])  # (L, X, E, I, R)
    top = np.linalg.svd(kernel[0])[0][..., :, :2]
    found = a[0, :, 0] / np.linalg.norm(a[0, :, 0], axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(np.einsum("xir,xir->xr", top, found)), 1, atol=1e-4)
    _, reports = reported(model)
    load = np.asarray(reports["model.layers.{}.mlp.experts.{}.down_proj"].load)
    assert load.shape == (4, 2)
    assert np.all(np.isclose(load.sum(1), 1) | (load.sum(1) == 0))

    graph, state = nnx.split(model.layers.runs[0].mixture)
    mixture = nnx.merge(graph, jax.tree.map(lambda array: array[0], state))
    x = jax.random.normal(jax.random.key(3), (2, 5, 32))
    with jax.default_matmul_precision("highest"):
        weights, chosen = choose_experts(mixture.router(x), 2, normalize=True)
        expected = 0
        for number in range(4):
            graph, state = nnx.split(mixture.experts)
            expert = nnx.merge(graph, jax.tree.map(lambda array, at=number: array[at], state))
            share = jnp.where(chosen == number, weights, 0).sum(-1)
            expected += share[..., None] * expert(x, Context())
        found = jax.jit(lambda x: mixture(x, Context()))(x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_folded_experts_compute_what_the_adapters_did():
    model = tiny()
    inject(model, method_spec("lora", total_rank=2), EXPERTS, key=jax.random.key(1))
    plain, _ = reported(model)
    for ref in find_modules(model):
        adapter: Any = ref.module.adapter
        if adapter is not None:
            b = adapter.b
            b.set_value(0.3 * jax.random.normal(jax.random.key(2), b.shape))
    adapted, _ = reported(model)
    fold_adapters(model)
    assert not np.allclose(adapted, plain, atol=1e-2)
    np.testing.assert_allclose(reported(model)[0], adapted, atol=1e-4 * np.abs(adapted).max())


def test_a_target_that_names_some_experts_of_a_layer_is_refused():
    targets = r".*experts\.[01]\.up_proj"
    model = nnx.eval_shape(tiny)
    with pytest.raises(UserError, match=r"experts.0.up_proj and .*experts.2.up_proj are one array"):
        inject(model, method_spec("lora"), targets, key=jax.random.key(0))
