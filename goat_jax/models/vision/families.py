"""Families of vision towers, as one table.

The families differ in their names, in the tokens before the patches, in positions, in what is
normalized and in the classifier's input. Each difference is a field of `VisionFamily` or of
`VisionConfig`; there is no other code per family. Names are those of the modules in transformers 5.
`renamed` translates to them from the names of transformers 4, which version 5 still writes into
files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from goat_jax.models.config_keys import (
    EPSILON,
    SIZE,
    SIZES,
    Check,
    anything,
    keys_of_family,
    number,
    switch,
)
from goat_jax.models.family import Family, as_it_is

_OUTSIDE = ("projection_dim", "num_labels", "id2label")
"""Keys of a tower's section that apply only outside it, in the config of the full model."""


def section(hf: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns a tower's section of a config.json, with the keys outside it that concern it.

    >>> section({"vision_config": {"hidden_size": 8}, "projection_dim": 4}, "vision")
    {'hidden_size': 8, 'projection_dim': 4}
    """
    own = dict(hf.get(f"{name}_config") or {})
    inside = {key: value for key, value in own.items() if key not in _OUTSIDE}
    return inside | {key: hf[key] for key in _OUTSIDE if hf.get(key) is not None}


def clip_section(hf: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns `section` of a CLIP config, where ``NAME_config_dict`` wins, as in transformers."""
    full = hf.get(f"{name}_config_dict")
    return section(hf if full is None else {**hf, f"{name}_config": full}, name)


def _clip_vision(hf: Mapping[str, Any]) -> dict[str, Any]:
    return clip_section(hf, "vision")


def _siglip_vision(hf: Mapping[str, Any]) -> dict[str, Any]:
    return section(hf, "vision")


def _with_inner_size(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Adds intermediate_size, which DINOv2 gives as a multiple of the width."""
    width, ratio = hf.get("hidden_size"), hf.get("mlp_ratio") or 4
    return {**hf, "intermediate_size": int(width * ratio) if type(width) is int else None}


def _beit(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Adds what follows from the switches of a BEiT: the classifier's input and layer scales."""
    mean, scale = hf.get("use_mean_pooling"), hf.get("layer_scale_init_value")
    pooled = ("class",) if mean is False else ("patches",)
    own = {"pooled": pooled, "norm_pooled": mean is not False}
    return {**hf, **own, "layer_scale": scale is None or scale > 0}


def _whole_clip(hf: Mapping[str, Any], ending: str) -> dict[str, Any]:
    """Wraps a vision tower's config in a full CLIP config, as CLIP's image classifier requires."""
    whole = {key: hf[key] for key in ("projection_dim",) if key in hf}
    return {"model_type": "clip", "vision_config": dict(hf), **whole}


def _siglip_exported(hf: Mapping[str, Any], ending: str) -> dict[str, Any]:
    """Turns off the pooling by attention where the class does not use it, and we have no tensors.

    A vision tower's config is wrapped in a full one, as the image classifier requires.
    """
    whole = hf if "vision_config" in hf else {"model_type": "siglip", "vision_config": hf}
    used = ending == "Model"
    return {**whole, "vision_config": {**(whole["vision_config"] or {}), "vision_use_head": used}}


def _without_mask_token(hf: Mapping[str, Any], ending: str) -> dict[str, Any]:
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
            embeddings are not normalized. "pooled_norm" is the final norm's name where it comes
            after pooling.
        tokens: the learned tokens before the patches that have positions, as `embeddings` names
            them.
        leading: number of leading axes of size 1 in torch, for these tokens and for the positions.
        kept: tokens without a use here that transformers' class cannot do without -> their number
            of leading axes.
        patch_bias: whether the patch embedding has a bias.
        normalised: whether the last hidden states are those after the final norm.
        other_sizes: whether images of other sizes are taken, with interpolated positions.
        antialiased: whether that interpolation smooths when it makes a table smaller.
        classifier: whether transformers has an image classifier of this family.
        heads: name of a head -> its class, a key of `goat_jax.models.vision.heads.HEADS`.
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
    tokens: tuple[str, ...]
    leading: tuple[int, int]
    kept: Mapping[str, int] = dataclasses.field(default_factory=dict)
    patch_bias: bool
    normalised: bool
    other_sizes: bool
    antialiased: bool = False
    classifier: bool = True
    heads: Mapping[str, str]
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
_VIT_KEYS = {
    **BLOCK_KEYS,
    **_IMAGE_KEYS,
    **dict.fromkeys(("query_bias", "key_bias", "value_bias"), "qkv_bias"),
}
_CLIP_KEYS = {**BLOCK_KEYS, **_IMAGE_KEYS, "projection_dim": "projection_dim"}
_VIT_DEFAULTS = {
    "activation": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "channels": 3,
    "pooled": ("class",),
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
    "pooled": ("patches",),
    "projection_dim": 512,
}
_SIGLIP_DEFAULTS = {
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "intermediate_size": 3072,
    "activation": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 16,
    "channels": 3,
    "pooled": ("patches",),
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
    "num_channels": SIZE,
}
_CLIP_PART_WITHOUT = ("attention_dropout", "logit_scale_init_value", "text_config", "vision_config")
_CLIP_VISION_CONFIG = keys_of_family(
    {**_IMAGES, "projection_dim": SIZE}, without=_CLIP_PART_WITHOUT
)
CLIP_TEXT_CONFIG = keys_of_family(
    {
        **SIZES,
        "layer_norm_eps": EPSILON,
        "max_position_embeddings": SIZE,
        "eos_token_id": anything,
        "projection_dim": SIZE,
    },
    without=_CLIP_PART_WITHOUT,
)
_CLIP_PARTS = {"vision_config": _CLIP_VISION_CONFIG, "text_config": CLIP_TEXT_CONFIG}
CLIP_CONFIG = keys_of_family(
    {"projection_dim": SIZE},
    without=("logit_scale_init_value",),
    parts=_CLIP_PARTS | {f"{key}_dict": keys for key, keys in _CLIP_PARTS.items()},
)
_SIGLIP_PART_WITHOUT = (
    *("attention_dropout", "text_config", "vision_config"),
    # Without it there is no zero-shot head, whose tensors are then missing.
    "vision_use_head",
)
_SIGLIP_VISION_CONFIG = keys_of_family(_IMAGES, without=_SIGLIP_PART_WITHOUT)
SIGLIP_TEXT_CONFIG = keys_of_family(
    {
        **SIZES,
        "layer_norm_eps": EPSILON,
        "max_position_embeddings": SIZE,
        "projection_size": SIZE,
    },
    without=_SIGLIP_PART_WITHOUT,
)
SIGLIP_CONFIG = keys_of_family(
    {}, parts={"vision_config": _SIGLIP_VISION_CONFIG, "text_config": SIGLIP_TEXT_CONFIG}
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
    tokens=("class_token",),
    leading=(0, 0),
    patch_bias=False,
    normalised=False,
    other_sizes=False,
    heads={"linear": "linear", "zero_shot": "projected"},
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
    tokens=("class_token",),
    leading=(2, 1),
    patch_bias=True,
    normalised=True,
    other_sizes=False,
    heads={"linear": "linear"},
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
_DEIT = dataclasses.replace(
    _VIT,
    class_name="DeiT",
    ignored=r"deit\.pooler\..*|decoder\..*|.*mask_token",
    prefix="deit",
    embeddings={**_VIT_EMBEDDINGS, "distillation_token": "embeddings.distillation_token"},
    tokens=("class_token", "distillation_token"),
)
_BACKBONE = (
    *("apply_layernorm", "reshape_hidden_states", "out_features", "out_indices"),
    "stage_names",
)
"""Keys that transformers' backbone classes alone read."""
_SCORE_BIAS = "relative_position_bias.relative_position_bias_table"
_BEIT_SWITCHES = (
    "use_absolute_position_embeddings",
    "use_relative_position_bias",
    "use_shared_relative_position_bias",
)
_DINOV2_KEYS = keys_of_family(
    {key: check for key, check in _IMAGES.items() if key != "intermediate_size"}
    | {"qkv_bias": switch, "mlp_ratio": number(above=0, at_most=1000)},
    {"use_swiglu_ffn": (False,)},
    (
        *_VIT_WITHOUT,
        *("layerscale_value", "drop_path_rate", "use_mask_token"),
        *_BACKBONE,
    ),
)
_DINOV2 = dataclasses.replace(
    _VIT,
    class_name="Dinov2",
    config_keys=_DINOV2_KEYS,
    ignored=r".*mask_token",
    exported=_without_mask_token,
    prefix="dinov2",
    layers="encoder.layer",
    block=_DINO_BLOCK,
    other_sizes=True,
    flatten=_with_inner_size,
    defaults=_VIT_DEFAULTS
    | {"layer_norm_eps": 1e-6, "patch_size": 14, "layer_scale": True}
    | {"pooled": ("class", "patches")},
    renamed=_ATTENTION_BEFORE,
)
_DINOV2_WITH_REGISTERS = dataclasses.replace(
    _DINOV2,
    class_name="Dinov2WithRegisters",
    config_keys=dataclasses.replace(
        _DINOV2_KEYS, read={**_DINOV2_KEYS.read, "num_register_tokens": number(at_least=0)}
    ),
    prefix="dinov2_with_registers",
    embeddings={
        **_VIT_EMBEDDINGS,
        "registers": "embeddings.register_tokens",
        "mask_token": "embeddings.mask_token",
    },
    antialiased=True,
    keys={**_VIT_KEYS, "registers": "num_register_tokens"},
    defaults={**_DINOV2.defaults, "patch_size": 16, "registers": 4},
    kept={"mask_token": 1},
    ignored="",
    exported=as_it_is,
)
_SIGLIP = dataclasses.replace(
    _CLIP,
    class_name="Siglip",
    config_keys=SIGLIP_CONFIG,
    ignored=r"text_\w+\..*|vision_model\.head\..*|logit_(scale|bias)|.*position_ids",
    embeddings={
        "patches": "embeddings.patch_embedding",
        "positions": "embeddings.position_embedding.weight",
    },
    norms={"final_norm": "post_layernorm"},
    tokens=(),
    patch_bias=True,
    normalised=True,
    heads={"linear": "linear", "zero_shot": "attended"},
    exported=_siglip_exported,
    flatten=_siglip_vision,
    keys={**BLOCK_KEYS, **_IMAGE_KEYS},
    defaults=_SIGLIP_DEFAULTS,
)
_DINOV3 = VisionFamily(
    class_name="DINOv3ViT",
    config_keys=keys_of_family(
        {
            **_IMAGES,
            **dict.fromkeys(("query_bias", "key_bias", "value_bias"), switch),
            **dict.fromkeys(("proj_bias", "mlp_bias", "use_gated_mlp"), switch),
            "num_register_tokens": number(at_least=0, whole=True),
            "rope_theta": number(above=0),
        },
        without=(
            *("attention_dropout", "layerscale_value", "drop_path_rate"),
            # They change the positions of images at random, in training only.
            *("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"),
            *_BACKBONE,
            "return_class_token",
        ),
    ),
    ignored="",
    prefix="",
    embeddings={
        "class_token": "embeddings.cls_token",
        "patches": "embeddings.patch_embeddings",
        "registers": "embeddings.register_tokens",
        "mask_token": "embeddings.mask_token",
    },
    layers="model.layer",
    block=_DINO_BLOCK | {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
    norms={"final_norm": "norm"},
    tokens=("class_token",),
    leading=(2, 1),
    kept={"mask_token": 2},
    patch_bias=True,
    normalised=True,
    other_sizes=True,
    heads={"linear": "linear"},
    classifier=False,
    flatten=dict,
    keys={
        **BLOCK_KEYS,
        **_IMAGE_KEYS,
        **{name: name for name in ("query_bias", "key_bias", "value_bias", "mlp_bias")},
        "out_bias": "proj_bias",
        "gated": "use_gated_mlp",
        "registers": "num_register_tokens",
        "rope_theta": "rope_theta",
    },
    defaults={
        "hidden_size": 384,
        "num_layers": 12,
        "num_heads": 6,
        "intermediate_size": 1536,
        "activation": "gelu",
        "layer_norm_eps": 1e-5,
        "image_size": 224,
        "patch_size": 16,
        "channels": 3,
        "key_bias": False,
        "layer_scale": True,
        "positions": False,
        "rope_theta": 100.0,
        "pooled": ("class", "patches"),
    },
    renamed=(("layer.", "model.layer."),),
)
_BEIT = dataclasses.replace(
    _VIT,
    class_name="Beit",
    config_keys=keys_of_family(
        {
            **_IMAGES,
            **dict.fromkeys(_BEIT_SWITCHES, switch),
            "use_mean_pooling": switch,
            "layer_scale_init_value": number(at_least=0),
        },
        without=(
            *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"),
            *("vocab_size", "use_mask_token"),
            # Read by the classes for segmentation and by the backbone.
            *("pool_scales", "use_auxiliary_head", "auxiliary_loss_weight", "auxiliary_channels"),
            *("auxiliary_num_convs", "auxiliary_concat_input", "semantic_loss_ignore_index"),
            *("add_fpn", "segmentation_indices"),
            *_BACKBONE,
        ),
    ),
    ignored=r".*mask_token|.*relative_position_index|lm_head\..*|layernorm\..*|"
    r"decode_head\..*|auxiliary_head\..*|fpn.*",
    exported=_without_mask_token,
    prefix="beit",
    block=_VIT_BLOCK
    | {
        "attention_scale": "lambda_1",
        "scale": "lambda_2",
        "score_bias.table": _SCORE_BIAS,
    },
    norms={
        "final_norm": "layernorm",
        "pooled_norm": "pooler.layernorm",
        "score_bias.table": "shared_position_bias.relative_position_bias_table",
    },
    flatten=_beit,
    keys={
        **BLOCK_KEYS,
        **_IMAGE_KEYS,
        **{name: name for name in ("pooled", "norm_pooled", "layer_scale")},
        "positions": "use_absolute_position_embeddings",
        "biased_scores": "use_relative_position_bias",
        "shared_score_bias": "use_shared_relative_position_bias",
    },
    defaults=_VIT_DEFAULTS | {"key_bias": False, "positions": False},
    # In this order the names of files can be made from today's, too.
    renamed=(
        ("encoder." + _SCORE_BIAS, "shared_position_bias.relative_position_bias_table"),
        ("attention.attention." + _SCORE_BIAS, _SCORE_BIAS),
        *_VIT.renamed,
    ),
)

FAMILIES: dict[str, VisionFamily] = {
    "clip": _CLIP,
    "clip_vision_model": dataclasses.replace(
        _CLIP, config_keys=_CLIP_VISION_CONFIG, exported=_whole_clip, flatten=dict
    ),
    "vit": _VIT,
    "deit": _DEIT,
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2_WITH_REGISTERS,
    "dinov3_vit": _DINOV3,
    "beit": _BEIT,
    "siglip": _SIGLIP,
    "siglip_vision_model": dataclasses.replace(
        _SIGLIP, config_keys=_SIGLIP_VISION_CONFIG, flatten=dict
    ),
}
