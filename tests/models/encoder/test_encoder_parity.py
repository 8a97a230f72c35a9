"""Encoders against torch: logits, hidden states and gradients of tiny random models."""

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from goat_jax.adapters.context import EVAL
from goat_jax.core.attention import Visible
from goat_jax.models.encoder.model import Encoder
from goat_jax.models.load import load_model
from goat_jax.nn.attention import AttentionPlan
from kinds import expect
from tiers import each

TOLERANCE = 1e-5
FAMILIES = pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
CASES = [
    ("bert", {}),
    ("bert", {"num_labels": 1, "pad_token_id": 3, "type_vocab_size": 3, "layer_norm_eps": 1e-5}),
    ("bert", {"num_labels": 3, "hidden_act": "gelu_new", "type_vocab_size": 1}),
    ("bert", {"hidden_act": "relu", "num_hidden_layers": 1, "layer_norm_eps": 0.1}),
    ("bert", {"hidden_act": "silu", "hidden_size": 24, "num_attention_heads": 3}),
    ("roberta", {}),
    ("roberta", {"num_labels": 1, "pad_token_id": 0, "type_vocab_size": 1, "layer_norm_eps": 0.1}),
    ("roberta", {"num_labels": 3, "pad_token_id": 5, "type_vocab_size": 3, "hidden_act": "relu"}),
    ("roberta", {"hidden_act": "gelu_new", "num_hidden_layers": 1, "layer_norm_eps": 1e-5}),
    ("roberta", {"hidden_act": "silu"}),
    ("distilbert", {}),
    ("distilbert", {"num_labels": 1, "pad_token_id": 4, "activation": "relu"}),
    ("distilbert", {"num_labels": 3, "sinusoidal_pos_embds": True, "activation": "gelu_new"}),
    ("distilbert", {"n_layers": 1, "activation": "silu"}),
]


def _name(case) -> str:
    return "-".join([case[0], *(f"{key}={value}" for key, value in case[1].items())])


def _close(ours, theirs, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=0, atol=tolerance)


PLAIN = [(family, {}) for family in ("bert", "roberta", "distilbert")]


@pytest.mark.parametrize("case", each(CASES, PLAIN), ids=_name)
def test_logits_and_hidden_states_are_torchs(case, save_torch, make_batch, run_torch, run_model):
    family, settings = case
    checkpoint = save_torch(family, **settings)
    loaded = load_model(checkpoint.folder, key=jax.random.key(0))
    assert loaded.fresh == ()
    config = loaded.model.config
    batch = make_batch(config.pad_token_id, config.type_vocab_size)
    with torch.no_grad():
        expected = run_torch(checkpoint.torch, batch, output_hidden_states=True)
    assert expected.logits.abs().max() > 0.1  # the comparison says something
    hidden, logits = run_model(loaded.model, batch)
    assert logits.dtype == np.float32
    _close(hidden, expected.hidden_states[-1])
    _close(logits, expected.logits)


@pytest.mark.slow
@FAMILIES
def test_every_layer_is_torchs(family, save_torch, make_batch, run_torch, jit):
    checkpoint = save_torch(family, seed=1)
    ours = expect(Encoder, load_model(checkpoint.folder, key=jax.random.key(0)).model)
    batch = make_batch(ours.config.pad_token_id, ours.config.type_vocab_size)
    with torch.no_grad():
        expected = run_torch(checkpoint.torch, batch, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"] != 0
    attend = AttentionPlan().attend(Visible(real=mask), *[mask.shape[1]] * 2)
    graph, state = nnx.split(ours.layers.runs[0])
    layer = jit(lambda state, x: nnx.merge(graph, state)(x, EVAL, attend))
    states = [ours.embeddings(batch["input_ids"], batch["token_type_ids"])]
    for number in range(ours.config.num_layers):
        states.append(layer(jax.tree.map(lambda a, n=number: a[n], state), states[-1]))
    assert len(states) == len(expected)
    for one, other in zip(states, expected, strict=True):
        _close(one, other)


@pytest.mark.slow
@FAMILIES
def test_token_types_are_zero_unless_given(family, save_torch, make_batch, run_torch, run_model):
    checkpoint = save_torch(family, seed=2)
    batch = make_batch(1, 2)
    del batch["token_type_ids"]
    ours = load_model(checkpoint.folder, key=jax.random.key(0)).model
    with torch.no_grad():
        _close(run_model(ours, batch)[1], run_torch(checkpoint.torch, batch).logits)


@pytest.mark.slow
@FAMILIES
def test_every_gradient_is_torchs(family, save_torch, make_batch, run_torch, by_torch_name, jit):
    checkpoint = save_torch(family, seed=3)
    ours = load_model(checkpoint.folder, key=jax.random.key(0)).model
    batch, labels = make_batch(ours.config.pad_token_id, 2), np.array([0, 1, 1, 0, 1, 0])
    for module in checkpoint.torch.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # torch keeps the pad token's gradient at zero
    logits = run_torch(checkpoint.torch, batch).logits
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()

    graph, state = nnx.split(ours)

    def loss(state, batch):
        logits = nnx.merge(graph, state)(**batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradient_of = jit(jax.grad(loss))
    gradients = by_torch_name(nnx.merge(graph, gradient_of(state, batch)))
    expected = {name: parameter.grad for name, parameter in checkpoint.torch.named_parameters()}
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        _close(gradient, expected[name])

    batch["attention_mask"][2] = 0  # a row that may attend to nothing
    leaves = jax.tree.leaves(gradient_of(state, batch))
    assert all(np.isfinite(leaf).all() for leaf in leaves)


@FAMILIES
def test_parameters_are_torchs_bit_by_bit(family, save_torch, by_torch_name):
    checkpoint = save_torch(family, seed=4)
    ours = by_torch_name(load_model(checkpoint.folder, key=jax.random.key(0)).model)
    expected = {name: value.detach() for name, value in checkpoint.torch.named_parameters()}
    assert set(ours) == set(expected)
    assert sum(a.size for a in ours.values()) == checkpoint.torch.num_parameters()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, expected[name].numpy(), err_msg=name)
