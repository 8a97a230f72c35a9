"""Tiny random vision models of transformers, and the largest difference of our logits from theirs.

Run as a program, it prints the table of docs/models.md:

    PYTHONPATH=tests/helpers python tests/helpers/torch_models/vision_parity.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from goat_jax.models.load import load_model
from kinds import present
from parity_table import print_table
from random_torch import randomized

TOLERANCE = 1e-5
"""Largest difference of a logit, over the largest logit."""

IMAGES = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
)
FULL = {**IMAGES, "intermediate_size": 48}
TEXTS = dict(
    vocab_size=60,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=12,
)
PARTS: dict[str, dict[str, Any]] = {
    "clip": {"text": TEXTS | {"eos_token_id": 59}, "outside": {"projection_dim": 20}},
    "siglip": {"text": TEXTS | {"projection_size": 32}, "outside": {}},
}
"""Full models of two towers: settings of the text tower, and of the whole."""

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIP", FULL),
    "clip_vision_model": ("CLIPVision", FULL),
    "vit": ("ViT", FULL),
    "deit": ("DeiT", FULL),
    "dinov2": ("Dinov2", IMAGES),
    "dinov2_with_registers": ("Dinov2WithRegisters", IMAGES),
    "dinov3_vit": ("DINOv3ViT", FULL | {"num_register_tokens": 2}),
    "beit": ("Beit", FULL | {"use_relative_position_bias": True}),
    "siglip": ("Siglip", FULL),
    "siglip_vision_model": ("SiglipVision", FULL),
}
"""model_type -> the beginning of its class names, and the usual settings."""

CASES = [
    ("clip", {}, (16, 16)),
    ("clip", {"image_size": 18, "layer_norm_eps": 0.1, "num_labels": 5}, (18, 18)),
    ("clip", {"hidden_act": "gelu", "num_channels": 1, "patch_size": 5}, (16, 16)),
    ("vit", {}, (16, 16)),
    ("vit", {"qkv_bias": False, "image_size": 19, "hidden_act": "quick_gelu"}, (19, 19)),
    ("vit", {"image_size": [12, 20], "layer_norm_eps": 0.1, "num_hidden_layers": 1}, (12, 20)),
    ("vit", {"hidden_act": "gelu_new", "num_attention_heads": 2, "num_labels": 7}, (16, 16)),
    ("deit", {}, (16, 16)),
    ("deit", {"qkv_bias": False, "image_size": [12, 20], "hidden_act": "quick_gelu"}, (12, 20)),
    ("deit", {"layer_norm_eps": 0.1, "patch_size": 5, "num_labels": 4}, (16, 16)),
    ("dinov2", {}, (16, 16)),
    ("dinov2", {}, (22, 16)),
    ("dinov2", {}, (8, 8)),  # a smaller grid
    ("dinov2", {}, (32, 8)),  # as many patches as there are positions, but another grid
    ("dinov2", {"qkv_bias": False, "mlp_ratio": 2, "layer_norm_eps": 0.1}, (16, 16)),
    ("dinov2", {"image_size": 15, "patch_size": 3, "hidden_act": "quick_gelu"}, (24, 33)),
    ("dinov2_with_registers", {}, (16, 16)),
    ("dinov2_with_registers", {"num_register_tokens": 0, "mlp_ratio": 2}, (16, 16)),
    ("dinov2_with_registers", {"num_register_tokens": 1, "qkv_bias": False}, (24, 12)),
    ("dinov2_with_registers", {"image_size": 28, "layer_norm_eps": 0.1}, (16, 8)),
    ("dinov2_with_registers", {"hidden_act": "relu", "num_attention_heads": 2}, (32, 8)),
    ("dinov3_vit", {}, (16, 16)),
    ("dinov3_vit", {"rope_theta": 7.0, "num_register_tokens": 0, "key_bias": True}, (24, 12)),
    ("dinov3_vit", {"use_gated_mlp": True, "hidden_act": "silu", "query_bias": False}, (8, 16)),
    ("dinov3_vit", {"proj_bias": False, "mlp_bias": False, "value_bias": False}, (17, 16)),
    ("dinov3_vit", {"layer_norm_eps": 0.1, "num_attention_heads": 2}, (32, 8)),
    ("beit", {}, (16, 16)),
    ("beit", {"use_mean_pooling": False, "use_absolute_position_embeddings": True}, (16, 16)),
    ("beit", {"use_shared_relative_position_bias": True, "layer_scale_init_value": 0.0}, (16, 16)),
    (
        "beit",
        {"use_shared_relative_position_bias": True, "use_relative_position_bias": False}
        | {"image_size": 18, "layer_norm_eps": 0.1, "hidden_act": "relu"},
        (18, 18),
    ),
    ("beit", {"use_relative_position_bias": False, "image_size": [12, 20]}, (12, 20)),
    ("siglip", {}, (16, 16)),
    ("siglip", {"image_size": 18, "layer_norm_eps": 0.1, "num_labels": 5}, (18, 18)),
    ("siglip", {"hidden_act": "gelu", "num_channels": 1, "patch_size": 5}, (16, 16)),
    ("siglip", {"vision_use_head": False, "num_attention_heads": 2}, (16, 16)),
]
"""model_type, settings that are not usual, and the size (height, width) of the images."""

PLAIN = [(family, {}, (16, 16)) for family in ("clip", "vit", "dinov2", "siglip")]
"""The cases of the quick tier."""


def config_of(
    family: str, settings: Mapping[str, Any], labels: int, text: Mapping[str, Any]
) -> Any:
    """A config of transformers; `text` changes the text tower of a model that has one."""
    start, usual = FAMILIES[family]
    make, own = getattr(transformers, start + "Config"), {**usual, **settings}
    if family not in PARTS:
        return make(**own, num_labels=labels)
    parts = PARTS[family]
    towers = {"vision_config": own, "text_config": {**parts["text"], **text}}
    return make(**towers, **parts["outside"], num_labels=labels)


class Dinov3Classifier(transformers.DINOv3ViTModel):
    """The linear classifier of DINOv3's authors, which transformers does not have."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.classifier = torch.nn.Linear(2 * config.hidden_size, config.num_labels)

    def forward(self, pixel_values, **options):  # pyright: ignore[reportIncompatibleMethodOverride]
        found = super().forward(pixel_values, **options)
        hidden, before = present(found.last_hidden_state), 1 + self.config.num_register_tokens
        vector = torch.cat([hidden[:, 0], hidden[:, before:].mean(1)], 1)
        found["logits"] = self.classifier(vector)
        return found


def write(
    folder: Path,
    family: str,
    settings: Mapping[str, Any],
    *,
    kind: str = "ForImageClassification",
    seed: int = 0,
    labels: int = 3,
    text: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Saves a model of one of the family's classes, every number in it random, and returns it."""
    config = config_of(family, settings, labels, text or {})
    missing = kind == "ForImageClassification" and family == "dinov3_vit"
    make = Dinov3Classifier if missing else getattr(transformers, FAMILIES[family][0] + kind)
    model = randomized(lambda: make(config), seed)
    model.save_pretrained(folder, **options)
    return model


def pixels(size: tuple[int, int], channels: int = 3, rows: int = 3) -> np.ndarray:
    """Random images, channels last."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, *size, channels)).astype(np.float32)


def difference(case: tuple[str, dict[str, Any], tuple[int, int]], folder: Path) -> float:
    """Largest difference of our logits from torch's, over the largest logit."""
    family, settings, size = case
    settings = dict(settings)
    model = write(folder, family, settings, labels=settings.pop("num_labels", 3))
    images = pixels(size, settings.get("num_channels", 3))
    loaded = load_model(folder, key=jax.random.key(0))
    assert loaded.fresh == ()
    graph, state = nnx.split(loaded.model)
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(lambda state, images: nnx.merge(graph, state)(images))(state, images)
    with torch.no_grad():
        theirs = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
    assert theirs.std(0).max() > 0.01  # the images tell
    return float(np.abs(np.asarray(logits) - theirs).max() / np.abs(theirs).max())


if __name__ == "__main__":
    print_table(CASES, lambda case: case[0], difference)
