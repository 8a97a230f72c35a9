"""Every family of encoders against torch: logits and hidden states with unusual settings."""

import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from encoder_parity import (
    CASES,
    TOLERANCE,
    batch,
    difference,
    family_of,
    ours,
    torch_outputs,
    write,
)
from goat_jax.adapters.context import Context
from goat_jax.adapters.methods import method_spec
from goat_jax.errors import UserError
from goat_jax.injection.inject import inject
from goat_jax.models.encoder.families import FAMILIES
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.models.encoder.relative import Disentangled, bias_buckets
from goat_jax.models.load import load_model, random_model
from goat_jax.nn.attention import WAYS, AttentionPlan
from goat_jax.nn.dense import merge_model, run_model, split_model
from goat_jax.nn.named_modules import reports_by_name
from parity_table import exports
from tiers import first_of_each

KEY = jax.random.key(0)


# test_encoder_parity.py has BERT and RoBERTa, and so XLM-R and CamemBERT.
IN_CI = ["mpnet", "electra", "albert groups", "modernbert", "deberta v2"]


@pytest.mark.parametrize("case", first_of_each(CASES, lambda _: (), first=IN_CI))
def test_logits_and_hidden_states_are_torchs(case, tmp_path):
    assert difference(tmp_path, write(tmp_path, case)) < TOLERANCE


def test_every_family_is_compared_and_listed():
    assert {family_of(case) for case in CASES} == set(FAMILIES)
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text("utf-8")
    for name, count in Counter(map(family_of, CASES)).items():
        (row,) = re.findall(rf"`{name}` \| .+ \| (\d+) \| (\S+) \| (.+) \|", page)
        assert int(row[0]) == count and float(row[1]) < TOLERANCE and row[2] == exports(name)


@pytest.mark.parametrize("buckets", [None, 7, 32, 256])
def test_distances_of_disentangled_attention_are_torchs(buckets):
    tokens, reach = 700, 512
    found = Disentangled(True, True, True, reach, buckets, False).rows(tokens)
    states = torch.zeros(1, tokens, 1)
    theirs = build_relative_position(states, states, buckets or -1, reach)[0]
    span = buckets or reach
    np.testing.assert_array_equal(found, torch.clamp(theirs + span, 0, 2 * span - 1).numpy())


def test_buckets_of_biases_are_torchs():
    places = torch.arange(700)
    theirs = MPNetEncoder.relative_position_bucket(places[None] - places[:, None])
    np.testing.assert_array_equal(bias_buckets(700), theirs.numpy())


# Those whose names of heads are not BERT's; ModernBERT's head is that of its words.
BASES = {
    "electra": ("ForPreTraining", 4),
    "mpnet": ("Model", 4),
    "albert": ("ForPreTraining", 2),
    "modernbert": ("ForMaskedLM", 2),
    "deberta v3": ("ForMaskedLM", 4),
    "xlm-roberta": ("ForTokenClassification", 4),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", first_of_each(BASES, lambda _: (), first=["modernbert"]))
def test_a_base_has_a_fresh_head_and_its_own_body(case, tmp_path):
    kind, fresh = BASES[case]
    saved = write(tmp_path, case, kind=kind)
    loaded = load_model(tmp_path, key=KEY, num_labels=5)
    assert len(loaded.fresh) == fresh
    inputs = batch(saved.config.to_dict().get("type_vocab_size", 0), saved.config.pad_token_id)
    hidden, logits = ours(loaded.model, inputs)
    theirs = torch_outputs(saved.base_model, inputs).last_hidden_state.numpy()
    real = inputs["attention_mask"] != 0
    assert np.abs(hidden - theirs)[real].max() < TOLERANCE * np.abs(theirs).max()
    assert logits.shape == (4, 5) and np.isfinite(logits).all()


BIASED = {
    "mpnet": {},
    "deberta-v2": {
        "disentangled": Disentangled(True, True, True, 16, 4, True),
        "attention_scale": 0.2,
    },
}


@pytest.mark.parametrize("family", BIASED)
def test_attention_without_a_bias_of_the_scores_is_refused(family):
    config = tiny_config(family, **BIASED[family])
    model = nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0)))
    need, device = model.attention_need(512, "bfloat16"), jax.devices()[0]
    assert [name for name, way in WAYS.items() if way.refusal(need, device) is None] == ["xla"]
    model.attention = AttentionPlan("blocks")
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    with pytest.raises(UserError, match=r"model.attention blocks .*bias.*: choose auto, xla"):
        nnx.eval_shape(lambda model, ids: model(ids, ids), model, ids)


DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p"]}
WRONG = [
    ("albert", {"num_hidden_groups": 4}, "4 groups of 3 layers"),
    ("albert", {"inner_group_num": 2}, "inner_group_num is 2, and only 1 is computed"),
    ("modernbert", {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
    ("modernbert", {"classifier_pooling": "max"}, "classifier_pooling 'max' is not known"),
    ("modernbert", {"rope_parameters": {"full_attention": 3}}, "must be an object"),
    ("deberta-v2", {"pos_att_type": ["p2p"]}, "must be a list of c2p and p2c"),
    ("deberta-v2", {"relative_attention": True}, "without pos_att_type"),
    ("deberta-v2", DEBERTA | {"position_buckets": 1200}, "half of it must be at least 1 and below"),
    ("deberta-v2", {"conv_kernel_size": 2}, "conv_kernel_size is 2: it must be odd"),
    ("deberta-v2", {"conv_kernel_size": 3, "conv_groups": 5}, "not divisible by the convolution's"),
    ("deberta-v2", {"attention_head_size": 5}, "attention_head_size is 5, and only hidden_size /"),
    ("deberta-v2", {"pooler_hidden_size": 5}, "pooler_hidden_size is 5, and only hidden_size"),
]


@pytest.mark.parametrize(("model_type", "change", "message"), WRONG)
def test_settings_that_are_not_computed_are_refused(model_type, change, message):
    sizes = {"vocab_size": 9, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    hf = {"model_type": model_type, **sizes, "intermediate_size": 16, **change}
    with pytest.raises(UserError, match=re.escape(message)):
        random_model(hf, key=KEY)


# Called several times; called for positions, too; the night has all linear layers of each block.
TRAINED = [("albert groups", ["query"]), ("deberta v3", ["query_proj"])]
EVERYWHERE = [
    pytest.param(case, "all-linear", marks=pytest.mark.nightly)
    for case in ("albert groups", "deberta v2", "modernbert", "mpnet")
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "targets"), [*TRAINED, *EVERYWHERE])
def test_goat_starts_at_the_base_and_learns(case, targets, tmp_path):
    saved = write(tmp_path, case)
    model = load_model(tmp_path, key=KEY).model
    inputs = batch(saved.config.to_dict().get("type_vocab_size", 0), saved.config.pad_token_id)
    base = ours(model, inputs)[1]
    labels, mask = jnp.arange(4) % 2, jnp.asarray(inputs["attention_mask"])
    spec = method_spec("goat", total_rank=4, num_experts=2)
    report = inject(model, spec, targets, key=KEY)
    inside = {row.what for row in report.rows if row.layers is not None}
    assert inside == ({"adapter"} if targets == "all-linear" else {"adapter", "frozen"})
    graph, trainable, frozen = split_model(model)

    @jax.jit
    def step(adapter):
        def loss_of(adapter):
            whole = merge_model(graph, {"adapter": adapter, "head": trainable["head"]}, frozen)
            logits, sown = run_model(whole, **inputs, ctx=Context(mask=mask))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (logits, reports_by_name(whole, sown))

        (loss, rest), gradients = jax.value_and_grad(loss_of, has_aux=True)(adapter)
        moved = jax.tree.map(lambda value, slope: value - 0.02 * slope, adapter, gradients)
        return moved, gradients, loss, rest

    moved, gradients, loss, (logits, reports) = step(trainable["adapter"])
    # Not exactly: the kernel loses the experts' mean, and a token gets its own experts.
    np.testing.assert_allclose(logits, base, rtol=0, atol=0.05 * np.abs(base).max())
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    layers = {"albert groups": 2}.get(case, 3)  # of which two are called five times
    assert {one.load.shape for one in reports.values()} == {(layers, 2)}
    assert step(moved)[2] < loss
