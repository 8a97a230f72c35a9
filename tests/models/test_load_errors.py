"""Every bad checkpoint folder gives one line that names the thing and the fix."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file

from goat_jax.errors import UserError
from goat_jax.models.encoder.config import EncoderConfig
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.models.load import load_model
from goat_jax.models.registry import ARCHITECTURES
from goat_jax.pretrained.safetensors import INDEX, SINGLE

SIZES = {
    "model_type": "bert",
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}


def _error(folder, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_model(folder, key=jax.random.key(0), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def good(save_torch):
    return save_torch("bert").folder


@pytest.fixture
def folder(good, tmp_path):
    """A good checkpoint in a folder of its own, to be broken."""
    for path in good.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    load_model(tmp_path, key=jax.random.key(0))
    return tmp_path


def _edit_tensors(folder, change) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


def _edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_no_such_folder(tmp_path):
    missing = tmp_path / "roberta-base"
    assert _error(missing) == (
        f"{missing} is not a folder here: give the path of a checkpoint folder"
    )


def test_a_folder_without_config(tmp_path):
    assert _error(tmp_path) == (
        f"{tmp_path} has no config.json: give the path of a checkpoint folder"
    )


def test_a_broken_config(folder):
    path = folder / "config.json"
    path.write_text('{"model_type": "bert",')
    assert _error(folder).startswith(f"{path} is not valid JSON (")
    assert _error(folder).endswith("): fetch it again")
    path.write_text("[1]")
    assert _error(folder) == f"{path} holds a list, not an object: fetch it again"


def test_an_unsupported_model_type(folder):
    _edit_config(folder, model_type="robert")
    assert _error(folder) == (
        f"{folder}: model_type 'robert' is not supported: "
        f"use a checkpoint of one of {', '.join(ARCHITECTURES)}"
    )


def test_no_model_type(folder):
    (folder / "config.json").write_text("{}")
    assert _error(folder) == (
        f"{folder / 'config.json'} has no model_type: add one of {', '.join(ARCHITECTURES)}"
    )


@pytest.mark.parametrize("kind", ["xlnet", "gemma3n", "bart", "llama4", ["bert"], 3, True])
def test_a_model_type_that_looks_like_another_is_not_taken_for_it(folder, kind):
    _edit_config(folder, model_type=kind)
    message = _error(folder)
    assert f"model_type {kind!r} is not supported: use a checkpoint of one of " in message
    assert "did you mean" not in message


@pytest.mark.parametrize("key", [key for key in SIZES if key[:3] not in ("mod", "max")])
def test_a_config_without_a_size(folder, key):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config[key]
    path.write_text(json.dumps(config))
    assert _error(folder) == (
        f"{folder}: config.json has no {key}: add it, it is a size of the network"
    )


SIZE = "give a whole number of at least 1 and at most 10000000"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"position_embedding_type": "relative_key"},
            "config.json: position_embedding_type is 'relative_key', and only 'absolute' is "
            "computed here: use a checkpoint with that",
        ),
        (
            {"is_decoder": True},
            "config.json: is_decoder is True, and only False is computed here: use a checkpoint "
            "with that",
        ),
        (
            {"hidden_act": "geluu"},
            "config.json: hidden_act 'geluu' is not known (did you mean 'gelu'?): give one of "
            "gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, silu, swish, tanh",
        ),
        (
            {"num_attention_heads": 5},
            "hidden size 32 is not divisible by 5 heads: correct one of them",
        ),
        ({"hidden_size": "32"}, f"config.json: hidden_size '32' is not valid: {SIZE}"),
        ({"num_hidden_layers": 0}, f"config.json: num_hidden_layers 0 is not valid: {SIZE}"),
    ],
)
def test_settings_that_cannot_be(folder, change, message):
    _edit_config(folder, **change)
    assert _error(folder) == f"{folder}: {message}"


def test_an_unknown_override(folder):
    assert _error(folder, num_lables=3) == (
        f"{folder}: an encoder has no setting 'num_lables' (did you mean 'num_labels'?)"
    )


def test_an_unknown_pooling(folder):
    assert _error(folder, pooling="max") == (f"{folder}: pooling 'max' is not one of cls, mean")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_weight_file_cut_short(folder, kept):
    path = folder / SINGLE
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    size = len(whole[:kept])
    assert _error(folder).startswith(f"{path} is damaged or truncated at {size} bytes (")
    assert _error(folder).endswith("): fetch it again")


def test_a_shard_cut_short(save_torch, tmp_path):
    for path in save_torch("bert", max_shard_size="20KB").folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert _error(tmp_path).startswith(f"{shard} is damaged or truncated at {len(whole) - 1} bytes")
    shard.unlink()
    assert _error(tmp_path) == (
        f"{shard} is missing, but the index names it: fetch the complete checkpoint"
    )


def test_an_index_that_does_not_fit(folder):
    index = folder / INDEX
    (folder / SINGLE).rename(folder / "part.safetensors")
    index.write_text('{"metadata": {}}')
    assert _error(folder) == f"{index} has no weight_map: fetch it again"
    index.write_text(json.dumps({"weight_map": {"nothing": "part.safetensors"}}))
    assert _error(folder) == (
        f"{folder / 'part.safetensors'} lacks nothing, which the index promises: fetch it again"
    )
    index.write_text(json.dumps({"weight_map": {"x": "../part.safetensors"}}))
    assert _error(folder) == (
        f"{index} names '../part.safetensors', which is not a file beside it: fetch it again"
    )


def test_only_pickled_weights(folder):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    assert _error(folder) == (
        f"{folder} has only pickled weights (pytorch_model.bin), which are never opened: "
        "save the model with safetensors"
    )


def test_no_weights(folder):
    (folder / SINGLE).unlink()
    assert _error(folder) == (
        f"{folder} has neither {SINGLE} nor {INDEX}: fetch the complete checkpoint"
    )


def test_missing_tensors(folder):
    _edit_tensors(folder, lambda tensors: tensors.pop("bert.encoder.layer.1.output.dense.weight"))
    assert _error(folder) == (
        f"{folder}: the weights do not fit config.json; missing: "
        "bert.encoder.layer.1.output.dense.weight; take both from one checkpoint"
    )


def test_half_a_head_is_no_head(folder):
    _edit_tensors(folder, lambda tensors: tensors.pop("classifier.bias"))
    assert "; missing: classifier.bias; " in _error(folder)


def test_unexpected_tensors(folder):
    name = "bert.encoder.layer.0.gate.bias"
    _edit_tensors(folder, lambda tensors: tensors.update({name: np.zeros(2)}))
    assert _error(folder) == (
        f"{folder}: the weights do not fit config.json; unexpected: {name}; "
        "take both from one checkpoint"
    )


def test_more_layers_in_the_file_than_in_the_config(folder):
    _edit_config(folder, num_hidden_layers=1)
    message = _error(folder)
    assert "unexpected: bert.encoder.layer.1.attention.output.LayerNorm.bias, " in message
    assert message.endswith(" and 11 more; take both from one checkpoint")


def test_tensors_of_the_wrong_shape(folder):
    _edit_config(folder, intermediate_size=40)
    assert (
        "wrong shape: bert.encoder.layer.0.intermediate.dense.bias is (48,), "
        "the config says (40,), " in _error(folder)
    )


def test_everything_that_is_wrong_is_in_the_line(folder):
    def change(tensors):
        tensors["bert.extra"] = tensors.pop("bert.embeddings.LayerNorm.bias")
        tensors["bert.embeddings.word_embeddings.weight"] = np.zeros((3, 3), np.float32)

    _edit_tensors(folder, change)
    assert _error(folder) == (
        f"{folder}: the weights do not fit config.json; missing: bert.embeddings.LayerNorm.bias; "
        "unexpected: bert.extra; wrong shape: bert.embeddings.word_embeddings.weight is (3, 3), "
        "the config says (60, 32); take both from one checkpoint"
    )


def test_quantised_tensors(folder):
    name = "bert.encoder.layer.0.output.dense.weight"
    tensors = {key: torch.from_numpy(value) for key, value in load_file(folder / SINGLE).items()}
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_torch_file(tensors, folder / SINGLE)
    assert f"; not stored as F64, F32, F16, BF16: {name} is F8_E4M3; " in _error(folder)


@pytest.mark.parametrize(("family", "most"), [("bert", 40), ("roberta", 38), ("distilbert", 40)])
def test_more_tokens_than_positions(family, most):
    model = nnx.eval_shape(lambda: Encoder(tiny_config(family), rngs=nnx.Rngs(0)))
    ids = jnp.full((1, most + 1), 5)
    with pytest.raises(UserError) as caught:
        model(ids, jnp.ones_like(ids))
    assert str(caught.value) == (
        f"{most + 1} tokens are more than the model's {most} positions: "
        f"truncate the texts to {most} tokens"
    )
    assert model.embeddings.position_ids(ids[:, 1:]).max() == 39


def test_a_config_can_be_checked_without_a_folder():
    assert EncoderConfig.from_hf(SIZES, num_labels=1).num_labels == 1
    assert (
        EncoderConfig.from_hf(SIZES | {"id2label": {"0": "a", "1": "b", "2": "c"}}).num_labels == 3
    )
