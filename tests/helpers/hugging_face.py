"""Checkpoints as Hugging Face writes them."""

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from goat_jax.models.torch_layout import torch_tensors


def write_weights(folder: Path, model: Any, model_type: str, **fields: int) -> None:
    """Writes a model's tensors and its config.json: the sizes that all families have, and these."""
    config = model.config
    folder.mkdir(parents=True)
    save_file(torch_tensors(model), folder / "model.safetensors")
    sizes = {
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
    }
    (folder / "config.json").write_text(json.dumps(sizes | fields))
