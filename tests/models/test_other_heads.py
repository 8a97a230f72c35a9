"""A checkpoint with another task's head is a base with a fresh head, said in one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from goat_jax.errors import UserError
from goat_jax.models.decoder.model import Decoder, tiny_decoder_config
from goat_jax.models.encoder.model import Encoder
from goat_jax.models.load import load_model
from hugging_face import write_weights
from kinds import expect
from tiers import each

CASES = {
    "answers": ("bert", "ForQuestionAnswering", {}, "qa_outputs.bias, qa_outputs.weight"),
    "answers, roberta": ("roberta", "ForQuestionAnswering", {}, "qa_outputs.bias"),
    "answers, distilbert": ("distilbert", "ForQuestionAnswering", {}, "qa_outputs.bias"),
    "tokens": ("bert", "ForTokenClassification", {"num_labels": 2}, "classifier.bias"),
    "tokens, roberta": ("roberta", "ForTokenClassification", {}, "classifier.bias"),
    "choices": ("bert", "ForMultipleChoice", {}, "classifier.bias"),
    "labels": ("bert", "ForSequenceClassification", {"num_labels": 5}, "classifier.bias"),
    "labels, roberta": ("roberta", "ForSequenceClassification", {"num_labels": 5}, "out_proj.bias"),
    "words": ("bert", "ForMaskedLM", {}, None),
    "words, roberta": ("roberta", "ForMaskedLM", {}, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", each(CASES, ["answers", "words"]))
def test_the_base_is_kept_and_the_head_is_fresh(name, save_torch):
    family, kind, settings, left_out = CASES[name]
    saved = save_torch(family, kind, **settings)
    loaded = load_model(saved.folder, key=jax.random.key(0), num_labels=2)
    assert loaded.fresh and all("encoder" not in each for each in loaded.fresh)
    if left_out is None:
        assert not loaded.notes
    else:
        (note,) = loaded.notes
        assert note.startswith(f"{saved.folder}: left out ") and left_out in note
        assert "; newly initialized: " in note and "\n" not in note
    ids = np.arange(5, 13).reshape(2, 4)
    encoder, tokens = expect(Encoder, loaded.model), jnp.asarray(ids)
    ours = encoder.encode(tokens, jnp.ones_like(tokens), jnp.zeros_like(tokens))
    with torch.no_grad():
        base = saved.torch.base_model(input_ids=torch.tensor(ids))
    np.testing.assert_allclose(ours, base.last_hidden_state.numpy(), atol=2e-5)


def test_a_head_of_the_same_task_is_kept(save_torch):
    saved = save_torch("bert")
    loaded = load_model(saved.folder, key=jax.random.key(0), num_labels=2)
    assert not loaded.fresh and not loaded.notes


def decoder(folder, tied, drop=(), add=()):
    config = tiny_decoder_config(tie_embeddings=tied)
    model = Decoder(config, rngs=nnx.Rngs(0))
    write_weights(folder, model, "llama", num_key_value_heads=2)
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | {"tie_word_embeddings": tied}
    path.write_text(json.dumps(settings))
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if name not in drop}
    save_file(tensors | dict(add), folder / "model.safetensors")
    return folder


SCORE = ("score.weight", np.zeros((2, 32), np.float32))


@pytest.mark.slow
def test_a_decoder_with_a_score_head(tmp_path):
    folder = decoder(tmp_path / "tied", True, add=[SCORE])
    (note,) = load_model(folder, key=jax.random.key(0)).notes
    assert note == f"{folder}: left out score.weight, of another task's head"
    folder = decoder(tmp_path / "untied", False, ["lm_head.weight"], [SCORE])
    with pytest.raises(UserError, match=r"missing: lm_head.weight; it was saved with another task"):
        load_model(folder, key=jax.random.key(0))


def test_a_part_of_our_own_output_is_no_other_head(tmp_path):
    bias = ("lm_head.bias", np.zeros(64, np.float32))
    for tied in (True, False):
        folder = decoder(tmp_path / str(tied), tied, add=[bias])
        with pytest.raises(UserError, match=r"unexpected: lm_head.bias"):
            load_model(folder, key=jax.random.key(0))


@pytest.mark.parametrize("equal", [True, False])
def test_tied_tensors_that_are_both_stored(equal, tmp_path):
    """They are tied only if they are equal, as in transformers."""
    folder = decoder(tmp_path / "model", True)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    output = table if equal else table + np.float32(0.5)
    tensors = load_file(folder / "model.safetensors") | {"lm_head.weight": output}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(folder, key=jax.random.key(0)).model
    assert model.config.tie_embeddings == equal
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = np.arange(3, 11).reshape(2, 4)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(model(ids), expected, atol=2e-5)


@pytest.mark.parametrize("stored", ["lm_head.weight", "model.embed_tokens.weight"])
def test_either_of_two_tied_tensors_stands_for_both(stored, tmp_path):
    folder = decoder(tmp_path / "model", True)
    tensors = load_file(folder / "model.safetensors")
    table = tensors.pop("model.embed_tokens.weight")
    save_file(tensors | {stored: table}, folder / "model.safetensors")
    for tied in (True, False):
        loaded = load_model(folder, key=jax.random.key(0), tie_embeddings=tied)
        model = expect(Decoder, loaded.model)
        np.testing.assert_array_equal(model.embeddings.table[...], table)
        (kernel,) = model.vocabulary_output(jnp.ones((1, table.shape[1]))).kernels
        np.testing.assert_array_equal(kernel, table.T)


def test_untied_without_an_output_is_refused(tmp_path):
    folder = decoder(tmp_path / "model", False, drop=["lm_head.weight"])
    with pytest.raises(UserError, match=r"missing: lm_head.weight; take both from one checkpoint"):
        load_model(folder, key=jax.random.key(0))
