"""What must hold of an encoder whatever torch says: padding, order of the batch, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from goat_jax.adapters.context import EVAL
from goat_jax.models.encoder import Encoder, tiny_config
from goat_jax.models.load import load_model

FAMILIES = pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
POOLINGS = pytest.mark.parametrize("pooling", ["cls", "mean"])


@pytest.fixture(scope="module")
def model_of(save_torch):
    """A random model of a family; `load_model`'s options."""

    def make(family, **options):
        checkpoint = save_torch(family, num_labels=3, seed=9)
        return load_model(checkpoint.folder, key=jax.random.key(0), **options).model

    return make


@FAMILIES
@POOLINGS
def test_padding_columns_change_nothing(family, pooling, model_of, make_batch, run_model):
    model = model_of(family, pooling=pooling)
    batch = make_batch(model.config.pad_token_id, 2)
    fill = {"input_ids": model.config.pad_token_id, "attention_mask": 0, "token_type_ids": 0}
    wider = {
        name: np.pad(array, ((0, 0), (0, 7)), constant_values=fill[name])
        for name, array in batch.items()
    }
    hidden, logits = run_model(model, batch)
    wide_hidden, wide_logits = run_model(model, wider)
    np.testing.assert_allclose(wide_logits, logits, rtol=0, atol=1e-5)
    np.testing.assert_allclose(wide_hidden[:, :9], hidden, rtol=0, atol=1e-5)


@FAMILIES
def test_rows_do_not_see_each_other(family, model_of, make_batch, run_model):
    model = model_of(family)
    batch = make_batch(model.config.pad_token_id, 2)
    order = np.random.default_rng(0).permutation(6)
    _, logits = run_model(model, batch)
    _, shuffled = run_model(model, {name: array[order] for name, array in batch.items()})
    np.testing.assert_allclose(shuffled, logits[order], rtol=0, atol=1e-6)
    assert np.abs(shuffled - logits).max() > 1e-2


@FAMILIES
@POOLINGS
def test_a_row_of_padding_alone_is_finite(family, pooling, model_of, make_batch, run_model):
    model = model_of(family, pooling=pooling)
    batch = make_batch(model.config.pad_token_id, 2)
    expected = run_model(model, batch)[1]
    batch["input_ids"][2], batch["attention_mask"][2] = model.config.pad_token_id, 0
    hidden, logits = run_model(model, batch)
    assert np.isfinite(hidden).all() and np.isfinite(logits).all()
    rest = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(logits[rest], expected[rest], rtol=0, atol=1e-5)


def test_a_row_of_padding_alone_has_finite_gradients(model_of, make_batch, jit):
    graph, state = nnx.split(model_of("roberta"))
    batch = make_batch(1, 2)
    batch["input_ids"][2], batch["attention_mask"][2] = 1, 0
    gradients = jit(jax.grad(lambda s: nnx.merge(graph, s)(**batch).sum()))(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_mean_pooling_is_the_mean_of_real_tokens(model_of, make_batch, run_model):
    model = model_of("bert", pooling="mean")
    batch = make_batch(0, 2)
    hidden, logits = run_model(model, batch)
    weight = batch["attention_mask"][..., None]
    pooled = (hidden * weight).sum(1) / weight.sum(1)
    dense, out = model.head_dense, model.head_out
    inner = np.tanh(pooled @ np.asarray(dense.kernel[...]) + np.asarray(dense.bias[...]))
    expected = inner @ np.asarray(out.kernel[...]) + np.asarray(out.bias[...])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_roberta_counts_positions_over_real_tokens_from_pad_plus_one():
    model = Encoder(tiny_config("roberta", pad_token_id=3), rngs=nnx.Rngs(0))
    ids = jnp.array([[3, 3, 9, 3, 8, 7], [9, 8, 7, 6, 5, 4]])
    expected = [[3, 3, 4, 3, 5, 6], [4, 5, 6, 7, 8, 9]]
    np.testing.assert_array_equal(model.embeddings.position_ids(ids), expected)


@FAMILIES
def test_bfloat16_weights_make_bfloat16_hidden_states(family, model_of, make_batch, run_model):
    wide, narrow = model_of(family), model_of(family, dtype=jnp.bfloat16)
    batch = make_batch(wide.config.pad_token_id, 2)
    keep = (batch["attention_mask"] != 0)[:, None, None, :]
    x = narrow.embeddings(batch["input_ids"], batch["token_type_ids"])
    assert x.dtype == jnp.bfloat16
    graph, state = nnx.split(narrow.layers.runs[0])
    first = jax.tree.map(lambda a: a[0], state)
    traced = jax.make_jaxpr(lambda s, x: nnx.merge(graph, s)(x, EVAL, keep))(first, x)
    products = [eqn for eqn in _equations(traced.jaxpr) if eqn.primitive.name == "dot_general"]
    assert len(products) == 8  # six projections, two of the attention
    assert {v.aval.dtype for eqn in products for v in eqn.invars} == {jnp.dtype("bfloat16")}
    (hidden, logits), (_, expected) = run_model(narrow, batch), run_model(wide, batch)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 3e-2 * np.abs(expected).max()


def _equations(jaxpr):
    """All equations, also of the functions that are called."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            if hasattr(value, "jaxpr"):
                yield from _equations(value.jaxpr)


def test_torch_is_as_far_from_itself_in_bfloat16(save_torch, model_of, make_batch, run_torch):
    """The bound above is what bfloat16 costs, not slack: torch's own loss is of the same size."""
    checkpoint = save_torch("bert", num_labels=3, seed=9)
    batch = make_batch(0, 2)
    with torch.no_grad():
        expected = run_torch(checkpoint.torch, batch).logits
        narrow = run_torch(checkpoint.torch.bfloat16(), batch).logits.float()
    error = (narrow - expected).abs().max() / expected.abs().max()
    assert 1e-3 < error < 3e-2
