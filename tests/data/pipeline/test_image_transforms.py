"""Boxes, crops and colours; numbers of torchvision 0.28.0, and torchvision itself where it runs."""

import importlib
import io
import math

import numpy as np
import pytest
from PIL import Image

from goat_jax.data.pipeline.image_transforms import (
    array_image,
    centre_view,
    crop_box,
    normalise,
    resized_crop,
    to_rgb,
)
from goat_jax.errors import UserError

RATIO = (3 / 4, 4 / 3)

# What torchvision's resized_crop and resize + center_crop make of `picture()`'s green channel.
CROPS = {
    (2, 3, 11, 9): [[14, 24, 34], [28, 49, 70], [43, 74, 105]],
    (0, 0, 20, 30): [[14, 44, 81], [45, 138, 148], [84, 150, 117]],
    (7, 20, 4, 5): [[146, 158, 170], [173, 187, 201], [200, 216, 232]],
}
CENTRE_4 = [[15, 25, 36, 47], [47, 83, 120, 161], [84, 149, 189, 124], [118, 193, 97, 104]]


def picture(width=30, height=20):
    y, x = np.mgrid[:height, :width]
    channels = [(7 * x + 3 * y) % 256, (x * y) % 256, (255 - 5 * x - 5 * y).clip(0)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def near(image, expected):
    """Equal up to one grey level."""
    found = np.asarray(image, np.int32)
    return np.abs(found - np.asarray(expected, np.int32)).max() <= 1


@pytest.fixture(scope="module")
def transforms():
    """torchvision's transforms; its wheel does not load beside every build of torch."""
    try:
        return importlib.import_module("torchvision.transforms")
    except Exception as error:
        pytest.skip(f"torchvision cannot be used: {type(error).__name__}: {error}")


@pytest.mark.parametrize("box", CROPS)
def test_crops_have_the_numbers_of_torchvision(box):
    assert near(np.asarray(resized_crop(picture(), box, 3))[..., 1], CROPS[box])


def test_the_centre_has_the_numbers_of_torchvision():
    assert near(np.asarray(centre_view(picture(), 4))[..., 1], CENTRE_4)


@pytest.mark.parametrize(("width", "height"), [(30, 20), (21, 50), (224, 224), (17, 16)])
@pytest.mark.parametrize("size", [3, 16, 56])
def test_views_are_those_of_torchvision(transforms, width, height, size):
    functional = transforms.functional
    cubic, image = transforms.InterpolationMode.BICUBIC, picture(width, height)
    resized = functional.resize(image, size, cubic)
    # The middle as transformers takes it; torchvision rounds half a pixel to the even number.
    top, left = (resized.height - size) // 2, (resized.width - size) // 2
    assert near(centre_view(image, size), functional.crop(resized, top, left, size, size))
    rng = np.random.default_rng(0)
    for _ in range(5):
        box = crop_box(height, width, rng, (0.1, 1.0), RATIO)
        theirs = functional.resized_crop(image, *box, [size, size], cubic)
        assert near(resized_crop(image, box, size), theirs)


@pytest.mark.parametrize(("height", "width"), [(100, 4), (4, 100), (1, 50), (33, 7)])
def test_the_box_of_a_thin_image_is_torchvisions(transforms, height, width):
    theirs = transforms.RandomResizedCrop.get_params(
        picture(width, height), [1.0, 1.0], list(RATIO)
    )
    assert crop_box(height, width, np.random.default_rng(0), (1.0, 1.0), RATIO) == theirs


def test_boxes_lie_inside_and_are_as_large_and_wide_as_asked():
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(200, 160, rng, (0.25, 0.5), (0.5, 1.25)) for _ in range(2000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (top + height <= 200).all()
    assert (left >= 0).all() and (left + width <= 160).all()
    shares, ratios = height * width / (200 * 160), width / height
    assert 0.24 < shares.min() < 0.26 and 0.49 < shares.max() < 0.51
    assert abs(shares.mean() - 0.375) < 0.01  # uniform
    assert 0.49 < ratios.min() < 0.52 and 1.2 < ratios.max() < 1.27
    # Log-uniform, but for the few wide boxes that had to be drawn again.
    assert abs(np.log(ratios).mean() - math.log(0.5 * 1.25) / 2) < 0.03
    assert len(np.unique(top)) > 80 and len(np.unique(left)) > 60
    assert (top.min(), left.min()) == (0, 0)
    assert (top + height).max() == 200 and (left + width).max() == 160


def test_a_box_that_never_fits_is_the_largest_in_the_middle():
    rng = np.random.default_rng(0)
    assert crop_box(100, 4, rng, (1.0, 1.0), RATIO) == (47, 0, 5, 4)
    assert crop_box(4, 100, rng, (1.0, 1.0), RATIO) == (0, 47, 4, 5)
    assert crop_box(1, 1, rng, (0.9, 1.0), (1.0, 1.0)) == (0, 0, 1, 1)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


RED = (200, 10, 30)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (2, 3), 77), (77, 77, 77)),
        (Image.new("1", (2, 3), 1), (255, 255, 255)),
        (Image.new("LA", (2, 3), (77, 0)), (77, 77, 77)),
        (Image.new("RGBA", (2, 3), (*RED, 0)), RED),
        (Image.new("RGB", (2, 3), RED).convert("P", palette=Image.Palette.ADAPTIVE), RED),
        (Image.new("I;16", (2, 3), 77 * 256 + 255), (77, 77, 77)),
        (Image.new("I", (2, 3), 77 * 256 + 255), (77, 77, 77)),
        (encoded(Image.new("I;16", (2, 3), 77 * 256 + 255), "PNG"), (77, 77, 77)),
        (Image.new("CMYK", (2, 3), (0, 255, 255, 0)), (255, 0, 0)),
        (array_image(np.full((3, 2), 77, np.uint8)), (77, 77, 77)),
        (array_image(np.full((3, 2, 1), 77, np.uint8)), (77, 77, 77)),
        (array_image(np.full((3, 2, 3), RED, np.uint8)), RED),
    ],
)
def test_all_kinds_of_colours(image, expected):
    rgb = to_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", (2, 3)) and rgb.getpixel((1, 2)) == expected


def test_a_palette_with_a_transparent_colour():
    plain = Image.new("RGB", (2, 2), RED).convert("P", palette=Image.Palette.ADAPTIVE)
    image = encoded(plain, "PNG", transparency=bytes([0] * 8))
    assert image.mode == "P" and to_rgb(image).getpixel((0, 0)) == RED


def test_an_image_is_put_upright():
    image = picture(6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: a quarter to the right makes it upright
    found = to_rgb(encoded(image, "PNG", exif=exif))
    assert found.size == (4, 6)
    np.testing.assert_array_equal(found, np.rot90(np.asarray(image), -1))


def test_floating_point_images_are_refused():
    with pytest.raises(UserError, match="floating-point values"):
        to_rgb(Image.new("F", (2, 2)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_arrays_that_are_no_image(array):
    with pytest.raises(UserError, match=r"is not an image: give uint8 values \(H, W\)"):
        array_image(array)


def test_looked_up_values_are_those_of_the_formula_to_the_last_bit():
    pixels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)[None]
    mean, std, factor = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27), 1 / 255
    scaled = (pixels.astype(np.float64) * factor).astype(np.float32)
    wanted = (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    found = normalise(Image.fromarray(pixels), mean, std, factor)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


def test_normalised_by_channel():
    image = Image.new("RGB", (2, 1), (0, 51, 255))
    found = normalise(image, (0.5, 0.2, 0.0), (0.5, 1.0, 0.25))
    assert found.dtype == np.float32 and found.shape == (1, 2, 3)
    np.testing.assert_allclose(found[0, 1], [-1.0, 0.0, 4.0], atol=1e-7)
