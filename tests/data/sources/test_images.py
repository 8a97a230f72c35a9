"""Image folders, idx files, digits, and images in TFDS, read without TensorFlow."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goat_jax.data.pipeline.images import load_images
from goat_jax.data.sources.images import DIGITS_TEST_ROWS, read_idx, read_idx_folder
from goat_jax.data.sources.read import read_image_source, read_source
from goat_jax.data.tasks.image import FASHION_MNIST, ImageTask, fashion_mnist
from goat_jax.errors import Notice, UserError

IMAGES = np.arange(3 * 5 * 4, dtype=np.uint8).reshape(3, 5, 4)
LABELS = np.array([9, 0, 4], np.uint8)
FIRST_TEST_LABELS = [1, 3, 9, 2, 1, 8, 8, 8, 0, 1, 9, 1]


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array)
    )


@pytest.fixture
def mnist(tmp_path):
    """Training files with gzip, test files without, as both are found."""
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES[:2] + 1))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[:2]))
    return tmp_path


def test_idx_files(mnist):
    rows = read_source(f"idx:{mnist}@train", "validation")
    assert [row["label"] for row in rows] == [9, 0, 4]
    np.testing.assert_array_equal(rows[1]["image"], IMAGES[1])
    for source, split in ((f"idx:{mnist}@test", "train"), (f"idx:{mnist}", "validation")):
        assert len(read_source(source, split)) == 2
    assert len(read_source(f"idx:{mnist.name}@train", "train", mnist.parent)) == 3
    batch = load_images(fashion_mnist(folder=str(mnist), image_size=4), "train").gather(
        np.array([0, 1]), 1
    )
    assert batch["pixel_values"].shape == (2, 4, 4, 3) and batch["labels"].tolist() == [9, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a-idx1-ubyte", b"", "not an idx file of bytes"),
        ("a-idx1-ubyte", b"\0\0\x0d\x01" + b"\0" * 8, "not an idx file of bytes"),
        ("a-idx1-ubyte", b"\0\0\x08\x03\0\0", "not an idx file of bytes"),
        ("a-idx3-ubyte", idx(IMAGES)[:-1], r"59 values for shape \(3, 5, 4\): fetch it again"),
        ("a-idx3-ubyte.gz", gzip.compress(idx(IMAGES))[:-12], "gzip data is truncated or damaged"),
        ("a-idx3-ubyte.gz", b"PK", "gzip data is truncated or damaged"),
    ],
    # gzip writes the time into its header: an id made of the bytes would differ between workers.
    ids=["empty", "not of bytes", "header cut", "values cut", "gzip cut", "not gzip"],
)
def test_damaged_idx_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_idx(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_idx_folders_that_lack_something(mnist):
    with pytest.raises(UserError, match="no such split: use @train or @test"):
        read_idx_folder(mnist, "dev")
    (mnist / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS))
    with pytest.raises(UserError, match=r"images \(2, 5, 4\) and labels \(3,\) do not match"):
        read_idx_folder(mnist, "test")
    (mnist / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"neither t10k-labels-idx1-ubyte\.gz nor"):
        read_idx_folder(mnist, "test")


def test_the_fashion_mnist_of_debian():
    try:
        rows = read_idx_folder(Path(FASHION_MNIST), "test")
    except UserError as error:
        pytest.skip(f"needs the Debian package dataset-fashion-mnist: {error}")
    assert len(rows) == 10000 and rows[0]["image"].shape == (28, 28)
    assert np.bincount([row["label"] for row in rows]).tolist() == [1000] * 10


def test_image_folders(tmp_path):
    with pytest.raises(UserError, match="no subfolders: give a folder with a subfolder of im"):
        read_source(str(tmp_path), "train")
    for name in ("b", "a", ".git"):
        (tmp_path / name).mkdir()
    for name in ("b/2.jpg", "b/10.jpg", "b/x.txt", "a/1.webp"):
        (tmp_path / name).touch()
    rows = read_source(tmp_path.name, "train", tmp_path.parent)
    assert [(row["label"], row["image"].rpartition("/")[2]) for row in rows] == [
        ("a", "1.webp"),
        ("b", "10.jpg"),
        ("b", "2.jpg"),
    ]
    (tmp_path / "a" / "1.webp").unlink()
    with pytest.raises(UserError, match=r"/a has no image"):
        read_source(str(tmp_path), "train")


def test_hidden_files_are_no_images_and_nested_ones_are(tmp_path):
    for name in ("a/0.png", "a/._0.png", "a/deep/er/1.png", "a/.thumbs/2.png", "__MACOSX/a/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "folder.png").mkdir()
    rows = read_source(str(tmp_path), "train")
    found = [(row["label"], Path(row["image"]).relative_to(tmp_path).as_posix()) for row in rows]
    assert found == [("a", "a/0.png"), ("a", "a/deep/er/1.png")]


def test_images_without_a_class_are_named(tmp_path):
    for name in ("a/0.png", "1.png", "2.png", "._3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.warns(Notice, match=r"1\.png and 1 other images are in no class subfolder"):
        assert len(read_source(str(tmp_path), "train")) == 1


def test_an_idx_file_unpacks_to_no_more_than_its_shape(tmp_path):
    path = tmp_path / "a-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(LABELS) + bytes(10**6)))
    with pytest.raises(UserError, match="more than 3 values for shape"):
        read_idx(path)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12))
    with pytest.raises(UserError, match=r"values in shape .*: not read"):
        read_idx(path)


def test_digits():
    pytest.importorskip("sklearn")
    train, test = read_source("digits:train", "train"), read_source("digits:test", "train")
    assert len(test) == DIGITS_TEST_ROWS and len(train) + len(test) == 1797
    # The split stays what it is: results of different days are of the same rows.
    assert [row["label"] for row in test[:12]] == FIRST_TEST_LABELS
    assert test[0]["image"].dtype == np.uint8 and test[0]["image"].shape == (8, 8)
    assert max(row["image"].max() for row in test) == 255
    assert (np.bincount([row["label"] for row in test]) > 20).all()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the data set `tiny_pets`: PNG images, and grey ones as tensors."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyPets(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "grey": tfds.features.Tensor(shape=(4, 4), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                file = io.BytesIO()
                Image.new("RGB", (5, 6), (i, 2 * i, 3 * i)).save(file, "PNG")
                grey = np.full((4, 4), i, np.uint8)
                yield i, {"image": file.getvalue(), "grey": grey, "label": i % 2}

    folder = str(tmp_path_factory.mktemp("tfds"))
    tfds.disable_progress_bar()
    TinyPets(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.mark.parametrize("column", ["image", "grey"])
def test_images_of_tfds(prepared, column):
    task = ImageTask(
        "pets",
        "tfds:tiny_pets",
        "tfds:tiny_pets@train[:2]",
        image=column,
        labels=("cat", "dog"),
        data_dir=prepared,
        image_size=3,
        mean=(0.0, 0.0, 0.0),
        std=(1 / 255, 1 / 255, 1 / 255),
    )
    rows = load_images(task, "train")
    batch = rows.gather(np.arange(4), 1)
    first = batch["pixel_values"][:, 0, 0].round().astype(int)
    factors = [1, 2, 3] if column == "image" else [1, 1, 1]
    assert sorted(first.tolist()) == [[i * f for f in factors] for i in range(4)]
    np.testing.assert_array_equal(first[:, 0] % 2, batch["labels"])
    assert len(load_images(task, "evaluation")) == 2


def test_images_of_tfds_stay_encoded_until_they_are_needed(prepared):
    rows = read_image_source("tfds:tiny_pets@train", "validation", "image", prepared)
    assert len(rows) == 4 and rows[2]["image"].startswith(b"\x89PNG")
    with pytest.raises(UserError, match="tfds:tiny_pet@train: Dataset tiny_pet not found"):
        read_image_source("tfds:tiny_pet@train", "train", "image", prepared)
