"""Differences between CLIP's vision tower, ViT and DINOv2, as one table.

The families differ in their names, in what is normalized, in the classifier's input and in whether
they take other image sizes. Each difference is a field of `VisionFamily`; there is no other code
per family. Names are those of the modules in transformers 5. `renamed` translates to them from the
names of transformers 4, which version 5 still writes into files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from goat_jax.models.config_keys import (
    EPSILON,
    SIZES,
    Check,
    anything,
    keys_of_family,
    number,
    switch,
)
from goat_jax.models.family import Family
from goat_jax.typing import Array


def _class_token(hidden: Array) -> Array:
    return hidden[:, 0]


def _mean_of_patches(hidden: Array) -> Array:
    return hidden[:, 1:].mean(1)


def clip_section(hf: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns a tower's section of a CLIP config.json, with the keys outside it that concern it.

    If a file has ``NAME_config_dict``, that section wins, as in transformers.

    >>> clip_section({"vision_config": {"hidden_size": 8}, "projection_dim": 4}, "vision")
    {'hidden_size': 8, 'projection_dim': 4}
    """
    full = hf.get(f"{name}_config_dict")
    section = dict((hf.get(f"{name}_config") if full is None else full) or {})
    outside = ("projection_dim", "num_labels", "id2label")
    # A tower's section may hold labels and projections, too; only those of the full model apply.
    inside = {key: value for key, value in section.items() if key not in outside}
    return inside | {key: hf[key] for key in outside if hf.get(key) is not None}


def _clip_vision(hf: Mapping[str, Any]) -> dict[str, Any]:
    return clip_section(hf, "vision")


def _with_inner_size(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Adds intermediate_size, which DINOv2 gives as a multiple of the width."""
    width, ratio = hf.get("hidden_size"), hf.get("mlp_ratio") or 4
    return {**hf, "intermediate_size": int(width * ratio) if type(width) is int else None}


def _whole_clip(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Wraps a vision tower's config in a full CLIP config, as CLIP's image classifier requires."""
    whole = {key: hf[key] for key in ("projection_dim",) if key in hf}
    return {"model_type": "clip", "vision_config": dict(hf), **whole}


def _without_mask_token(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Turns off the mask token, which is for pretraining only, so our model does not have it."""
    return {**hf, "use_mask_token": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionFamily(Family):
    """Names and settings that distinguish one family of vision models.

    Attributes:
        prefix: the tower's name inside a model with a head.
        embeddings: our name of a part of the embeddings -> its torch name under the prefix.
        layers: name of the list of layers, under the prefix.
        block: our name of a block's part -> its torch name.
        norms: our name of a norm outside the blocks -> its torch name; without "first_norm" the
            embeddings are not normalized.
        leading: number of leading axes of size 1 in torch, for the class token and for the
            positions.
        patch_bias: whether the patch embedding has a bias.
        normalised: whether the last hidden states are those after the final norm.
        pooled: functions from the last hidden states (B, T, D) to vectors (B, D); the classifier's
            input is their concatenation.
        other_sizes: whether images of other sizes are taken, with interpolated positions.
        heads: the heads that there are weights for, keys of `goat_jax.models.vision.heads.HEADS`.
        flatten: function from config.json to the keys in `keys`, on one level.
        keys: field of `VisionConfig` -> the key.
        defaults: fields that config.json may leave out or does not have; the values are those of
            transformers.
        renamed: pairs (part of a stored name, current part), in the order in which they apply.
    """

    prefix: str
    embeddings: Mapping[str, str]
    layers: str
    block: Mapping[str, str]
    norms: Mapping[str, str]
    leading: tuple[int, int]
    patch_bias: bool
    normalised: bool
    pooled: tuple[Callable[[Array], Array], ...]
    other_sizes: bool
    heads: tuple[str, ...]
    flatten: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    keys: Mapping[str, str]
    defaults: Mapping[str, Any]
    renamed: tuple[tuple[str, str], ...] = ()


CLIP_BLOCK = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "norm": "layer_norm2",
}
_VIT_BLOCK = {
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "attention_out": "attention.o_proj",
    "attention_norm": "layernorm_before",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "norm": "layernorm_after",
}
_DINO_BLOCK = _VIT_BLOCK | {
    "attention_norm": "norm1",
    "norm": "norm2",
    "attention_scale": "layer_scale1.lambda1",
    "scale": "layer_scale2.lambda1",
}
_VIT_EMBEDDINGS = {
    "class_token": "embeddings.cls_token",
    "patches": "embeddings.patch_embeddings.projection",
    "positions": "embeddings.position_embeddings",
}
BLOCK_KEYS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}
_IMAGE_KEYS = {"image_size": "image_size", "patch_size": "patch_size", "channels": "num_channels"}
_VIT_KEYS = {**BLOCK_KEYS, **_IMAGE_KEYS, "qkv_bias": "qkv_bias"}
_CLIP_KEYS = {**BLOCK_KEYS, **_IMAGE_KEYS, "projection_dim": "projection_dim"}
_VIT_DEFAULTS = {
    "activation": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "channels": 3,
}
# A CLIP config.json may hold only the settings that differ from these, sizes included.
_CLIP_DEFAULTS = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "intermediate_size": 3072,
    "activation": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "image_size": 224,
    "patch_size": 32,
    "channels": 3,
    "projection_dim": 512,
}
_ATTENTION_BEFORE = (
    ("attention.attention.query.", "attention.q_proj."),
    ("attention.attention.key.", "attention.k_proj."),
    ("attention.attention.value.", "attention.v_proj."),
    ("attention.output.dense.", "attention.o_proj."),
)

_IMAGES: dict[str, Check] = {
    **{key: check for key, check in SIZES.items() if key != "vocab_size"},
    "layer_norm_eps": EPSILON,
    "image_size": anything,
    "patch_size": anything,
    "num_channels": anything,
}
_CLIP_PART_WITHOUT = ("attention_dropout", "logit_scale_init_value", "text_config", "vision_config")
_CLIP_VISION_CONFIG = keys_of_family(
    {**_IMAGES, "projection_dim": anything}, without=_CLIP_PART_WITHOUT
)
CLIP_TEXT_CONFIG = keys_of_family(
    {
        **SIZES,
        "layer_norm_eps": EPSILON,
        "max_position_embeddings": anything,
        "eos_token_id": anything,
        "projection_dim": anything,
    },
    without=_CLIP_PART_WITHOUT,
)
_CLIP_PARTS = {"vision_config": _CLIP_VISION_CONFIG, "text_config": CLIP_TEXT_CONFIG}
CLIP_CONFIG = keys_of_family(
    {"projection_dim": anything},
    without=("logit_scale_init_value",),
    parts=_CLIP_PARTS | {f"{key}_dict": keys for key, keys in _CLIP_PARTS.items()},
)
_VIT_WITHOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "encoder_stride")

_CLIP = VisionFamily(
    class_name="CLIP",
    config_keys=CLIP_CONFIG,
    ignored=r"text_\w+\..*|visual_projection\..*|logit_scale|.*position_ids",
    prefix="vision_model",
    embeddings={
        "class_token": "embeddings.class_embedding",
        "patches": "embeddings.patch_embedding",
        "positions": "embeddings.position_embedding.weight",
    },
    layers="encoder.layers",
    block=CLIP_BLOCK,
    norms={"first_norm": "pre_layrnorm", "final_norm": "post_layernorm"},
    leading=(0, 0),
    patch_bias=False,
    normalised=False,
    pooled=(_mean_of_patches,),
    other_sizes=False,
    heads=("linear", "zero_shot"),
    flatten=_clip_vision,
    keys=_CLIP_KEYS,
    defaults=_CLIP_DEFAULTS,
)
_VIT = VisionFamily(
    class_name="ViT",
    config_keys=keys_of_family(
        {**_IMAGES, "qkv_bias": switch},
        without=(*_VIT_WITHOUT, "pooler_act", "pooler_output_size"),
    ),
    ignored=r"vit\.pooler\..*|decoder\..*|.*mask_token",
    prefix="vit",
    embeddings=_VIT_EMBEDDINGS,
    layers="layers",
    block=_VIT_BLOCK,
    norms={"final_norm": "layernorm"},
    leading=(2, 1),
    patch_bias=True,
    normalised=True,
    pooled=(_class_token,),
    other_sizes=False,
    heads=("linear",),
    flatten=dict,
    keys=_VIT_KEYS,
    defaults=_VIT_DEFAULTS,
    renamed=(
        ("encoder.layer.", "layers."),
        *_ATTENTION_BEFORE,
        ("intermediate.dense.", "mlp.fc1."),
        ("output.dense.", "mlp.fc2."),
    ),
)
_DINOV2 = dataclasses.replace(
    _VIT,
    class_name="Dinov2",
    config_keys=keys_of_family(
        {**_IMAGES, "qkv_bias": switch, "mlp_ratio": number(above=0, at_most=1000)},
        {"use_swiglu_ffn": (False,)},
        (
            *_VIT_WITHOUT,
            *("layerscale_value", "drop_path_rate", "use_mask_token"),
            # Read by the backbone class alone.
            *("apply_layernorm", "reshape_hidden_states", "out_features", "out_indices"),
            "stage_names",
        ),
    ),
    ignored=r".*mask_token",
    exported=_without_mask_token,
    prefix="dinov2",
    layers="encoder.layer",
    block=_DINO_BLOCK,
    pooled=(_class_token, _mean_of_patches),
    other_sizes=True,
    flatten=_with_inner_size,
    defaults=_VIT_DEFAULTS | {"layer_norm_eps": 1e-6, "patch_size": 14, "layer_scale": True},
    renamed=_ATTENTION_BEFORE,
)

FAMILIES: dict[str, VisionFamily] = {
    "clip": _CLIP,
    "clip_vision_model": dataclasses.replace(
        _CLIP, config_keys=_CLIP_VISION_CONFIG, exported=_whole_clip, flatten=dict
    ),
    "vit": _VIT,
    "dinov2": _DINOV2,
}
