"""Vision models under the package's own step: adapters move, images count, errors are named."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from goat_jax.adapters.methods import method_spec
from goat_jax.errors import UserError
from goat_jax.injection.inject import inject
from goat_jax.models.load import load_model
from goat_jax.models.vision.config import VisionConfig
from goat_jax.models.vision.model import VisionModel, tiny_vision_config
from goat_jax.nn.dense import split_model
from goat_jax.pretrained.safetensors import SINGLE
from goat_jax.training.losses import IMAGE_CLASSIFICATION
from goat_jax.training.state import RunState
from goat_jax.training.step import make_eval_step, make_train_step
from tiers import first_of_each

TARGETS = {
    "clip": ["out_proj", "fc2"],
    "vit": ["o_proj", "fc2"],
    "dinov2": ["o_proj", "fc2"],
}
KEY = jax.random.key(0)


def _batch(weights=(1.0, 1.0, 1.0, 1.0), seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(4, 16, 16, 3)).astype(np.float32)
    return {
        "pixel_values": jnp.asarray(images),
        "labels": jnp.array([0, 1, 1, 0]),
        "weights": jnp.asarray(weights, jnp.float32),
    }


@cache
def _adapted(family, head="linear"):
    config = tiny_vision_config(family, head=head, num_layers=2)
    model = VisionModel(config, rngs=nnx.Rngs(0))
    spec = method_spec("goat", total_rank=8, num_experts=4)
    report = inject(model, spec, TARGETS[family], key=KEY, modules_to_save=["classifier"])
    assert sum(row.what == "adapter" for row in report.rows) == 2
    return split_model(model)


# Every kind of head in CI; that families differ in names and settings alone, their parity shows.
HEADS = [("vit", "linear"), ("clip", "zero_shot"), ("clip", "linear"), ("dinov2", "linear")]


@pytest.mark.parametrize("case", first_of_each(HEADS, lambda case: case[1:]), ids="-".join)
def test_a_step_moves_every_adapter_and_the_head(case):
    family, head = case
    graph, trainable, base = _adapted(family, head)
    optimizer = optax.adam(1e-3)
    step = make_train_step(graph, IMAGE_CLASSIFICATION, optimizer, aux_weight=1e-3)
    before = jax.tree.map(np.asarray, trainable)
    # A step gives its state's memory away, and others use these arrays.
    own = jax.tree.map(jnp.copy, trainable)
    state = RunState.create(own, optimizer, jax.random.key(1))
    state, metrics = step(state, base, _batch())
    assert len(metrics["reports"]) == 2 and np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.trainable, before)
    assert min(jax.tree.leaves(moved)) > 1e-4
    assert set(before["head"]["head"]) == {"classifier"}


@pytest.fixture(scope="module")
def eval_step():
    return make_eval_step(_adapted("vit")[0], IMAGE_CLASSIFICATION)


@pytest.mark.slow
def test_fill_up_rows_change_no_sum_and_no_load(eval_step):
    _, trainable, base = _adapted("vit")
    whole, padded = _batch((1, 1, 1, 0)), _batch((1, 1, 1, 0))
    padded["pixel_values"] = padded["pixel_values"].at[3].set(7.0)
    (sums, _), (others, _) = (eval_step(trainable, base, batch) for batch in (whole, padded))
    assert float(sums["count"]) == float(sums["tokens"]) == 3
    for one, other in zip(jax.tree.leaves(sums), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    load = next(iter(sums["loads"].values()))
    np.testing.assert_allclose(load.sum(-1), 3 * 2, rtol=1e-5)  # two experts a token, in rows


def test_a_row_that_counts_changes_the_load(eval_step):
    _, trainable, base = _adapted("vit")
    one, other = (eval_step(trainable, base, _batch(w))[0] for w in ((1, 1, 1, 1), (1, 1, 1, 0)))
    shares = [sums["loads"]["vit.layers.{}.mlp.fc2"] / sums["tokens"] for sums in (one, other)]
    assert np.abs(shares[0] - shares[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (jnp.zeros((2, 3, 16, 16)), r"shape \(2, 3, 16, 16\): give \(batch, height, width, 3\)"),
        (jnp.zeros((16, 16, 3)), r"shape \(16, 16, 3\): give"),
        (jnp.zeros((2, 16, 24, 3)), "have 16x24 pixels, the model takes 16x16: resize them"),
        (jnp.zeros((2, 16, 16, 3), jnp.uint8), "are uint8: scale and normalise them"),
    ],
)
def test_images_that_do_not_fit_are_named(images, message):
    model = VisionModel(tiny_vision_config("vit"), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=message):
        model(images)


def test_an_image_smaller_than_a_patch_is_named():
    model = VisionModel(tiny_vision_config("dinov2"), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="of 16x3 pixels are smaller than a patch of 4x4"):
        model(jnp.zeros((1, 16, 3, 3)))


SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 16, "image_size": 16, "patch_size": 4}


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        ({"model_type": "vit", "patch_size": [4, 8]}, r"patch_size is \[4, 8\]: only square"),
        ({"model_type": "vit", "image_size": [4, 8, 3]}, r"image_size is \[4, 8, 3\]: it must"),
        ({"model_type": "vit", "image_size": 3}, "an image of 3x3 pixels has no room for a patch"),
        ({"model_type": "vit", "num_channels": 0}, "channels is 0: it must be a whole number"),
        ({"model_type": "vit", "num_attention_heads": 3}, "8 is not divisible by 3 heads"),
        ({"model_type": "vit", "hidden_act": "gleu"}, r"'gleu' is not one of .*mean 'gelu'"),
        ({"model_type": "vit", "hidden_size": None}, "config.json has no hidden_size: add it"),
        ({"model_type": "dinov2", "hidden_size": None}, "config.json has no hidden_size: add it"),
    ],
)
def test_a_bad_config_is_named(hf, message):
    with pytest.raises(UserError, match=message):
        VisionConfig.from_hf(SIZES | hf)


def test_an_unknown_setting_is_named():
    with pytest.raises(UserError, match=r"has no setting 'num_lables' \(did you mean 'num_labels"):
        VisionConfig.from_hf(SIZES | {"model_type": "vit"}, num_lables=3)


def test_clips_nested_config_is_read_as_transformers_does():
    hf = {"model_type": "clip", "projection_dim": 24, "id2label": {"0": "a", "1": "b", "2": "c"}}
    inner = {"hidden_size": 64, "num_attention_heads": 4, "projection_dim": 99, "num_labels": 2}
    config = VisionConfig.from_hf({**hf, "vision_config": inner})
    assert (config.hidden_size, config.num_layers, config.projection_dim) == (64, 12, 24)
    assert (config.num_labels, config.size, config.patch_size) == (3, (224, 224), 32)
    other = {**hf, "vision_config": inner, "vision_config_dict": {"patch_size": 16}}
    assert VisionConfig.from_hf(other).hidden_size == 768
    assert VisionConfig.from_hf(other).patch_size == 16
    assert VisionConfig.from_hf({**hf, "vision_config": inner}, num_labels=7).num_labels == 7


def test_a_checkpoint_with_another_image_size_is_named(save_vision, tmp_path):
    for path in save_vision("vit").folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(text | {"image_size": 20}))
    message = r"position_embeddings is \(1, 17, 32\), the config says \(1, 26, 32\)"
    with pytest.raises(UserError, match=message):
        load_model(tmp_path, key=KEY)


def test_a_missing_tensor_is_named_as_today(save_vision, tmp_path):
    for path in save_vision("vit").folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / SINGLE)
    del tensors["vit.encoder.layer.1.attention.attention.query.bias"]
    save_file(tensors, tmp_path / SINGLE)
    with pytest.raises(UserError, match=r"missing: vit.layers.1.attention.q_proj.bias"):
        load_model(tmp_path, key=KEY)


def test_a_head_of_other_labels_starts_afresh(save_vision):
    loaded = load_model(save_vision("dinov2").folder, key=KEY, num_labels=9)
    assert loaded.fresh == ("classifier.weight", "classifier.bias")
