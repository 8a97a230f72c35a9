"""A tiny vision transformer in Hugging Face form, and photos of one color for each class."""

import io
import json
from pathlib import Path

import numpy as np
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

from goat_jax.models.torch_layout import torch_tensors
from goat_jax.models.vision.config import tiny_vision_config
from goat_jax.models.vision.model import VisionModel

COLORS = ("blue", "green", "red")


def write_vit(folder: Path) -> Path:
    """A random ViT of two layers without a head."""
    config = tiny_vision_config("vit", num_layers=2)
    tensors = torch_tensors(VisionModel(config, rngs=nnx.Rngs(0)))
    folder.mkdir(parents=True)
    head = {name for name in tensors if name.startswith("classifier")}
    save_file({n: t for n, t in tensors.items() if n not in head}, folder / "model.safetensors")
    sizes = {
        "model_type": "vit",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
    }
    (folder / "config.json").write_text(json.dumps(sizes))
    return folder


def photo(color: str, number: int) -> bytes:
    """The file of a photo of some color; another shade for each number."""
    pixels = np.full((20, 24, 3), 40, np.uint8)
    pixels[..., 2 - COLORS.index(color)] = 180 + number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_photos(folder: Path, count: int) -> Path:
    """Folders CLASS/SUB/NUMBER.png, `count` photos of each class."""
    for color in COLORS:
        for number in range(count):
            path = folder / color / f"day{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo(color, number))
    return folder
