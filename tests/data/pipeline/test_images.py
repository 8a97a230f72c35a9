"""Image tasks: files, bytes and arrays become batches; what is bad is told or counted."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from goat_jax.data.pipeline.images import decode_image, load_images
from goat_jax.data.pipeline.loader import TrainBatches, eval_batches
from goat_jax.data.tasks.image import ImageTask, digits, fashion_mnist, image_files
from goat_jax.errors import UserError

SIZE = 8


def picture(seed, width=12, height=10):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """cat/ and dog/ with three PNG files each, and a file that is none."""
    for number in range(6):
        part = tmp_path / ("cat", "dog")[number % 2]
        part.mkdir(exist_ok=True)
        (part / f"{number}.PNG").write_bytes(png(picture(number)))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def pets(folder, **changes):
    task = image_files(str(folder), str(folder), image_size=SIZE)
    return dataclasses.replace(task, **changes)


def gather(rows, numbers, draw=None):
    return rows.gather(np.array(numbers), 1, draw)


def test_a_folder_by_class(folder):
    task = pets(folder)
    assert task.labels == ("cat", "dog")
    rows = load_images(task, "train")
    assert len(rows) == 6 and rows.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.lengths.tolist() == [1] * 6 and rows.lengths.dtype == np.int32
    assert (rows.truncated, rows.dropped) == (0, 0)
    batch = gather(rows, [4, 0, -1])
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
        "pixel_values": ((3, SIZE, SIZE, 3), np.float32),
        "labels": ((3,), np.int32),
        "weights": ((3,), np.float32),
    }
    assert batch["labels"].tolist() == [1, 0, 0] and batch["weights"].tolist() == [1, 1, 0]
    np.testing.assert_array_equal(batch["pixel_values"][1], batch["pixel_values"][2])


def test_what_a_model_sees(folder):
    """An image of one colour is that colour, normalised, in both views."""
    for path in folder.glob("*/*.PNG"):
        path.write_bytes(png(np.full((9, 7, 3), (255, 0, 51), np.uint8)))
    rows = load_images(pets(folder, mean=(0.5, 0.5, 0.0), std=(0.5, 0.25, 0.1)), "train")
    for draw in (None, (0, 3)):
        pixels = gather(rows, [1], draw)["pixel_values"]
        np.testing.assert_allclose(pixels.reshape(-1, 3), [[1.0, -2.0, 2.0]] * SIZE**2, atol=1e-6)


def test_the_draw_alone_decides_a_training_batch(folder):
    rows = load_images(pets(folder, train_crop=(0.2, 0.9)), "train")
    one = gather(rows, [1, 4], (0, 7))["pixel_values"]
    np.testing.assert_array_equal(one, gather(rows, [1, 4], (0, 7))["pixel_values"])
    for other in ((0, 8), (1, 7), None):
        assert (one != gather(rows, [1, 4], other)["pixel_values"]).any(axis=(1, 2, 3)).all()
    # Two processes that share the batch see its halves.
    halves = [gather(rows, [number], (0, 7))["pixel_values"] for number in (1, 4)]
    np.testing.assert_array_equal(one, np.concatenate(halves))


def test_rows_of_a_batch_have_crops_of_their_own(folder):
    for path in folder.glob("*/*.PNG"):
        path.write_bytes(png(picture(0)))
    rows = load_images(pets(folder, train_crop=(0.2, 0.9)), "train")
    seen = gather(rows, [0, 1, 2], (0, 7))["pixel_values"]
    assert not np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[1], seen[2])


def test_without_a_crop_training_sees_what_evaluation_sees(folder):
    rows = load_images(pets(folder, train_crop=None), "train")
    np.testing.assert_array_equal(
        gather(rows, [1], (0, 1))["pixel_values"], gather(rows, [1])["pixel_values"]
    )


def test_flip_mirrors_about_half(folder):
    rows = load_images(pets(folder, train_crop=None, flip=True), "train")
    plain = gather(rows, [2])["pixel_values"][0]
    seen = [gather(rows, [2], (0, step))["pixel_values"][0] for step in range(40)]
    mirrored = sum(np.array_equal(view, plain[:, ::-1]) for view in seen)
    assert sum(np.array_equal(view, plain) for view in seen) + mirrored == 40
    assert 10 <= mirrored <= 30


def test_paths_bytes_and_arrays_are_one_image(folder, tmp_path):
    array = picture(0)
    source = json.dumps({"image": "cat/0.PNG", "label": "cat"})
    (tmp_path / "rows.jsonl").write_text(source + "\n")
    (tmp_path / "abs.csv").write_text(f"image,label\n{tmp_path}/cat/0.PNG,0\n")
    np.savez(tmp_path / "rows.npz", image=array[None], label=[0])
    task = ImageTask(
        "pets", "rows.jsonl", "abs.csv", labels=("cat", "dog"), data_dir=str(tmp_path), image_size=8
    )
    in_array = dataclasses.replace(task, train="rows.npz")
    views = [
        gather(load_images(given, split), [0])["pixel_values"]
        for given, split in ((task, "train"), (task, "evaluation"), (in_array, "train"))
    ]
    np.testing.assert_array_equal(views[0], views[1])
    np.testing.assert_array_equal(views[0], views[2])


def test_it_trains_as_any_other_rows(folder):
    rows = load_images(pets(folder, train_limit=5), "train")
    stream = TrainBatches(rows, batch_size=2, seed=0, max_length=1)
    assert stream.per_epoch == 2 and stream[3]["pixel_values"].shape == (2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(stream[3]["pixel_values"], stream[3]["pixel_values"])
    batches = eval_batches(rows, 4, max_length=1)
    assert [batch["weights"].sum() for batch in batches] == [4, 1]


def test_limits_are_spaced(folder):
    rows = load_images(pets(folder, evaluation_limit=2), "evaluation")
    assert rows.labels.tolist() == [0, 1]


BAD = {
    "empty": (
        b"",
        r"0\.PNG cannot be decoded \(unknown format\): repair it, or leave such",
    ),
    "no image": (b"<html>", r"0\.PNG cannot be decoded \(unknown format\)"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_image_fails_at_once(folder, kind):
    content, message = BAD[kind]
    (folder / "cat" / "0.PNG").write_bytes(content)
    with pytest.raises(UserError, match="row 1: .*" + message) as caught:
        load_images(pets(folder), "train")
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_fails_when_it_is_needed(folder):
    path = folder / "dog" / "1.PNG"
    path.write_bytes(path.read_bytes()[:150])
    rows = load_images(pets(folder), "train")
    gather(rows, [0, 1, 2, 4])
    with pytest.raises(UserError, match=r"row 4: .*dog/1\.PNG cannot be decoded \(") as caught:
        gather(rows, [3])
    assert "\n" not in str(caught.value)


def test_bad_images_are_skipped_and_counted(folder):
    (folder / "cat" / "0.PNG").write_bytes(b"")
    path = folder / "dog" / "1.PNG"
    path.write_bytes(path.read_bytes()[:150])
    rows = load_images(pets(folder, on_bad_image="skip"), "train")
    assert rows.dropped == 2 and rows.labels.tolist() == [0, 0, 1, 1]
    left = gather(rows, [2])["pixel_values"]
    path.unlink()
    (folder / "cat" / "0.PNG").unlink()
    np.testing.assert_array_equal(
        left, gather(load_images(pets(folder), "train"), [2])["pixel_values"]
    )
    for path in folder.glob("*/*.PNG"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"row 1: .* cannot be decoded"):
        load_images(pets(folder, on_bad_image="skip"), "train")


GREY = np.arange(120, dtype=np.uint8).reshape(10, 12)


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("1", "PNG"),
        ("P", "GIF"),
        ("LA", "PNG"),
        ("PA", "TIFF"),
        ("RGBA", "PNG"),
        ("CMYK", "JPEG"),
        ("CMYK", "TIFF"),
        ("LAB", "TIFF"),
        ("I;16", "PNG"),
        ("I;16B", "TIFF"),
    ],
)
def test_every_mode_becomes_the_same_colours(mode, form):
    if mode.startswith("I"):
        image = Image.new(mode, (12, 10), 65535)
    else:
        white = Image.new("RGB", (12, 10), "white")
        image = white.convert("P").convert("PA") if mode == "PA" else white.convert(mode)
    file = io.BytesIO()
    image.save(file, form)
    seen = decode_image(file.getvalue(), "here")
    assert seen.mode == "RGB" and np.asarray(seen).min() >= 253


def test_integers_without_a_range_are_refused():
    file = io.BytesIO()
    Image.fromarray(GREY.astype(np.int32)).save(file, "TIFF")
    with pytest.raises(UserError, match="here: an image of 32-bit integers has no range"):
        decode_image(file.getvalue(), "here")


def test_of_an_animation_the_first_picture_is_seen():
    red, blue = (Image.new("RGB", (6, 4), colour) for colour in ("red", "blue"))
    file = io.BytesIO()
    red.save(file, "GIF", save_all=True, append_images=[blue])
    assert decode_image(file.getvalue(), "here").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("orientation", "size"), [(6, (4, 6)), (3, (6, 4)), (99, (6, 4))])
def test_images_are_upright(orientation, size):
    about = Image.Exif()
    about[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", (6, 4)).save(file, "JPEG", exif=about)
    assert decode_image(file.getvalue(), "here").size == size


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "cat/9.PNG", "label": "cat"}, r"row 1: .*cat/9\.PNG: no such file"),
        ({"image": "cat/0.PNG", "label": "cow"}, r"row 1: label 'cow': expected cat, dog"),
        ({"image": "cat/0.PNG"}, r"row 1: no value in column 'label' \(the row has image\)"),
        ({"label": "cat"}, r"row 1: no value in column 'image'"),
        ({"image": [[0, 1]], "label": "cat"}, "row 1: list is not an image: give a path, bytes"),
    ],
)
def test_rows_that_do_not_fit(folder, row, message):
    (folder / "rows.jsonl").write_text(json.dumps(row))
    task = pets(folder, train="rows.jsonl", data_dir=str(folder))
    with pytest.raises(UserError, match=message) as caught:
        load_images(task, "train")
    assert "\n" not in str(caught.value)


def test_an_array_that_is_no_image(tmp_path):
    np.savez(tmp_path / "rows.npz", image=np.zeros((1, 4, 4)), label=[0])
    task = ImageTask("x", "rows.npz", "", labels=("a", "b"), data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"rows\.npz: row 1: an array of float64 \(4, 4\) is no"):
        load_images(task, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ()}, "no class names: give two or more labels"),
        ({"labels": ("cat", "cat")}, "give two or more different names"),
        ({"metrics": ("pearson",)}, "metric 'pearson' is not valid: for "),
        ({"train_limit": 0}, "a limit of 0 rows leaves nothing"),
        ({"image_size": 0}, "image_size 0: give 1 or more"),
        ({"std": (1.0, 0.0, 1.0)}, r"std \(1\.0, 0\.0, 1\.0\): give three each"),
        ({"mean": (0.5,)}, "give three each"),
        ({"train_crop": (0.5, 1.5)}, r"train_crop \(0\.5, 1\.5\): give two shares"),
        ({"train_ratio": (2, 1)}, r"train_ratio \(2.0, 1.0\): give two ratios"),
        ({"on_bad_image": "drop"}, "on_bad_image 'drop': use one of error, skip"),
    ],
)
def test_tasks_that_do_not_fit_together(changes, message):
    with pytest.raises(UserError, match=f"task pets: .*{message}"):
        ImageTask(
            **{"name": "pets", "train": "a", "evaluation": "b", "labels": ("a", "b"), **changes}
        )


def test_a_task_survives_json():
    task = fashion_mnist(folder="here")
    assert ImageTask(**json.loads(json.dumps(dataclasses.asdict(task)))) == task


@pytest.mark.slow
def test_digits_are_learnable_by_their_nearest_neighbour():
    pytest.importorskip("sklearn")
    train, test = (load_images(digits(image_size=8), split) for split in ("train", "evaluation"))
    assert (len(train), len(test)) == (1437, 360)
    seen = gather(train, np.arange(1437))["pixel_values"].reshape(1437, -1)
    asked = gather(test, np.arange(360))["pixel_values"].reshape(360, -1)
    distances = ((asked[:, None, ::3] - seen[None, :, ::3]) ** 2).sum(-1)
    assert (train.labels[distances.argmin(1)] == test.labels).mean() > 0.97
    assert (distances.min(1) > 0).all()  # no test row is in the training rows
