"""Sizes and settings of a vision model, read from a config.json or given directly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from goat_jax.errors import UserError, nearest
from goat_jax.models.encoder.config import label_count
from goat_jax.models.vision.families import FAMILIES
from goat_jax.nn.pre_norm_block import BlockConfig, check_choice, check_sizes
from goat_jax.validation.checks import check_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(BlockConfig):
    """Sizes of a vision tower and its head; `from_hf` reads them from a config.json.

    Attributes:
        family: a key of `FAMILIES`.
        image_size: side of a square image, or (height, width), in pixels.
        patch_size: side of the square patches, in pixels.
        channels: number of channels of an image; 3 for color.
        positions: whether patches and tokens have learned positions.
        registers: number of learned tokens between the class token and the patches.
        rope_theta: base of the wavelengths of rotary positions of the patches; None without them.
        shared_score_bias: whether the layers share a learned bias of the attention's scores.
        norm_pooled: whether the final norm is applied after pooling instead of before.
        pooled: the parts of the classifier's input, keys of `goat_jax.models.vision.heads.POOLS`.
        num_labels: number of outputs of the head.
        head: a key of `goat_jax.models.vision.heads.HEADS`: "linear" as in torch, or CLIP's
            "zero_shot", which compares an image with a text feature for every class.
        projection_dim: size of the space that CLIP's images and texts share.

    Raises:
        UserError: a size below 1, heads that do not divide the width, an image smaller than a
            patch, an unknown activation, family or head.
    """

    family: str
    image_size: int | tuple[int, int]
    patch_size: int
    channels: int
    positions: bool = True
    registers: int = 0
    rope_theta: float | None = None
    shared_score_bias: bool = False
    norm_pooled: bool = False
    pooled: tuple[str, ...] = ("class",)
    num_labels: int = 2
    head: str = "linear"
    projection_dim: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("family", self.family, FAMILIES)
        check_sizes(self, "patch_size", "channels", "num_labels")
        check_number("num_register_tokens", self.registers, at_least=0, whole=True)
        check_choice(f"head of {self.family}", self.head, FAMILIES[self.family].heads)
        size = self.hidden_size // self.num_heads
        if self.rope_theta is not None and size % 4:
            raise UserError(
                f"a head of {size} features has no rotary positions on two axes: it needs a "
                "multiple of 4; correct hidden_size or num_attention_heads"
            )
        if (self.biased_scores or self.shared_score_bias) and len(set(self.grid)) > 1:
            raise UserError(
                f"image_size {self.image_size} with a bias of the attention's scores: only square "
                "images are computed here; use a checkpoint with that"
            )
        if min(self.grid) < 1:
            height, width = self.size
            raise UserError(
                f"an image of {height}x{width} pixels has no room for a patch of "
                f"{self.patch_size}x{self.patch_size}: correct image_size or patch_size"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Image size (height, width) in pixels."""
        return _pair(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Grid of patches: (rows, columns)."""
        height, width = self.size
        return height // self.patch_size, width // self.patch_size

    @property
    def before_patches(self) -> int:
        """Number of tokens before the patches."""
        return len(FAMILIES[self.family].tokens) + self.registers

    @property
    def tokens(self) -> int:
        """Number of tokens of an image of the config's size."""
        return self.before_patches + math.prod(self.grid)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], **overrides: Any) -> VisionConfig:
        """Reads a config.json given as a dict; overrides win.

        Settings that the config leaves out take transformers' defaults.

        Raises:
            UserError: a missing size, an unknown override, or a setting that is not supported.

        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = VisionConfig.from_hf({"model_type": "dinov2", **sizes, "image_size": 28})
        >>> config.intermediate_size, config.grid
        (32, (2, 2))
        """
        family = FAMILIES[hf["model_type"]]
        flat = family.flatten(hf)
        fixed = {"family": hf["model_type"], "num_labels": label_count(flat)}
        values = read_fields(cls, flat, family.keys, {**family.defaults, **fixed}, overrides)
        values["image_size"] = _hashable(values["image_size"])
        values["patch_size"] = _side(values["patch_size"])
        return cls(**values)


def read_fields(
    cls: type,
    flat: Mapping[str, Any],
    keys: Mapping[str, str],
    defaults: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the fields of a config class: from overrides, else config.json, else the defaults.

    Args:
        cls: the config class.
        flat: config.json as a dict on one level.
        keys: field -> key in `flat`.
        defaults: values of fields that `flat` may leave out.
        overrides: values that win over all others.

    Raises:
        UserError: an override that is not a field, or a required field without a value.
    """
    fields = [field.name for field in dataclasses.fields(cls)]
    for name in overrides:
        if name not in fields:
            raise UserError(f"a {cls.__name__} has no setting {name!r}{nearest(name, fields)}")
    read = {field: flat[key] for field, key in keys.items() if flat.get(key) is not None}
    values = {**defaults, **read, **overrides}
    for field, key in keys.items():
        required = field in (f.name for f in dataclasses.fields(cls) if _required(f))
        if required and field not in values:
            raise UserError(f"config.json has no {key}: add it, it is a size of the network")
    return values


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _hashable(size: Any) -> Any:
    """Converts JSON's list to a tuple, since a config is part of the model's static structure."""
    if isinstance(size, int):
        return size
    if isinstance(size, list | tuple) and len(size) == 2 and all(type(s) is int for s in size):
        return tuple(size)
    raise UserError(f"image_size is {size!r}: it must be a whole number, or height and width")


def _side(patch: Any) -> Any:
    """Returns the side of a square patch, which may be given as two equal numbers."""
    if not isinstance(patch, list | tuple):
        return patch
    if len(patch) != 2 or patch[0] != patch[1]:
        raise UserError(f"patch_size is {list(patch)}: only square patches are supported")
    return patch[0]


def tiny_vision_config(family: str = "clip", **overrides: Any) -> VisionConfig:
    """Builds a config small enough for tests and examples.

    >>> tiny_vision_config("vit").grid
    (4, 4)
    """
    sizes: dict[str, Any] = {
        "family": family,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "intermediate_size": 64,
        "image_size": 16,
        "patch_size": 4,
    }
    return VisionConfig(**{**FAMILIES[family].defaults, **sizes, **overrides})
