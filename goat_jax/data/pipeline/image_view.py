"""Image preprocessing of a checkpoint, read from its preprocessor_config.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from goat_jax.data.pipeline.image_transforms import (
    BICUBIC,
    crop_centre,
    normalise,
    resize_shorter,
    resized_array,
)
from goat_jax.data.tasks.image import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageTask,
)
from goat_jax.errors import UserError
from goat_jax.files import read_json
from goat_jax.validation.checks import check_number

if TYPE_CHECKING:
    from PIL import Image

FILE = "preprocessor_config.json"
BILINEAR = 2
STANDARD = (0.5, 0.5, 0.5)

PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {
        "size": {"height": 224, "width": 224},
        "resample": BILINEAR,
        "do_center_crop": False,
        "image_mean": STANDARD,
        "image_std": STANDARD,
    },
    "CLIP": {},
    "Bit": {},
    "Beit": {"size": {"height": 224, "width": 224}, "do_center_crop": False}
    | {"default_to_square": True, "image_mean": STANDARD, "image_std": STANDARD},
    "DINOv3ViT": {
        "size": {"height": 224, "width": 224},
        "resample": BILINEAR,
        "do_center_crop": False,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "rescale_first": True,
    },
    "DeiT": {
        "size": {"height": 256, "width": 256},
        "default_to_square": True,
        "image_mean": STANDARD,
        "image_std": STANDARD,
    },
    "Siglip": {
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "image_mean": STANDARD,
        "image_std": STANDARD,
    },
}
"""transformers' image processor -> its defaults that differ from `CLIP`."""

CLIP: dict[str, Any] = {
    "do_resize": True,
    "default_to_square": False,
    "rescale_first": False,
    "size": {"shortest_edge": 224},
    "resample": BICUBIC,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}

ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")

REFUSED = ("do_pad", "do_flip_channel_order", "do_reduce_labels", "do_thumbnail", "do_align_axis")
"""Switches of other processors that change the pixel values; `ImageView` has none of them."""


@dataclasses.dataclass(frozen=True)
class ImageView:
    """Preprocessing steps from an upright RGB image to a model's input.

    Attributes:
        shorter: the length in pixels that the shorter side is resized to; None: no such resize.
        exact: the (height, width) that an image of any shape is resized to; None: no such resize.
        crop: the (height, width) of the center crop; None: no crop.
        resample: Pillow's number of the resize filter.
        rounded: whether resized pixel values are rounded to whole numbers, as Pillow does; False
            for processors that rescale the values before.
        factor: the factor that pixel values are multiplied by.
        mean: the mean subtracted from each channel after that.
        std: the standard deviation each channel is then divided by.
    """

    shorter: int | None = 224
    exact: tuple[int, int] | None = None
    crop: tuple[int, int] | None = (224, 224)
    resample: int = BICUBIC
    rounded: bool = True
    factor: float = 1 / 255
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the model's input."""
        size = self.crop or self.exact
        assert size is not None  # `view_of` refuses views without a size
        return size

    def whole(self, image: Image.Image) -> Image.Image | np.ndarray:
        """Resizes and crops an image as in evaluation; an array (H, W, 3) if it is not rounded.

        >>> from PIL import Image
        >>> ImageView(shorter=4, crop=(3, 2)).whole(Image.new("RGB", (8, 6))).size
        (2, 3)
        """
        from PIL import Image as pillow

        if self.shorter is not None:
            image = resize_shorter(image, self.shorter, self.resample)
        if self.exact is not None and not self.rounded:
            return resized_array(image, self.exact, self.resample)
        if self.exact is not None:
            height, width = self.exact
            image = image.resize((width, height), pillow.Resampling(self.resample))
        return image if self.crop is None else crop_centre(image, *self.crop)

    def numbers(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """Normalizes pixel values (H, W, 3), with which it returns float32."""
        if isinstance(image, np.ndarray):
            mean, std = (np.asarray(each, np.float32) for each in (self.mean, self.std))
            return (image * np.float32(self.factor) - mean) / std
        return normalise(image, self.mean, self.std, self.factor)

    def config(self) -> dict[str, Any]:
        """Returns the view as the content of a preprocessor_config.json for CLIP's processor."""
        height, width = self.size
        exact = None if self.exact is None else {"height": self.exact[0], "width": self.exact[1]}
        kind = "CLIPImageProcessor" if self.rounded else "DINOv3ViTImageProcessorFast"
        return {
            "image_processor_type": kind,
            "do_convert_rgb": True,
            "do_resize": self.shorter is not None or exact is not None,
            "size": exact or {"shortest_edge": self.shorter or height},
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            "crop_size": {"height": height, "width": width},
            "do_rescale": True,
            "rescale_factor": self.factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


def view_of(task: ImageTask, model: str | Path | None) -> ImageView:
    """Returns the view of a task's images: the checkpoint's, with the task's settings on top.

    Args:
        task: the image task; its `image_size`, `mean` and `std`, if set, override the checkpoint's.
        model: the checkpoint's folder. Without a preprocessor_config.json it means CLIP's view at
            the image size in config.json. None: CLIP's view.

    Raises:
        UserError: a preprocessor_config.json that cannot be read or followed.
    """
    view = ImageView() if model is None else read_view(Path(model))
    if task.image_size is not None:
        size = (task.image_size, task.image_size)
        view = (
            dataclasses.replace(view, exact=size, crop=None)
            if view.shorter is None and view.exact is not None and view.crop is None
            else dataclasses.replace(view, shorter=task.image_size, exact=None, crop=size)
        )
    changes = {name: getattr(task, name) for name in ("mean", "std") if getattr(task, name)}
    return dataclasses.replace(view, **changes)


def read_view(folder: Path) -> ImageView:
    """Reads the view of a checkpoint folder; without a preprocessor_config.json, CLIP's view."""
    if (folder / FILE).is_file():
        config = read_json(folder / FILE)
        if not isinstance(config, dict):
            raise UserError(f"{folder / FILE} holds a {type(config).__name__}, not an object")
        try:
            return parse_view(config)
        except UserError as error:
            raise UserError(f"{folder / FILE}: {error}") from None
    size = _image_size(folder / "config.json")
    return ImageView() if size is None else ImageView(shorter=min(size), crop=size)


def _image_size(path: Path) -> tuple[int, int] | None:
    """Reads the image size in a config.json, in its vision_config or at the top level."""
    config = read_json(path) if path.is_file() else {}
    part = config.get("vision_config") if isinstance(config, dict) else None
    size = (part if isinstance(part, dict) else config).get("image_size")
    return None if size is None else _pair("image_size", size)


def parse_view(config: Mapping[str, Any]) -> ImageView:
    """Parses the content of a preprocessor_config.json.

    Raises:
        UserError: a processor, a step or a value that is not supported.

    >>> parse_view({"image_processor_type": "ViTImageProcessor", "size": 32}).exact
    (32, 32)
    """
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIP")
    kind = next((name.removesuffix(end) for end in ENDINGS if name.endswith(end)), name)
    if kind not in PROCESSORS:
        raise UserError(
            f"images for {name} cannot be prepared here: give image_size, mean and std in the "
            f"task and remove the file, or use a checkpoint of {', '.join(PROCESSORS)}"
        )
    for switch in REFUSED:
        if config.get(switch):
            raise UserError(f"{switch} is {config[switch]!r}, which is not supported")
    settings = {key: value for key, value in config.items() if value is not None}
    values = {**CLIP, **PROCESSORS[kind], **settings}
    return ImageView(**_geometry(values), **_levels(values))


def _geometry(values: Mapping[str, Any]) -> dict[str, Any]:
    shorter, exact, crop = None, None, None
    if values["do_resize"]:
        size = values["size"]
        # Old files give one number: the side of a square without a crop, else the shorter side.
        if not isinstance(size, Mapping):
            square = values["default_to_square"] or not values["do_center_crop"]
            size = _square(size) if square else {"shortest_edge": size}
        if set(size) == {"shortest_edge"}:
            shorter = size["shortest_edge"]
            check_number("size.shortest_edge", shorter, at_least=1, whole=True)
        elif set(size) == {"height", "width"}:
            exact = _pair("size", size)
        else:
            raise UserError(f"size {dict(size)!r}: give shortest_edge, or height and width")
    if values["do_center_crop"]:
        crop = _pair("crop_size", values["crop_size"])
    if crop is None and exact is None:
        raise UserError(
            "it does not fix the size of images: set do_center_crop, or height and width"
        )
    resample = values["resample"]
    check_number("resample", resample, at_least=0, at_most=5, whole=True)
    rounded = not values["rescale_first"]
    if not rounded and (crop is not None or shorter is not None):
        raise UserError("pixels rescaled before they are resized: only height and width, no crop")
    sizes = {"shorter": shorter, "exact": exact, "crop": crop}
    return {**sizes, "resample": resample, "rounded": rounded}


def _levels(values: Mapping[str, Any]) -> dict[str, Any]:
    factor, mean, std = 1.0, (0.0,) * 3, (1.0,) * 3
    if values["do_rescale"]:
        factor = values["rescale_factor"]
        check_number("rescale_factor", factor, above=0)
    if values["do_normalize"]:
        mean, std = (_channels(name, values[name]) for name in ("image_mean", "image_std"))
        if not all(value > 0 for value in std):
            raise UserError(f"image_std {list(std)}: give numbers above 0")
    return {"factor": factor, "mean": mean, "std": std}


def _channels(name: str, value: Any) -> tuple[float, ...]:
    three = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    if len(three) != 3 or not all(type(v) in (int, float) and math.isfinite(v) for v in three):
        raise UserError(f"{name} {value!r}: give three numbers")
    return three


def _square(size: object) -> dict[str, Any]:
    if isinstance(size, list | tuple) and len(size) == 2:  # (width, height), as Pillow has them
        return {"height": size[1], "width": size[0]}
    return {"height": size, "width": size}


def _pair(name: str, value: Any) -> tuple[int, int]:
    """Parses (height, width) from one number, two numbers or a mapping."""
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2:
        raise UserError(f"{name} {value!r}: give height and width")
    for side in pair:
        check_number(name, side, at_least=1, whole=True)
    return pair
