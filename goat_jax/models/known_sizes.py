"""Configs of well-known models, so that runs can be planned and checked without their weights.

The numbers are those of the published config.json files; a setting that a file leaves out takes
transformers' default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from goat_jax.errors import UserError, nearest
from goat_jax.files import user_path
from goat_jax.models.known_decoders import KNOWN_DECODERS
from goat_jax.models.known_encoders import KNOWN_ENCODERS
from goat_jax.models.known_seq2seq import KNOWN_SEQ2SEQ
from goat_jax.pretrained.quiet_transformers import import_transformers
from goat_jax.pretrained.resolve import PACKAGE, find_model, open_checkpoint
from goat_jax.pretrained.safetensors import read_json
from goat_jax.pretrained.text_part import text_config


def _blocks(width: int, layers: int, heads: int, inner: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
    }


def _clip(vision: dict[str, int], patch: int, text: dict[str, int], shared: int) -> dict[str, Any]:
    return {
        "model_type": "clip",
        "projection_dim": shared,
        "vision_config": {**vision, "image_size": 224, "patch_size": patch},
        "text_config": {**text, "vocab_size": 49408, "max_position_embeddings": 77},
    }


def _siglip(
    vision: dict[str, int], image: int, patch: int, text: dict[str, int], vocabulary: int
) -> dict[str, Any]:
    return {
        "model_type": "siglip",
        "vision_config": {**vision, "image_size": image, "patch_size": patch},
        "text_config": {**text, "vocab_size": vocabulary, "max_position_embeddings": 64},
    }


def _vision(kind: str, *blocks: int, image: int = 224, patch: int = 16, **more: Any) -> dict:
    sizes = {"image_size": image, "patch_size": patch}
    return {"model_type": kind, **_blocks(*blocks), **sizes, **more}


def _dinov2(kind: str, width: int, layers: int, heads: int) -> dict[str, Any]:
    inner = {"mlp_ratio": 4}
    found = _vision(kind, width, layers, heads, 0, image=518, patch=14)
    return {key: value for key, value in found.items() if key != "intermediate_size"} | inner


def _dinov3(*blocks: int, **more: Any) -> dict[str, Any]:
    return _vision("dinov3_vit", *blocks, num_register_tokens=4, **more)


def _beit(*blocks: int) -> dict[str, Any]:
    return _vision("beit", *blocks, use_relative_position_bias=True)


_SIGLIP_BASE, _SIGLIP_LARGE = _blocks(768, 12, 12, 3072), _blocks(1024, 24, 16, 4096)
_SIGLIP_SO = _blocks(1152, 27, 16, 4304)
_GATED: dict[str, Any] = {"use_gated_mlp": True, "hidden_act": "silu"}

NAMED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "clip-vit-base-patch32": _clip(
            _blocks(768, 12, 12, 3072), 32, _blocks(512, 12, 8, 2048), 512
        ),
        "clip-vit-base-patch16": _clip(
            _blocks(768, 12, 12, 3072), 16, _blocks(512, 12, 8, 2048), 512
        ),
        "clip-vit-large-patch14": _clip(
            _blocks(1024, 24, 16, 4096), 14, _blocks(768, 12, 12, 3072), 768
        ),
        "vit-base-patch16-224": {
            "model_type": "vit",
            **_blocks(768, 12, 12, 3072),
            "image_size": 224,
            "patch_size": 16,
        },
        "deit-base-distilled-patch16-224": _vision("deit", 768, 12, 12, 3072),
        "deit-small-distilled-patch16-224": _vision("deit", 384, 12, 6, 1536),
        "deit-tiny-distilled-patch16-224": _vision("deit", 192, 12, 3, 768),
        "beit-base-patch16-224": _beit(768, 12, 12, 3072),
        "beit-large-patch16-224": _beit(1024, 24, 16, 4096),
        "dinov2-small": _dinov2("dinov2", 384, 12, 6),
        "dinov2-base": _dinov2("dinov2", 768, 12, 12),
        "dinov2-large": _dinov2("dinov2", 1024, 24, 16),
        "dinov2-with-registers-small": _dinov2("dinov2_with_registers", 384, 12, 6),
        "dinov2-with-registers-base": _dinov2("dinov2_with_registers", 768, 12, 12),
        "dinov2-with-registers-large": _dinov2("dinov2_with_registers", 1024, 24, 16),
        "dinov3-vits16-pretrain-lvd1689m": _dinov3(384, 12, 6, 1536),
        "dinov3-vits16plus-pretrain-lvd1689m": _dinov3(384, 12, 6, 1536, **_GATED),
        "dinov3-vitb16-pretrain-lvd1689m": _dinov3(768, 12, 12, 3072),
        "dinov3-vitl16-pretrain-lvd1689m": _dinov3(1024, 24, 16, 4096),
        "dinov3-vith16plus-pretrain-lvd1689m": _dinov3(1280, 32, 20, 5120, **_GATED),
        "dinov3-vit7b16-pretrain-lvd1689m": _dinov3(
            4096, 40, 32, 8192, query_bias=False, value_bias=False, **_GATED
        ),
        "siglip-base-patch16-224": _siglip(_SIGLIP_BASE, 224, 16, _SIGLIP_BASE, 32000),
        "siglip-large-patch16-256": _siglip(_SIGLIP_LARGE, 256, 16, _SIGLIP_LARGE, 32000),
        "siglip-so400m-patch14-384": _siglip(_SIGLIP_SO, 384, 14, _SIGLIP_SO, 32000),
        "siglip2-base-patch16-224": _siglip(_SIGLIP_BASE, 224, 16, _SIGLIP_BASE, 256000),
        "siglip2-so400m-patch14-384": _siglip(_SIGLIP_SO, 384, 14, _SIGLIP_SO, 256000),
        **KNOWN_ENCODERS,
        **KNOWN_SEQ2SEQ,
        **KNOWN_DECODERS,
    }
)
"""Short name of a model -> the sizes and settings of its config.json."""


def _without_kind(name: str) -> str:
    """Returns a decoder's name without the words for a base or a chat model.

    >>> _without_kind("mistral-nemo-instruct-2407"), _without_kind("gemma-2-9b-it")
    ('mistral-nemo-2407', 'gemma-2-9b')
    """
    return re.sub(r"-(base|chat|instruct|it|pt)(?=-|$)", "", name)


_DECODERS = {_without_kind(name): name for name in KNOWN_DECODERS}


def model_config(source: str | Path) -> dict[str, Any]:
    """Returns the config.json of a model without reading its weights.

    Args:
        source: a folder with a config.json (weights need not be there), a .gguf file,
            ``package:NAME``, or a name in `NAMED`, with or without its owner on the hub and the
            ending ``-hf``. A decoder's name may be that of its base or chat model: both have the
            same sizes.

    Raises:
        UserError: none of these.

    >>> model_config("meta-llama/Llama-2-7b-chat-hf")["intermediate_size"]
    11008
    >>> model_config("roberta-lage")
    Traceback (most recent call last):
    goat_jax.errors.UserError: roberta-lage: neither a folder with a config.json nor a model whose \
sizes are known (did you mean 'roberta-large'?): give a folder, or add its config.json
    """
    text = str(source)
    if text.startswith(PACKAGE):
        source = find_model(text)
    path = user_path(source)
    if path.suffix == ".gguf":
        return open_checkpoint(path)[0]
    if path.is_dir():
        return text_config(read_json(path / "config.json", "a model folder"))
    short = text.rpartition("/")[2].lower().removesuffix("-hf")
    short = short if short in NAMED else _DECODERS.get(_without_kind(short), short)
    if short not in NAMED:
        raise UserError(
            f"{text}: neither a folder with a config.json nor a model whose sizes are known"
            f"{nearest(short, NAMED)}: give a folder, or add its config.json"
        )
    return dict(NAMED[short])


def transformers_config(source: str | Path) -> Any:
    """Returns `model_config` as a config object of transformers, which builds models from it.

    >>> transformers_config("roberta-large").num_hidden_layers
    24
    """
    return import_transformers().AutoConfig.for_model(**model_config(source))
