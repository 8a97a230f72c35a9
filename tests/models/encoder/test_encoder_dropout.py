"""Encoders' own dropout: torch's places and rates, keys by place and layer, none in evaluation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from encoder_parity import batch, torch_outputs, write
from goat_jax.adapters.context import EVAL, Context
from goat_jax.errors import UserError
from goat_jax.models.encoder.families import FAMILIES
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.models.load import load_model, random_model
from goat_jax.nn.dropout import drop, rates_of
from kinds import expect
from tiers import first_of_each

KEY = jax.random.key(7)
BERT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
MODERN = {"embedding_dropout": 0.1, "attention_dropout": 0.2, "mlp_dropout": 0.3}
DISTIL = {"dropout": 0.2, "attention_dropout": 0.3, "seq_classif_dropout": 0.4}
USUAL = ("attention", "attention_out", "down")
BOTH = ("head_dense", "head_out")
CASES = {
    "bert": ({**BERT, "classifier_dropout": 0.4}, USUAL, ("head_out",)),
    "roberta": (BERT, USUAL, BOTH),
    "distilbert": (DISTIL, ("attention", "down"), ("head_out",)),
    "electra": (BERT, USUAL, BOTH),
    "mpnet": (BERT, USUAL, BOTH),
    "albert": (
        {**BERT, "classifier_dropout_prob": 0.4},
        ("attention", "attention_out"),
        ("head_out",),
    ),
    "modernbert": (
        {**MODERN, "classifier_dropout": 0.4},
        ("attention", "attention_out", "inner"),
        ("head_out",),
    ),
    "deberta v2": (
        {**BERT, "pooler_dropout": 0.4, "cls_dropout": 0.1},
        ("positions", *USUAL),
        BOTH,
    ),
}
"""Case of `encoder_parity` -> rates, places in a block, and in the head."""


def places(case):
    """(context, place) in the order in which a model of three layers uses them."""
    whole = Context(KEY)
    _, block, head = CASES[case]
    yield whole, "embeddings"
    for layer in range(3):
        yield from ((whole.fold(layer), place) for place in block)
        if case == "deberta v2" and layer == 0:
            yield whole.fold(layer), "convolution"
    yield from ((whole, place) for place in head)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    first_of_each(CASES, lambda _: (), first=["roberta", "distilbert", "deberta v2"], marks=()),
)
def test_places_and_rates_are_torchs(case, tmp_path, jit, monkeypatch):
    """With our masks in place of its own, torch in training computes our numbers."""
    saved = write(tmp_path, case, **CASES[case][0])
    model = expect(Encoder, load_model(tmp_path, key=KEY, dropout="checkpoint").model)
    inputs = batch(model.config.type_vocab_size, saved.config.pad_token_id)
    given = jax.tree.map(jnp.asarray, inputs)
    graph, state = nnx.split(model)
    ours = jit(lambda state: nnx.merge(graph, state)(**given, ctx=Context(KEY)))(state)
    left, masks = list(places(case)), []

    def with_our_mask(x, p=0.5, training=True, inplace=False):
        ctx, place = left.pop(0)
        assert training and dict(model.config.dropout)[place] == p
        masks.append((p, np.array(drop(jnp.ones(x.shape), place, model.config.dropout, ctx))))
        return x * torch.from_numpy(masks[-1][1])

    monkeypatch.setattr(torch.nn.functional, "dropout", with_our_mask)
    saved.set_attn_implementation("eager")
    theirs = torch_outputs(saved.train(), inputs).logits.numpy()
    assert not left
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))
    assert len({factors.tobytes() for _, factors in masks}) == len(masks)
    for rate, factors in masks:
        assert np.unique(factors) == pytest.approx([0, 1 / (1 - rate)])
        tolerance = 4 * (rate * (1 - rate) / factors.size) ** 0.5
        assert (factors == 0).mean() == pytest.approx(rate, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_mean_over_keys_is_what_was_there(dtype):
    x = jax.random.normal(jax.random.key(0), (64, 64)).astype(dtype)
    dropped = jax.vmap(lambda key: drop(x, "down", (("down", 0.1),), Context(key)))
    found = dropped(jax.random.split(KEY, 400))
    assert found.dtype == dtype
    wide, mean = np.asarray(x, np.float32), np.asarray(found, np.float32).mean(0)
    assert (wide * mean).sum() / np.square(wide).sum() == pytest.approx(1, abs=1e-3)


def trace(config, ctx):
    graph, state = nnx.split(nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0))))
    ids = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    run = jax.make_jaxpr(lambda state, ids: nnx.merge(graph, state)(ids, ids, ctx=ctx))
    return str(run(state, ids))


def test_without_a_rate_or_a_key_nothing_is_drawn():
    plain, dropping = tiny_config(), tiny_config(dropout=0.1)
    assert trace(plain, EVAL) == trace(dropping, EVAL)
    assert "random_bits" in trace(dropping, Context(KEY))
    assert "random_bits" not in trace(plain, Context(KEY))


@pytest.mark.slow
def test_masks_follow_the_key_and_not_how_the_stack_is_cut_or_recomputed(
    save_torch, make_batch, jit
):
    made = expect(Encoder, load_model(save_torch("bert").folder, key=KEY, dropout=0.2).model)
    batch = make_batch(0, 2)

    def logits_of(model):
        graph, state = nnx.split(model)
        run = jit(lambda state, key: nnx.merge(graph, state)(**batch, ctx=Context(key)))
        return partial(run, state)

    run = logits_of(made)
    whole = run(KEY)
    np.testing.assert_array_equal(run(KEY), whole)
    assert np.abs(run(jax.random.key(8)) - whole).max() > 1e-2
    made.layers.cut([1])
    made.layers.remat = "full"
    np.testing.assert_allclose(logits_of(made)(KEY), whole, atol=1e-6)


def test_rates_are_transformers_unless_config_json_has_others():
    roberta, distil = FAMILIES["roberta"].dropout, FAMILIES["distilbert"].dropout
    assert set(dict(rates_of(roberta, "checkpoint", {})).values()) == {0.1}
    assert dict(rates_of(distil, "checkpoint", {}))["head_out"] == 0.2
    given = dict(rates_of(roberta, "checkpoint", {**BERT, "classifier_dropout": None}))
    assert given["head_out"] == given["head_dense"] == given["down"] == 0.2
    off = rates_of(roberta, "checkpoint", {**BERT, "hidden_dropout_prob": 0.0})
    assert off == (("attention", 0.3),)
    assert rates_of(roberta, 0.0, BERT) == ()


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan"), "half", True, None])
def test_other_rates_are_refused(rate):
    with pytest.raises(UserError, match=r"is not a rate: give a number in \[0, 1\), or 'check"):
        rates_of(FAMILIES["bert"].dropout, "checkpoint" if rate is None else rate, {
            "hidden_dropout_prob": 1.0,
        })  # fmt: skip


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "language model"), ("vit", "image encoder")]
)
@pytest.mark.parametrize("rate", [0.1, "checkpoint"])
def test_models_without_dropout_say_so(family, kind, rate):
    with pytest.raises(UserError, match=rf"model.dropout {rate!r}: .*{kind} has no dropout of its"):
        random_model({"model_type": family}, key=KEY, dropout=rate)
