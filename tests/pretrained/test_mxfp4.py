"""MXFP4 checkpoints of gpt-oss, as published: the values of transformers, to the bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from decoder_parity import write_torch
from goat_jax.errors import UserError
from goat_jax.interop.hf_config import FORMS
from goat_jax.interop.merged import merged_config
from goat_jax.models.load import load_model
from goat_jax.models.torch_layout import torch_tensors
from goat_jax.pretrained.resolve import open_checkpoint

EXPERTS = 3
SETTINGS = {
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
}
QUANTIZED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


def write(folder, method=QUANTIZED):
    """A checkpoint with random blocks and scales; returns transformers' values."""
    write_torch(folder, "GptOss", SETTINGS)
    file = folder / "model.safetensors"
    tensors, expected = load_file(file), {}
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("up_proj", "down_proj"))]:
        _, inputs, outputs = tensors.pop(name).shape
        rows = EXPERTS, outputs, inputs // 32
        blocks = torch.randint(0, 256, (*rows, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(110, 132, rows, dtype=torch.uint8, generator=generator)
        tensors |= {name + "_blocks": blocks, name + "_scales": scales}
        expected[name] = convert_moe_packed_tensors(blocks, scales).float().numpy()
    save_file(tensors, file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    return expected


def test_values_are_those_of_transformers(tmp_path):
    expected = write(tmp_path)
    hf, weights = open_checkpoint(tmp_path)
    assert len(expected) == 2 and set(expected) < set(weights)
    for name, values in expected.items():
        assert weights.entries[name].shape == values.shape
        np.testing.assert_array_equal(weights[name].astype(np.float32), values)
        np.testing.assert_array_equal(weights.item(name, 2).astype(np.float32), values[2])
    loaded = load_model(tmp_path, key=jax.random.key(0), dtype=jnp.bfloat16)
    found, layer = torch_tensors(loaded.model), "model.layers.0.mlp.experts"
    for expert in range(EXPERTS):
        both = expected[f"{layer}.gate_up_proj"][expert].T
        for part, name in enumerate(("gate_proj", "up_proj")):
            kernel = np.asarray(found[f"{layer}.{expert}.{name}.weight"], np.float32)
            np.testing.assert_array_equal(kernel, both[part::2])
    written = merged_config(hf, FORMS["language model", "language"], "bfloat16", ())
    assert "quantization_config" not in written


def test_what_is_not_read(tmp_path):
    write(tmp_path, {"quant_method": "gptq"})
    with pytest.raises(UserError, match="quantization_config is 'gptq', and only mxfp4 is read"):
        load_model(tmp_path, key=jax.random.key(0))
    write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.experts.down_proj_scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"down_proj_scales does not fit .*down_proj_blocks"):
        open_checkpoint(tmp_path)
