"""GGUF files written here: names, order of rows, settings, and what is refused."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from goat_jax.errors import UserError
from goat_jax.models.load import load_model
from goat_jax.models.load_parameters import fill
from goat_jax.models.registry import architecture_of
from goat_jax.models.torch_layout import torch_tensors
from goat_jax.pretrained.fingerprint import fingerprint
from goat_jax.pretrained.gguf.architectures import LAYER_NAMES
from goat_jax.pretrained.gguf.config import LLAMA3_ROPE, llama3_divisors
from goat_jax.pretrained.gguf.file import read_gguf
from goat_jax.pretrained.gguf.weights import OUTER_NAMES, open_gguf

ARCHITECTURES = ("llama", "qwen2", "qwen3")
LAYERS, HEADS, GROUPS, SIZE, WIDTH, INNER, VOCABULARY = 2, 4, 2, 8, 32, 64, 48
KINDS = {"F32": 0, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 2e-2}


def hf_tensors(biases=False, tied=True, norms=False):
    """A tiny model's tensors, by Hugging Face's names."""
    rng = np.random.default_rng(0)
    shapes = {
        "q_proj": (HEADS * SIZE, WIDTH),
        "k_proj": (GROUPS * SIZE, WIDTH),
        "v_proj": (GROUPS * SIZE, WIDTH),
    }
    tensors = {
        "model.embed_tokens.weight": rng.normal(size=(VOCABULARY, WIDTH)),
        "model.norm.weight": rng.normal(size=WIDTH),
    }
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        for name, shape in shapes.items():
            tensors[f"{start}self_attn.{name}.weight"] = rng.normal(size=shape)
            if biases:
                tensors[f"{start}self_attn.{name}.bias"] = rng.normal(size=shape[0])
        for name in ("q_norm", "k_norm") if norms else ():
            tensors[f"{start}self_attn.{name}.weight"] = rng.normal(size=SIZE)
        tensors[f"{start}self_attn.o_proj.weight"] = rng.normal(size=(WIDTH, HEADS * SIZE))
        tensors[f"{start}mlp.gate_proj.weight"] = rng.normal(size=(INNER, WIDTH))
        tensors[f"{start}mlp.up_proj.weight"] = rng.normal(size=(INNER, WIDTH))
        tensors[f"{start}mlp.down_proj.weight"] = rng.normal(size=(WIDTH, INNER))
        tensors[f"{start}input_layernorm.weight"] = rng.normal(size=WIDTH)
        tensors[f"{start}post_attention_layernorm.weight"] = rng.normal(size=WIDTH)
    if not tied:
        tensors["lm_head.weight"] = rng.normal(size=(VOCABULARY, WIDTH))
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def interleave(rows, heads):
    """Permutes q and k as llama.cpp's converter: row j of each half becomes rows 2j and 2j + 1."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(rows.shape)


def gguf_name(name):
    module, _, parameter = name.rpartition(".")
    for ours, theirs in OUTER_NAMES.items():
        if module == theirs:
            return f"{ours}.{parameter}"
    _, _, layer, part = module.split(".", 3)
    ours = next(ours for ours, theirs in LAYER_NAMES.items() if theirs == part)
    return f"blk.{layer}.{ours}.{parameter}"


def write(path, tensors, architecture="llama", kind="F32", extra=()):
    """A GGUF file; rows of q and k are put in llama.cpp's order for llama."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(500000.0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for add, *values in extra:
        getattr(writer, add)(*values)
    for name, tensor in tensors.items():
        heads = HEADS if "q_proj" in name else GROUPS if "k_proj" in name else 0
        if heads and architecture == "llama":
            tensor = interleave(tensor, heads)
        quantised = gguf.GGMLQuantizationType[kind if tensor.ndim == 2 else "F32"]
        own = gguf_name(name) if name.startswith(("model.", "lm_head")) else name
        writer.add_tensor(own, gguf.quantize(tensor, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensors_come_back_under_their_names(tmp_path, kind, architecture):
    biases = architecture == "qwen2"
    tensors = hf_tensors(biases, norms=architecture == "qwen3")
    config, weights = open_gguf(write(tmp_path / "a.gguf", tensors, architecture, kind))
    assert set(weights) == set(tensors) and len(weights) == len(tensors)
    for name, tensor in tensors.items():
        entry = weights.entries[name]
        assert (entry.file, entry.dtype, entry.shape) == (weights.folder, "F32", tensor.shape)
        assert weights[name].dtype == np.float32 and type(weights[name]) is np.ndarray
        np.testing.assert_allclose(weights[name], tensor, rtol=0, atol=4 * KINDS[kind])
    assert config["model_type"] == architecture and config["attention_bias"] is biases


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_decoder_is_filled(tmp_path, architecture):
    tensors = hf_tensors(architecture == "qwen2", tied=False, norms=architecture == "qwen3")
    config, weights = open_gguf(write(tmp_path / "a.gguf", tensors, architecture))
    row = architecture_of(config, tmp_path)
    model = nnx.eval_shape(lambda: row.build(row.config(config), rngs=nnx.Rngs(0)))
    assert fill(model, weights, row, jax.random.key(0), jnp.float32).fresh == ()
    found = torch_tensors(model)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_biases_of_llama_are_put_in_order_too(tmp_path):
    tensors = hf_tensors(biases=True)
    _, weights = open_gguf(write(tmp_path / "a.gguf", tensors))
    for name in tensors:
        np.testing.assert_array_equal(weights[name], tensors[name])


def test_the_config(tmp_path):
    config, _ = open_gguf(write(tmp_path / "a.gguf", hf_tensors()))
    assert config == {
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": SIZE,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "vocab_size": VOCABULARY,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }


def test_an_output_of_its_own(tmp_path):
    config, weights = open_gguf(write(tmp_path / "a.gguf", hf_tensors(tied=False)))
    assert config["tie_word_embeddings"] is False
    assert weights["lm_head.weight"].shape == (VOCABULARY, WIDTH)


LINEAR = ("add_rope_scaling_type", gguf.RopeScalingType.LINEAR)
YARN = ("add_rope_scaling_type", gguf.RopeScalingType.YARN)
FACTOR = ("add_rope_scaling_factor", 4.0)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([LINEAR, FACTOR], {"rope_type": "linear", "factor": 4.0}),
        ([("add_float32", "llama.rope.scale_linear", 2.0)], {"rope_type": "linear", "factor": 2.0}),
        (
            [YARN, FACTOR, ("add_rope_scaling_orig_ctx_len", 64)],
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        ([("add_rope_scaling_type", gguf.RopeScalingType.NONE)], None),
    ],
)
def test_rope_scaling(tmp_path, extra, expected):
    config, _ = open_gguf(write(tmp_path / "a.gguf", hf_tensors(), extra=extra))
    assert config.get("rope_scaling") == expected


def test_llama3_rope_scaling_from_its_divisors(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 8.0, **LLAMA3_ROPE}
    theirs = transformers.LlamaConfig(
        hidden_size=512,
        num_attention_heads=HEADS,
        rope_parameters={"rope_theta": 500000.0, **scaling},
        max_position_embeddings=131072,
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    plain = 500000.0 ** -(np.arange(0, 128, 2) / 128)
    divisors = (plain / scaled.numpy()).astype(np.float32)
    np.testing.assert_allclose(divisors, llama3_divisors(scaling, 500000.0, 128), rtol=1e-5)
    assert 1 < np.median(np.unique(divisors.round(3))) < 8  # some are in between

    small = llama3_divisors(scaling, 500000.0, SIZE)
    tensors = {**hf_tensors(), "rope_freqs.weight": small}
    config, weights = open_gguf(write(tmp_path / "a.gguf", tensors))
    assert config["rope_scaling"] == scaling and "rope_freqs.weight" not in weights
    tensors["rope_freqs.weight"] = small + 1
    with pytest.raises(UserError, match="is not Llama 3's scaling"):
        open_gguf(write(tmp_path / "b.gguf", tensors))


def test_a_window_means_mistral(tmp_path):
    extra = [("add_sliding_window", 64)]
    config, _ = open_gguf(write(tmp_path / "a.gguf", hf_tensors(), extra=extra))
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 64)
    with pytest.raises(UserError, match=r"qwen2 with a sliding window \(64\)"):
        open_gguf(write(tmp_path / "b.gguf", hf_tensors(True), "qwen2", extra=extra))


def test_the_fingerprint_is_of_the_values(tmp_path):
    tensors = hf_tensors()
    one, two = (open_gguf(write(tmp_path / name, tensors))[1] for name in ("a.gguf", "b.gguf"))
    tensors["model.norm.weight"][3] += 1e-6
    _, other = open_gguf(write(tmp_path / "c.gguf", tensors))
    assert fingerprint(one) == fingerprint(two) != fingerprint(other)


@pytest.mark.parametrize(
    ("architecture", "extra", "message"),
    [
        ("falcon", [], r"a\.gguf has architecture 'falcon': give a model of one of llama, qwen2"),
        ("qwen2", [("add_expert_count", 8)], "is a mixture of experts"),
        ("llama", [("add_rope_dimension_count", 4)], "heads of 8 with 4 rotated dimensions"),
        ("llama", [("add_value_length", 4)], "values of 4: only equal sizes"),
        (
            "llama",
            [("add_rope_scaling_type", gguf.RopeScalingType.LONGROPE), FACTOR],
            "rope scaling longrope: only linear and yarn are supported",
        ),
        (
            "llama",
            [YARN, FACTOR, ("add_rope_scaling_attn_factors", 2.0)],
            "rope scaling yarn, attn_factor: only linear",
        ),
    ],
)
def test_settings_that_are_not_supported(tmp_path, architecture, extra, message):
    path = write(tmp_path / "a.gguf", hf_tensors(), architecture, extra=extra)
    with pytest.raises(UserError, match=message) as caught:
        open_gguf(path)
    assert "\n" not in str(caught.value)


def test_tensors_that_are_not_known(tmp_path):
    extra = {"blk.0.attn_sub_norm.weight": np.ones(8, "f")}
    path = write(tmp_path / "a.gguf", {**hf_tensors(), **extra})
    with pytest.raises(UserError, match=r"unknown tensor blk\.0\.attn_sub_norm\.weight"):
        open_gguf(path)
    extra = {"blk.0.attn_q_norm.weight": np.ones(8, "f")}  # of another architecture
    path = write(tmp_path / "c.gguf", {**hf_tensors(), **extra})
    with pytest.raises(UserError, match=r"unexpected: model\.layers\.0\.self_attn\.q_norm"):
        load_model(path, key=jax.random.key(0))
    path = write(tmp_path / "b.gguf", {"blk.0.attn_norm.weight": np.ones(8, "f")})
    with pytest.raises(UserError, match=r"has no token_embd\.weight"):
        open_gguf(path)


def test_a_quantisation_the_package_cannot_undo(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length"):
        writer.add_uint32(f"llama.{key}", 32)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.int8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"token_embd\.weight is quantised as I8, which gguf"):
        open_gguf(tmp_path / "a.gguf")


def test_files_that_are_no_gguf(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_gguf(tmp_path / "none.gguf")
    (tmp_path / "b.gguf").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(UserError, match=r"is not a GGUF file \(it starts with b'<!DO'\)"):
        open_gguf(tmp_path / "b.gguf")
    (tmp_path / "c.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="is not a GGUF file"):
        open_gguf(tmp_path / "c.gguf")


def test_a_file_is_parsed_once_until_it_changes(tmp_path):
    path = write(tmp_path / "a.gguf", hf_tensors())
    first = read_gguf(path)
    assert read_gguf(path) is first
    write(path, hf_tensors(tied=False))
    assert set(read_gguf(path).tensors) == {*first.tensors, "output.weight"}


def test_a_file_cut_short_anywhere(tmp_path):
    whole = write(tmp_path / "a.gguf", hf_tensors()).read_bytes()
    for length in [4, 8, 20, 24, 60, 400, 1200, 2000, len(whole) // 2, len(whole) - 32]:
        path = tmp_path / "cut.gguf"
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"damaged or truncated at {length} bytes") as caught:
            open_gguf(path)
        assert "\n" not in str(caught.value)
