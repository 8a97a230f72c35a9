"""A base in few bits: its error, its memory, its gradients, and a run on it."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from goat_jax.adapters.context import Context
from goat_jax.adapters.methods import METHODS, method_spec
from goat_jax.config.run import ModelConfig
from goat_jax.errors import UserError
from goat_jax.injection.inject import inject
from goat_jax.injection.quantize_base import quantize_base
from goat_jax.models.decoder.mixture import MixtureConfig
from goat_jax.models.decoder.model import Decoder, tiny_decoder_config
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.nn.dense import Dense, merge_model, split_model
from goat_jax.nn.named_modules import find_modules
from goat_jax.nn.quantized_kernel import KINDS, QuantizedForm, dequantize, quantize, quantized_dot
from tiers import first_of_each

qwix = pytest.importorskip("qwix")

# Relative errors of a normal kernel: int8 about 2^-8 / sqrt(3) of a tile's largest entry (2.6
# deviations), nf4 near QLoRA's own 0.09.
ERRORS = {"int8": (0.004, 0.008), "nf4": (0.07, 0.11)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_scales_stand_for_the_kernel(kind):
    kernel = jax.random.normal(jax.random.key(0), (192, 80))
    codes, scales = quantize(kernel, kind)
    assert codes.shape == (192, 80) and scales.shape == (3, 80) and scales.dtype == jnp.float32
    low, high = ERRORS[kind]
    off = jnp.linalg.norm(dequantize(codes, scales, kind) - kernel) / jnp.linalg.norm(kernel)
    assert low < off < high
    exact = qwix.dequantize(qwix.QArray(codes, scales, None, KINDS[kind].qwix))
    np.testing.assert_array_equal(dequantize(codes, scales, kind), exact)


@pytest.mark.parametrize("kind", KINDS)
def test_the_product_and_its_gradient_use_the_same_kernel(kind):
    kernel = jax.random.normal(jax.random.key(0), (24, 16))
    codes, scales = quantize(kernel, kind)
    assert scales.shape == (3, 16)  # tiles of 8, what 24 has in common with 64
    x, weight = jax.random.normal(jax.random.key(1), (2, 5, 24)), dequantize(codes, scales, kind)
    both = [
        jax.value_and_grad(lambda x, f=f: jnp.sin(f(x)).sum())(x)
        for f in (
            lambda x: quantized_dot(x, codes, scales, QuantizedForm(kind)),
            lambda x: x @ weight,
        )
    ]
    np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-6)
    np.testing.assert_allclose(both[0][1], both[1][1], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def model_with_goat():
    config = tiny_config(num_layers=3, hidden_size=64)
    model = Encoder(config, rngs=nnx.Rngs(0))
    inject(model, METHODS["goat"].spec, key=jax.random.key(1), modules_to_save=("classifier",))
    return model


def dequantized(model):
    """A copy of a model with the float kernels that its codes stand for."""
    plain = nnx.clone(model)
    for _, dense in nnx.iter_graph(plain):
        if isinstance(dense, Dense) and dense.quantized is not None:
            dense.kernel, dense.quantized = nnx.Param(dense.weights()), nnx.data(None)
    return plain


@pytest.mark.slow
@pytest.mark.parametrize("kind", first_of_each(KINDS, lambda _: (), first=["nf4"]))
def test_a_quantised_model_computes_with_what_its_codes_say(kind, model_with_goat):
    """Its outputs are those of a model whose kernels are the dequantised ones; stacks included."""
    model, tokens = nnx.clone(model_with_goat), jnp.arange(12).reshape(2, 6) + 5
    report = quantize_base(model, kind)
    plain = dequantized(model)
    mask = jnp.ones_like(tokens)
    run = nnx.jit(lambda model: model(tokens, mask, jnp.zeros_like(tokens), ctx=Context()))
    outputs = [run(model), run(plain)]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)
    low, high = ERRORS[kind]
    errors = np.concatenate(list(report.errors.values()))
    assert (low < errors).all() and (errors < 1.3 * high).all()
    graph, trainable, base = split_model(model)
    kernels = [p for p, _ in jax.tree_util.tree_leaves_with_path(base) if "kernel" in str(p)]
    assert (
        all("classifier" in str(path) or "pooler" in str(path) for path in kernels) or not kernels
    )
    assert merge_model(graph, trainable, base).embeddings is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("nf4", "goat"),
        *(pytest.param("int8", m, marks=pytest.mark.nightly) for m in ("lora", "dora")),
    ],
)
def test_adapters_on_the_experts_of_a_quantized_mixture(kind, method):
    """Codes of each expert's kernel; outputs and the adapters' gradients as with float kernels."""
    mixture = MixtureConfig(4, 2, 16, (True, False, True), bias=True, clamp=(1.7, 7.0))
    config = tiny_decoder_config(family="gpt_oss", num_layers=3, mixture=mixture)
    model = Decoder(config, rngs=nnx.Rngs(0))
    spec, targets = method_spec(method, total_rank=8), ["gate_proj", "down_proj"]
    inject(model, spec, targets, key=jax.random.key(1), modules_to_save=())
    kernels = [ref.module.kernel[...] for ref in find_modules(model) if "experts" in ref.pattern]
    quantize_base(model, kind)
    experts = [ref.module for ref in find_modules(model) if "experts" in ref.pattern]
    assert [dense.weights().shape[:2] for dense in experts] == [(1, 4)] * 6
    low, high = ERRORS[kind]
    for dense, kernel in zip(experts, kernels, strict=True):
        off = np.linalg.norm(dense.weights() - kernel, axis=(-2, -1))
        shares = off / np.linalg.norm(kernel, axis=(-2, -1))
        assert (0.5 * low < shares).all() and (shares < 1.3 * high).all()
    tokens = jnp.arange(12).reshape(2, 6) + 5

    def values(model):
        graph, trainable, base = split_model(model)

        def loss(trainable, base):
            logits = merge_model(graph, trainable, base)(tokens, ctx=Context())
            return jnp.square(logits).mean()

        return jax.jit(jax.value_and_grad(loss))(trainable, base)

    found, expected = values(model), values(dequantized(model))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_kernel_that_is_trained_in_full_is_not_quantized():
    model = Encoder(tiny_config(num_layers=1), rngs=nnx.Rngs(0))
    spec = method_spec("full", whole_model=False)
    inject(model, spec, ["query"], key=jax.random.key(1), modules_to_save=("classifier",))
    report = quantize_base(model, "int8")
    assert report.errors and not any("query" in name for name in report.errors)
    whole = Encoder(tiny_config(num_layers=1), rngs=nnx.Rngs(0))
    inject(whole, method_spec("full"), key=jax.random.key(1), modules_to_save=("classifier",))
    with pytest.raises(UserError, match=r"model.quantize 'int8' finds no frozen kernel: leave it"):
        quantize_base(whole, "int8")


@pytest.mark.nightly  # test_mesh_losses.py reads the program of a mesh
def test_the_step_keeps_no_float_kernel():
    """The compiled gradient needs fewer temporary bytes than the stack's float kernels have."""
    config = tiny_config(num_layers=8, hidden_size=256, intermediate_size=1024, num_heads=4)
    model = Encoder(config, rngs=nnx.Rngs(0))
    inject(model, METHODS["lora"].spec, ["query"], key=jax.random.key(1), modules_to_save=())
    report = quantize_base(model, "nf4")
    graph, trainable, base = split_model(model)
    tokens = jnp.zeros((1, 4), jnp.int32)

    def loss(trainable, base):
        model = merge_model(graph, trainable, base)
        return model(tokens, jnp.ones_like(tokens), tokens, ctx=Context()).sum()

    compiled = jax.jit(jax.grad(loss)).lower(trainable, base).compile()
    assert report.before > 20e6 and report.after < 0.15 * report.before
    memory: Any = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 0.6 * report.before  # 1.48 if autodiff keeps them, 0.46 now


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"model.quantize 'int4' is not known .* none, int8, nf4"):
        ModelConfig("m", quantize="int4")
