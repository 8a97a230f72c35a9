"""Properties of an encoder that need no torch: padding, order of the batch, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from goat_jax.adapters.context import EVAL
from goat_jax.core.attention import Visible
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.models.load import load_model
from goat_jax.nn.attention import AttentionPlan
from goat_jax.nn.modules import POOLING

FAMILIES = pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])


@pytest.fixture(scope="module")
def model_of(save_torch):
    """A random model of a family; `load_model`'s options."""

    def make(family, **options):
        return load_model(save_torch(family, seed=9).folder, key=jax.random.key(0), **options).model

    return make


@pytest.mark.slow
@FAMILIES
def test_padding_columns_change_nothing(family, model_of, make_batch, run_model):
    model = model_of(family)
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
    order = np.array([3, 0, 5, 1, 4, 2])
    _, logits = run_model(model, batch)
    _, shuffled = run_model(model, {name: array[order] for name, array in batch.items()})
    np.testing.assert_allclose(shuffled, logits[order], rtol=0, atol=1e-5)
    assert np.abs(shuffled - logits).max() > 1e-2


@FAMILIES
def test_a_row_of_padding_alone_is_finite_and_alone(family, model_of, make_batch, run_model):
    model = model_of(family)
    batch = make_batch(model.config.pad_token_id, 2)
    expected = run_model(model, batch)[1]
    batch["input_ids"][2], batch["attention_mask"][2] = model.config.pad_token_id, 0
    hidden, logits = run_model(model, batch)
    assert np.isfinite(hidden).all() and np.isfinite(logits).all()
    rest = [0, 1, 3, 4, 5]
    np.testing.assert_allclose(logits[rest], expected[rest], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_mean_pooling_is_the_mean_of_real_tokens():
    rng = np.random.default_rng(0)
    hidden, mask = rng.normal(size=(3, 4, 2)), np.array([[1, 1, 0, 1], [0, 0, 1, 0], [0] * 4])
    hidden = jnp.asarray(hidden, jnp.float32)
    pooled = POOLING["mean"](hidden, jnp.asarray(mask))
    np.testing.assert_allclose(pooled[0], hidden[0, [0, 1, 3]].mean(0), rtol=1e-6)
    np.testing.assert_allclose(pooled[1], hidden[1, 2], rtol=1e-6)
    np.testing.assert_array_equal(pooled[2], [0, 0])  # nothing to take the mean of
    np.testing.assert_array_equal(POOLING["cls"](hidden, jnp.asarray(mask)), hidden[:, 0])


def test_pooling_is_a_setting(model_of, make_batch):
    model, batch = model_of("bert", pooling="mean"), make_batch(0, 2)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(6, 9, 32)), jnp.float32)
    mask = jnp.asarray(batch["attention_mask"])
    logits = model.classify(hidden, mask)
    pooled = POOLING["mean"](hidden, mask)
    expected = model.head_out(jnp.tanh(model.head_dense(pooled, EVAL)), EVAL)
    np.testing.assert_array_equal(logits, expected)


def test_roberta_counts_positions_over_real_tokens_from_pad_plus_one():
    config = tiny_config("roberta", pad_token_id=3)
    model = nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0)))
    ids = jnp.array([[3, 3, 9, 3, 8, 7], [9, 8, 7, 6, 5, 4]])
    expected = [[3, 3, 4, 3, 5, 6], [4, 5, 6, 7, 8, 9]]
    np.testing.assert_array_equal(model.embeddings.position_ids(ids), expected)


@pytest.mark.slow
def test_bfloat16_weights_make_bfloat16_hidden_states(model_of, make_batch, run_model):
    wide, narrow = model_of("bert"), model_of("bert", dtype=jnp.bfloat16)
    batch = make_batch(wide.config.pad_token_id, 2)
    mask = batch["attention_mask"] != 0
    attend = AttentionPlan().attend(Visible(real=mask), *[mask.shape[1]] * 2)
    x = narrow.embeddings(batch["input_ids"], batch["token_type_ids"])
    assert x.dtype == jnp.bfloat16
    graph, state = nnx.split(narrow.layers.runs[0])
    first = jax.tree.map(lambda a: a[0], state)
    traced = jax.make_jaxpr(lambda s, x: nnx.merge(graph, s)(x, EVAL, attend))(first, x)
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
    checkpoint = save_torch("bert", seed=9)
    batch = make_batch(0, 2)
    with torch.no_grad():
        expected = run_torch(checkpoint.torch, batch).logits
        narrow = run_torch(checkpoint.torch.bfloat16(), batch).logits.float()
    error = (narrow - expected).abs().max() / expected.abs().max()
    assert 1e-3 < error < 3e-2
