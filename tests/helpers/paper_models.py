"""Tiny random models and data in the form of the paper's: RoBERTa, CLIP, LLaMA, images, rows."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from goat_jax.data.tasks.benchmarks.commonsense import FOLDERS
from goat_jax.data.tasks.benchmarks.vision import vision_classes
from goat_jax.models.encoder.model import Encoder, tiny_config
from goat_jax.models.torch_layout import torch_tensors


def write_roberta(folder: Path) -> Path:
    """A random two-layer RoBERTa with a tokenizer of letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir()
    letters = [chr(code) for code in range(33, 127)]
    words = {w: n for n, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters])}
    config = tiny_config("roberta", vocab_size=len(words), num_layers=2, num_labels=3)
    hf = {
        "model_type": "roberta",
        "vocab_size": len(words),
        "hidden_size": config.hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": 1e-5,
        "num_labels": 3,
    }
    # Weights without a head: every task starts its own.
    tensors = torch_tensors(Encoder(config, rngs=nnx.Rngs(0)))
    bare = {name: value for name, value in tensors.items() if not name.startswith("classifier")}
    save_file(bare, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hf))
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    settings |= {"unk_token": "<unk>", "model_max_length": 38}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_clip(folder: Path) -> Path:
    """A random CLIP of two layers with a tokenizer of letters and digits."""
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    tokens = [*letters, *(each + "</w>" for each in letters), "<|startoftext|>", "<|endoftext|>"]
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    config = transformers.CLIPConfig(
        vision_config={**sizes, "intermediate_size": 64, "image_size": 16, "patch_size": 8},
        text_config={
            **sizes,
            "intermediate_size": 32,
            "vocab_size": len(tokens),
            "eos_token_id": len(tokens) - 1,
            "max_position_embeddings": 77,
        },
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(folder)
    numbered = {token: n for n, token in enumerate(tokens)}
    transformers.CLIPTokenizer(vocab=numbered, merges=[]).save_pretrained(folder)
    return folder


def image_folder(root, name, count=2):
    """Images of the first two classes, in folders that are called as in the official archive."""
    for split in ("train", "test"):
        for kind in vision_classes(name)[0][:2]:
            folder = root / split / kind.strip("/").replace("/", "_")
            folder.mkdir(parents=True)
            for number in range(count):
                seed = hash((split, kind, number)) % 2**32
                pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def write_questions(root: Path) -> Path:
    """Two rows of every language task under the names of their publishers, and of RTE."""
    number = {"question": "what ?", "query": "what ?", "answer": "#### 2", "response": "#### 2"}
    number |= {"type": "GSM_Rephrased", "original_question": "what ?"}
    asked = {"instruction": "is it ?\n\nAnswer format: true/false", "input": ""}
    choice = asked | {"output": "the correct answer is true", "answer": "true"}
    chat = {"instruction": "what ?", "output": "the thing", "conversations": []}
    judged = {"question_id": 1, "category": "math", "turns": ["what ?", "is it ?"]}
    pair = {"sentence1": "a.", "sentence2": "b.", "label": 1}
    rows = {
        "commonsense_170k": [choice] * 130,
        "MetaMathQA-395K": [number] * 230,
        "WizardLM_evol_instruct_70k": [chat] * 230,
        "test": [number] * 2,
        "question": [judged],
        **{f"{names[0]}/test": [choice] * 2 for names in FOLDERS.values()},
        "rte/train": [pair, pair | {"label": 0}] * 3,
        "rte/validation": [pair, pair | {"label": 0}],
    }
    for name, own in rows.items():
        path = root / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(own))
    return root
