"""Preprocessing of a checkpoint's images, compared with transformers' image processors."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from goat_jax.data.pipeline.image_view import FILE, ImageView, parse_view, view_of
from goat_jax.data.pipeline.images import load_images
from goat_jax.data.tasks.image import IMAGENET_MEAN, IMAGENET_STD, ImageTask
from goat_jax.errors import UserError

transformers = pytest.importorskip("transformers")


def picture(height, width):
    rng = np.random.default_rng(height * width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def processor(kind):
    """The class that resizes by Pillow, which is what images were trained with."""
    return getattr(transformers, f"{kind}ImageProcessorPil", None) or getattr(
        transformers, f"{kind}ImageProcessor"
    )


CONFIGS = {
    "vit": ("ViT", {"size": {"height": 20, "width": 20}}),
    "vit oblong": ("ViT", {"size": {"height": 12, "width": 20}, "image_mean": [0.1, 0.2, 0.3]}),
    "clip": ("CLIP", {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}),
    "dinov2": (
        "Bit",
        {
            "size": {"shortest_edge": 21},
            "crop_size": {"height": 14, "width": 14},
            "image_mean": list(IMAGENET_MEAN),
            "image_std": list(IMAGENET_STD),
        },
    ),
    "deit": (
        "DeiT",
        {"size": 20, "crop_size": {"height": 14, "width": 12}, "image_std": [0.2, 0.3, 0.4]},
    ),
    "beit": ("Beit", {"size": {"height": 17, "width": 20}, "resample": 2}),
    "beit cropped": ("Beit", {"size": 20, "do_center_crop": True, "crop_size": 14}),
    "siglip": ("Siglip", {"size": {"height": 18, "width": 15}, "resample": 2}),
    "siglip2": ("Siglip", {"size": {"height": 12, "width": 12}, "do_normalize": False}),
    "bilinear": ("CLIP", {"size": {"shortest_edge": 17}, "crop_size": 14, "resample": 2}),
    "padded": ("CLIP", {"size": {"shortest_edge": 9}, "crop_size": {"height": 16, "width": 12}}),
    "not resized": ("CLIP", {"do_resize": False, "crop_size": {"height": 10, "width": 10}}),
    "not normalised": ("ViT", {"size": {"height": 8, "width": 8}, "do_normalize": False}),
    "not rescaled": ("ViT", {"size": {"height": 8, "width": 8}, "do_rescale": False}),
    "another factor": ("ViT", {"size": {"height": 8, "width": 8}, "rescale_factor": 1 / 127.5}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_are_those_of_transformers(name, tmp_path):
    kind, settings = CONFIGS[name]
    theirs = processor(kind)(**settings)
    theirs.save_pretrained(tmp_path)
    view = parse_view(json.loads((tmp_path / FILE).read_text()))
    for height, width in ((30, 41), (37, 24), (33, 33)):
        image = picture(height, width)
        expected = theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        found = view.numbers(view.whole(image))
        assert found.dtype == np.float32 and found.shape == (*view.size, 3)
        np.testing.assert_allclose(found, expected, atol=2e-6 * max(1, np.abs(expected).max()))
        again = parse_view(view.config())
        np.testing.assert_array_equal(again.numbers(again.whole(image)), found)


def test_pixels_that_are_rescaled_before_they_are_resized():
    """transformers resizes them by torchvision, which calls this function of torch."""
    torch = pytest.importorskip("torch")
    size = {"height": 11, "width": 14}
    view = parse_view({"image_processor_type": "DINOv3ViTImageProcessorFast", "size": size})
    assert parse_view(view.config()) == view
    for height, width in ((30, 41), (9, 33)):
        image = picture(height, width)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        resized = torch.nn.functional.interpolate(
            tensor, (11, 14), mode="bilinear", antialias=True, align_corners=False
        )
        pixels = resized[0].permute(1, 2, 0).numpy()
        mean, std = (np.array(each, np.float32) for each in (IMAGENET_MEAN, IMAGENET_STD))
        expected = (pixels - mean) / std
        found = view.numbers(view.whole(image))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 32}, (None, (32, 32), None)),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 32}, (32, None, (224, 224))),
        ({"image_processor_type": "BitImageProcessorFast", "crop_size": 30}, (224, None, (30, 30))),
        ({"feature_extractor_type": "DeiTFeatureExtractor"}, (None, (256, 256), (224, 224))),
        ({"image_processor_type": "DeiTImageProcessor", "size": 9}, (None, (9, 9), (224, 224))),
        ({"image_processor_type": "SiglipImageProcessor"}, (None, (224, 224), None)),
        ({}, (224, None, (224, 224))),
    ],
)
def test_files_of_old(config, expected):
    view = parse_view(config)
    assert (view.shorter, view.exact, view.crop) == expected


def test_the_task_goes_before_the_checkpoint(tmp_path):
    processor("ViT")(size={"height": 20, "width": 20}).save_pretrained(tmp_path)
    task = ImageTask("pets", "a", "b", labels=("cat", "dog"))
    own = view_of(task, tmp_path)
    assert (own.exact, own.mean) == ((20, 20), (0.5, 0.5, 0.5))
    changed = ImageTask("pets", "a", "b", labels=("cat", "dog"), image_size=8, mean=(0.1, 0.2, 0.3))
    view = view_of(changed, tmp_path)
    assert (view.exact, view.crop, view.mean) == ((8, 8), None, (0.1, 0.2, 0.3))
    assert view.std == (0.5, 0.5, 0.5) and view.resample == 2
    (tmp_path / FILE).unlink()
    assert view_of(task, tmp_path) == ImageView()
    (tmp_path / "config.json").write_text('{"model_type": "vit", "image_size": 32}')
    assert view_of(task, tmp_path) == ImageView(shorter=32, crop=(32, 32))


def test_rows_are_seen_as_the_checkpoint_was_trained(tmp_path):
    processor("ViT")(size={"height": 6, "width": 6}).save_pretrained(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        picture(9, 7).save(tmp_path / "pets" / name / "0.png")
    task = ImageTask("pets", str(tmp_path / "pets"), "b", labels=("cat", "dog"), train_crop=None)
    rows = dataclasses.replace(load_images(task, "train"), view=view_of(task, tmp_path))
    expected = processor("ViT")(size={"height": 6, "width": 6})(picture(9, 7), return_tensors="np")
    pixels = rows.gather(np.zeros(1, int), 1)["pixel_values"][0]
    np.testing.assert_allclose(pixels, expected["pixel_values"][0].transpose(1, 2, 0), atol=2e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "SegformerImageProcessor"}, "cannot be prepared here"),
        ({"size": {"longest_edge": 3}}, "give shortest_edge, or height and width"),
        ({"size": {"shortest_edge": 0}}, "size.shortest_edge 0 is not valid"),
        ({"size": "big"}, "size.shortest_edge 'big' is not valid"),
        ({"image_mean": [0.5]}, "give three numbers"),
        ({"image_std": [0, 1, 1]}, "give numbers above 0"),
        ({"resample": 9}, "resample 9 is not valid"),
        ({"rescale_factor": "x"}, "rescale_factor 'x' is not valid"),
        (
            {"image_processor_type": "DINOv3ViTImageProcessorFast", "do_center_crop": True},
            "only height and width, no crop",
        ),
        ({"do_pad": True}, "do_pad is True"),
        ({"do_center_crop": False}, "does not fix the size of images"),
        ({"crop_size": {"height": 3}}, "crop_size None is not valid"),
    ],
)
def test_files_that_cannot_be_followed(config, message, tmp_path):
    (tmp_path / FILE).write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        view_of(ImageTask("pets", "a", "b", labels=("cat", "dog")), tmp_path)
    assert message in str(error.value) and str(tmp_path / FILE) in str(error.value)
