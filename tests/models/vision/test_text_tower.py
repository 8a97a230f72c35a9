"""Text towers and zero-shot heads of CLIP and SigLIP against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import CLIPTokenizer

from goat_jax.errors import UserError
from goat_jax.models.load import load_model
from goat_jax.models.vision.model import VisionModel
from goat_jax.models.vision.text_tower import class_kernel, load_text_tower
from kinds import expect

TOLERANCE = 1e-5
NAMES = ["cat", "dog eel", "eel", "a blurry cat"]


def _close(ours, theirs, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=0, atol=tolerance)


def _tokenizer():
    """Byte pairs without merges: a token for every letter."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: n for n, token in enumerate(tokens)}, merges=[])


@pytest.fixture(scope="module")
def save_both(save_vision):
    """Saves a model of both towers with a tokenizer; they have different activations."""

    def save(family):
        text = {"vocab_size": 54, "max_position_embeddings": 24, "eos_token_id": 53}
        text |= {"hidden_act": "gelu", "layer_norm_eps": 1e-3}
        checkpoint = save_vision(family, "Model", seed=8, text=text)
        _tokenizer().save_pretrained(checkpoint.folder)
        return checkpoint

    return save


@pytest.fixture(scope="module")
def clip(save_both):
    return save_both("clip")


@pytest.fixture(scope="module")
def expected(clip):
    return both_towers(clip, True)


def both_towers(checkpoint, padding):
    """torch's logits per image, images as we have them, and normalised text features."""
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    texts = [f"a photo of a {name}" for name in NAMES]
    options = {"truncation": True, "max_length": 24, "return_tensors": "pt"}
    tokens = _tokenizer()(texts, padding=padding, **options)
    assert not tokens["attention_mask"].all()  # there is padding
    with torch.no_grad():
        out = checkpoint.torch(
            pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), **tokens
        )
    return out.logits_per_image, images, out.text_embeds


@pytest.mark.slow
@pytest.mark.parametrize("eos", [2, 59], ids=["largest", "first"])
def test_text_features_are_torchs(eos, save_vision, jit):
    text = {"eos_token_id": eos, "pad_token_id": 0}
    checkpoint = save_vision("clip", "Model", seed=9, text=text)
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 57, (5, 9)).astype(np.int32)
    ids[:, 0], ids[0, 8], ids[1, 4:], ids[2, 5], ids[3, 2] = 57, 59, 59, 59, 59
    ids[2, 6:], ids[3, 6], ids[4, 7] = 0, 59, 59
    ids[4, 3] = 58  # below the end token, above all others
    mask = (ids != 0).astype(np.int32)
    mask[1, 5:] = 0
    with torch.no_grad():
        out = checkpoint.torch.get_text_features(
            torch.from_numpy(ids).long(), torch.from_numpy(mask).long()
        )
    model = load_text_tower(checkpoint.folder)
    graph, state = nnx.split(model)
    run = jit(lambda state, ids, mask: nnx.merge(graph, state)(ids, mask))
    _close(run(state, ids, mask), out.pooler_output)
    hidden = jit(lambda state, ids, mask: nnx.merge(graph, state).features(ids, mask))
    real = mask[..., None] != 0
    _close(
        np.asarray(hidden(state, ids, mask)) * real, out.last_hidden_state * torch.from_numpy(real)
    )


@pytest.mark.slow
def test_class_kernel_has_torchs_text_features(clip, expected):
    kernel = class_kernel(clip.folder, NAMES)
    assert kernel.shape == (20, len(NAMES)) and kernel.dtype == np.float32
    _close(kernel, expected[2].T)
    other = class_kernel(clip.folder, NAMES, "{} eel")
    assert np.abs(other - kernel).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "padding", "scale"), [("clip", True, ()), ("siglip", "max_length", (1,))]
)
def test_zero_shot_logits_are_torchs(family, padding, scale, save_both, jit, by_torch_name):
    checkpoint = save_both(family)
    logits, images, _ = both_towers(checkpoint, padding)
    assert logits.std(0).max() > 0.01  # the images tell
    options = {"head": "zero_shot", "num_labels": len(NAMES), "new_head": True}
    model = load_model(checkpoint.folder, key=jax.random.key(0), **options).model
    kernel = class_kernel(checkpoint.folder, NAMES, "a photo of a {}")
    expect(VisionModel, model).head.classifier.kernel.set_value(jnp.asarray(kernel))
    graph, state = nnx.split(model)
    ours = jit(lambda state, images: nnx.merge(graph, state)(images))(state, images)
    assert ours.dtype == jnp.float32
    _close(ours, logits, 1e-5 * float(logits.abs().max()))
    stored = by_torch_name(model)
    assert stored["logit_scale"].shape == scale
    assert stored["logit_scale"] == checkpoint.torch.logit_scale.detach().numpy()


@pytest.mark.parametrize(
    ("names", "template", "message"),
    [
        ([], "a {}", "class_names is empty: give the name of every class"),
        (["cat"], "a cat", "template 'a cat' has no {}: put it where the class name goes"),
    ],
)
def test_bad_classes_are_named(names, template, message, clip):
    with pytest.raises(UserError, match=message.replace("{}", r"\{\}")):
        class_kernel(clip.folder, names, template)


def test_a_folder_without_tokenizer_or_text_tower_is_named(clip, save_vision, tmp_path):
    bare = save_vision("clip", seed=10)
    with pytest.raises(UserError, match="has no tokenizer"):
        class_kernel(bare.folder, NAMES)
    _tokenizer().save_pretrained(bare.folder)
    with pytest.raises(UserError, match=r"missing: .*text_"):
        class_kernel(bare.folder, NAMES)


def test_a_text_that_is_too_long_is_named(clip):
    model = load_text_tower(clip.folder)
    ids = jnp.ones((1, 25), jnp.int32)
    with pytest.raises(UserError, match="25 tokens are more than the model's 24 positions"):
        model(ids, ids)


def test_a_tower_alone_has_no_texts(save_vision):
    folder = save_vision("clip_vision_model", "Model").folder
    with pytest.raises(UserError, match=r"type clip_vision_model has no text tower: use .* siglip"):
        load_text_tower(folder)


def test_only_a_clip_has_this_head(save_vision):
    with pytest.raises(UserError, match="head of vit 'zero_shot' is not one of linear"):
        load_model(save_vision("vit").folder, key=jax.random.key(0), head="zero_shot")
