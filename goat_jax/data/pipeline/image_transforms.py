"""Converts a decoded image to a model's input: color mode, crop, resize, normalization.

Training uses the random resized crop (Szegedy et al., "Going Deeper with Convolutions", 2015,
section 6); evaluation resizes the shorter side and crops the center. Sizes are rounded as in
torchvision, crop positions as in transformers, and Pillow resizes, so that a model gets the same
input here as in its original training.
"""

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from goat_jax.errors import UserError
from goat_jax.extras import import_extra

if TYPE_CHECKING:
    from PIL import Image

Box = tuple[int, int, int, int]
"""(top, left, height, width) in pixels."""

TRIES = 10
BICUBIC = 3
"""Pillow's number of the bicubic filter."""


def array_image(array: np.ndarray) -> "Image.Image":
    """Makes an image from uint8 values (H, W), (H, W, 1) or (H, W, 3).

    Raises UserError for another dtype or shape.

    >>> array_image(np.zeros((4, 6, 1), np.uint8)).size
    (6, 4)
    """
    pillow = import_extra("PIL.Image", "reading images")
    plain = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    if (
        array.dtype != np.uint8
        or not (plain.ndim == 2 or plain.shape[2:] == (3,))
        or not array.size
    ):
        raise UserError(
            f"an array of {array.dtype} {array.shape} is not an image: give uint8 values"
            " (H, W), (H, W, 1) or (H, W, 3)"
        )
    return pillow.fromarray(plain)


def to_rgb(image: "Image.Image") -> "Image.Image":
    """Converts an image to upright RGB with 8 bits per channel and drops transparency.

    Raises UserError for 32-bit integer TIFFs and floating-point images, whose value range is
    unknown.

    >>> from PIL import Image
    >>> to_rgb(Image.new("I;16", (1, 1), 0xFF00)).getpixel((0, 0))
    (255, 255, 255)
    """
    from PIL import Image, ImageOps

    if image.mode == "I" and image.format == "TIFF":
        raise UserError("an image of 32-bit integers has no range of colours: give 8 or 16 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise UserError("an image of floating-point values has no range of colours: give integers")
    if image.mode.startswith("I"):  # 16 bits: Pillow would clip, not scale
        high = np.asarray(image).astype(np.int64) >> 8
        image = Image.fromarray(np.clip(high, 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """Draws a random crop box in an image of height x width.

    Args:
      height: the image's height in pixels.
      width: the image's width in pixels.
      rng: the random generator.
      scale: the range of the box's fraction of the area, drawn uniformly.
      ratio: the range of the box's width / height, drawn log-uniformly.

    Up to ten boxes are drawn until one fits. If none does, returns the largest centered box whose
    ratio is in the range.

    >>> crop_box(10, 10, np.random.default_rng(0), (1.0, 1.0), (1.0, 1.0))
    (0, 0, 10, 10)
    """
    for _ in range(TRIES):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        rows, columns = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < rows <= height and 0 < columns <= width:
            top = int(rng.integers(height - rows + 1))
            left = int(rng.integers(width - columns + 1))
            return top, left, rows, columns
    return _largest_box(height, width, ratio)


def _largest_box(height: int, width: int, ratio: tuple[float, float]) -> Box:
    rows, columns = height, width
    if width < ratio[0] * height:
        rows = max(1, round(width / ratio[0]))
    elif width > ratio[1] * height:
        columns = max(1, round(height * ratio[1]))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def resized_crop(
    image: "Image.Image", box: Box, size: int | tuple[int, int], resample: int = BICUBIC
) -> "Image.Image":
    """Crops a box out of an image and resizes it (with antialiasing).

    Args:
      image: the image.
      box: the box to keep.
      size: the side of a square, or (height, width), in pixels.
      resample: Pillow's number of the filter.

    >>> from PIL import Image
    >>> resized_crop(Image.new("RGB", (8, 6)), (1, 2, 4, 4), 3).size
    (3, 3)
    """
    from PIL import Image

    top, left, height, width = box
    rows, columns = (size, size) if isinstance(size, int) else size
    cut = image.crop((left, top, left + width, top + height))
    return cut.resize((columns, rows), Image.Resampling(resample))


def resize_shorter(image: "Image.Image", length: int, resample: int = BICUBIC) -> "Image.Image":
    """Resizes an image so that its shorter side has `length` pixels.

    >>> from PIL import Image
    >>> resize_shorter(Image.new("RGB", (8, 6)), 3).size
    (4, 3)
    """
    from PIL import Image

    width, height = image.size
    shorter = min(width, height)
    # Rounded down, as in torchvision and transformers.
    resized = (length * width // shorter, length * height // shorter)
    return image.resize(resized, Image.Resampling(resample))


def resized_array(image: "Image.Image", size: tuple[int, int], resample: int) -> np.ndarray:
    """Resizes an image to (height, width) without rounding: (H, W, 3) float32 from 0 to 255.

    >>> from PIL import Image
    >>> resized_array(Image.new("RGB", (8, 6), (7, 0, 0)), (1, 2), 2)[..., 0].tolist()
    [[7.0, 7.0]]
    """
    from PIL import Image

    height, width = size
    filtering = Image.Resampling(resample)
    channels = [
        np.asarray(channel.convert("F").resize((width, height), filtering))
        for channel in image.split()
    ]
    return np.stack(channels, -1)


def mirrored(image: "Image.Image | np.ndarray") -> "Image.Image | np.ndarray":
    """Mirrors an image, or an array (H, W, 3) of one, left to right."""
    from PIL import ImageOps

    return image[:, ::-1] if isinstance(image, np.ndarray) else ImageOps.mirror(image)


def crop_centre(image: "Image.Image", height: int, width: int) -> "Image.Image":
    """Crops the center of an image, padding with black where the image is smaller.

    The top and left margins are half of the excess, rounded down, as in transformers.

    >>> from PIL import Image
    >>> crop_centre(Image.new("RGB", (8, 6)), 3, 4).size
    (4, 3)
    """
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def centre_view(image: "Image.Image", size: int) -> "Image.Image":
    """Resizes the shorter side to `size` (bicubic), then crops the center size x size pixels.

    >>> from PIL import Image
    >>> centre_view(Image.new("RGB", (8, 6)), 3).size
    (3, 3)
    """
    return crop_centre(resize_shorter(image, size), size, size)


def normalise(
    image: "Image.Image",
    mean: tuple[float, ...],
    std: tuple[float, ...],
    factor: float = 1 / 255,
) -> np.ndarray:
    """Returns (pixels * factor - mean) / std per channel, (H, W, 3) float32.

    >>> from PIL import Image
    >>> normalise(Image.new("RGB", (1, 1), (255, 0, 0)), (0.5,) * 3, (0.5,) * 3).tolist()
    [[[1.0, -1.0, -1.0]]]
    """
    pixels = np.asarray(image)
    found = np.empty(pixels.shape, np.float32)
    # A channel has 256 values: looking them up takes half of the time of computing every pixel.
    for channel, values in enumerate(_normalised_values(mean, std, factor)):
        found[..., channel] = values[pixels[..., channel]]
    return found


@functools.lru_cache
def _normalised_values(
    mean: tuple[float, ...], std: tuple[float, ...], factor: float
) -> np.ndarray:
    """Returns the normalized value of each of a channel's 256 values, (3, 256) float32."""
    scaled = (np.arange(256, dtype=np.float64) * factor).astype(np.float32)[:, None]
    return ((scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).T.copy()
