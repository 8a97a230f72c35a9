"""Every kind of checkpoint folder that transformers writes, or once wrote, gives the same model."""

import json
import weakref
from collections.abc import Collection
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from goat_jax.models.encoder.model import Encoder, EncoderConfig
from goat_jax.models.load import load_model
from goat_jax.models.load_parameters import fill
from goat_jax.models.registry import ARCHITECTURES
from goat_jax.pretrained.safetensors import INDEX, SINGLE, WeightFiles, open_weights

KEY = jax.random.key(7)
FAMILIES = pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
CLASSIFIER = {
    "bert": {"classifier.weight", "classifier.bias"},
    "roberta": {f"classifier.{m}.{p}" for m in ("dense", "out_proj") for p in ("weight", "bias")},
    "distilbert": {f"{m}classifier.{p}" for m in ("", "pre_") for p in ("weight", "bias")},
}
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def _rewrite(folder: Path, change) -> None:
    """Replaces the tensors of a single-file checkpoint by what `change` makes of them."""
    save_file(change(load_file(folder / SINGLE)), folder / SINGLE)


def _assert_filled(found: dict, checkpoint, but: Collection[str] = ()) -> None:
    """Everything but the fresh head is torch's, whether or not torch names the prefix."""
    prefix = checkpoint.torch.base_model_prefix + "."
    expected = {}
    for name, value in checkpoint.torch.named_parameters():
        expected[name if name.startswith((prefix, "cl", "pre_")) else prefix + name] = value
    for name in set(found).difference(but):
        np.testing.assert_array_equal(found[name], expected[name].detach().numpy(), err_msg=name)


@FAMILIES
@pytest.mark.parametrize("kind", ["Model", "ForMaskedLM"])
def test_a_checkpoint_without_head_gets_a_fresh_one(family, kind, save_torch, by_torch_name):
    checkpoint = save_torch(family, kind)
    loaded = load_model(checkpoint.folder, key=KEY, num_labels=3)
    pooler = POOLER if (family, kind) == ("bert", "ForMaskedLM") else set()
    assert set(loaded.fresh) == CLASSIFIER[family] | pooler
    _assert_filled(by_torch_name(loaded.model), checkpoint, but=set(loaded.fresh))


def test_bert_without_pooler_gets_a_fresh_one(save_torch, by_torch_name):
    checkpoint = save_torch("bert", "Model", model_options={"add_pooling_layer": False})
    loaded = load_model(checkpoint.folder, key=KEY)
    assert set(loaded.fresh) == CLASSIFIER["bert"] | POOLER
    _assert_filled(by_torch_name(loaded.model), checkpoint, but=set(loaded.fresh))


@FAMILIES
def test_hidden_states_of_a_bare_model_are_torchs(
    family, save_torch, make_batch, run_torch, run_model
):
    checkpoint = save_torch(family, "Model", seed=5)
    model = load_model(checkpoint.folder, key=KEY).model
    batch = make_batch(model.config.pad_token_id, 2)
    with torch.no_grad():
        expected = run_torch(checkpoint.torch, batch).last_hidden_state.numpy()
    np.testing.assert_allclose(run_model(model, batch)[0], expected, rtol=0, atol=1e-5)


def test_a_fresh_head_is_decided_by_the_key_and_its_own_name(save_torch, by_torch_name):
    pooled, bare = (
        save_torch("bert", "Model", model_options={"add_pooling_layer": pooling}).folder
        for pooling in (True, False)
    )
    first, again, other, no_pooler = (
        by_torch_name(load_model(folder, key=key, num_labels=3).model)["classifier.weight"]
        for folder, key in ((pooled, KEY), (pooled, KEY), (pooled, jax.random.key(8)), (bare, KEY))
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, no_pooler)  # whatever else is fresh
    assert not np.array_equal(first, other)
    assert 0.01 < first.std() < 0.03  # torch's initializer_range
    square = by_torch_name(load_model(bare, key=KEY, num_labels=32).model)
    assert not np.array_equal(square["classifier.weight"], square["bert.pooler.dense.weight"])


def test_a_head_of_another_task_can_be_left_behind(save_torch, by_torch_name):
    checkpoint = save_torch("roberta", num_labels=3)
    loaded = load_model(checkpoint.folder, key=KEY, num_labels=2, new_head=True)
    assert set(loaded.fresh) == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    found = by_torch_name(loaded.model)
    assert found["classifier.out_proj.weight"].shape == (2, 32)
    _assert_filled(found, checkpoint, but=set(loaded.fresh))


@FAMILIES
def test_shards_give_the_same_model_as_one_file(family, save_torch, by_torch_name):
    checkpoint = save_torch(family, max_shard_size="20KB")
    shards = list(checkpoint.folder.glob("*.safetensors"))
    assert len(shards) > 2 and (checkpoint.folder / INDEX).is_file()
    loaded = load_model(checkpoint.folder, key=KEY)
    assert loaded.fresh == ()
    _assert_filled(by_torch_name(loaded.model), checkpoint)


def test_names_of_old_conversions(save_torch, by_torch_name):
    checkpoint = save_torch("bert")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(tensors):
        for new, former in old.items():
            tensors = {name.replace(new, former): value for name, value in tensors.items()}
        return tensors

    _rewrite(checkpoint.folder, rename)
    assert "bert.embeddings.LayerNorm.gamma" in open_weights(checkpoint.folder)
    loaded = load_model(checkpoint.folder, key=KEY)
    _assert_filled(by_torch_name(loaded.model), checkpoint)


@FAMILIES
def test_position_buffers_are_no_parameters(family, save_torch):
    checkpoint = save_torch(family)
    name = f"{family}.embeddings.position_ids"
    _rewrite(checkpoint.folder, lambda tensors: tensors | {name: np.arange(24)[None]})
    assert load_model(checkpoint.folder, key=KEY).fresh == ()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_types_are_read_exactly(stored, save_torch, by_torch_name):
    checkpoint = save_torch("bert", dtype=stored)
    found = by_torch_name(load_model(checkpoint.folder, key=KEY).model)
    assert {value.dtype for value in found.values()} == {np.dtype("float32")}
    _assert_filled(found, checkpoint)


@FAMILIES
def test_settings_left_out_have_the_values_of_transformers(family):
    # Only what has no default: the sizes.
    keys = "model_type vocab_size hidden_size num_hidden_layers num_attention_heads "
    keys += "intermediate_size dim n_layers n_heads hidden_dim"
    full = transformers.AutoConfig.for_model(family).to_dict()
    minimal = {key: full[key] for key in keys.split() if key in full}
    config = EncoderConfig.from_hf(minimal)
    assert config == EncoderConfig.from_hf(full)
    assert config.pad_token_id == full["pad_token_id"]
    assert config.num_labels == 2
    assert config.type_vocab_size == full.get("type_vocab_size", 0)


def test_a_single_file_goes_before_an_index(save_torch, tmp_path, by_torch_name):
    one, shards = save_torch("bert"), save_torch("bert", max_shard_size="20KB", seed=1)
    for path in [*shards.folder.iterdir(), *one.folder.iterdir()]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    found = by_torch_name(load_model(tmp_path, key=KEY).model)
    _assert_filled(found, one)
    reloaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    np.testing.assert_array_equal(
        found["classifier.weight"], reloaded.classifier.weight.detach().numpy()
    )


def test_a_half_width_model_keeps_norms_and_heads_wide(save_torch):
    loaded = load_model(save_torch("bert").folder, key=KEY, dtype=jnp.bfloat16)
    dtypes = {
        ".".join(map(str, path)): value.dtype
        for path, value in nnx.to_flat_state(nnx.state(loaded.model, nnx.Param))
    }
    wide = {path for path, dtype in dtypes.items() if dtype == jnp.float32}
    assert wide == {path for path in dtypes if "norm" in path or path.startswith("head")}
    assert {dtypes[path] for path in set(dtypes) - wide} == {jnp.dtype("bfloat16")}


def test_one_tensor_is_in_memory_at_a_time(save_torch):
    folder = save_torch("bert", num_hidden_layers=6).folder
    alive: list[int] = []
    refs: list[weakref.ref] = []

    class Watched(WeightFiles):
        def __getitem__(self, name):
            tensor = super().__getitem__(name)
            alive.append(sum(ref() is not None for ref in refs))
            refs.append(weakref.ref(tensor))
            return tensor

    weights = open_weights(folder)
    config = EncoderConfig.from_hf(json.loads((folder / "config.json").read_text()))
    model = nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0)))
    watched = Watched(weights.folder, weights.entries)
    fill(model, watched, ARCHITECTURES["bert"], KEY, jnp.bfloat16)
    assert len(alive) == len(weights)
    # The tensor before may still be bound to a name while the next one is read, none before it.
    assert max(alive) <= 1
