"""Recipes of the paper's image sets, from their official archives to the format of TFDS.

tensorflow_datasets has builders for six of the seven sets, but they read with TensorFlow. Here
zipfile, tarfile, scipy and Pillow read the same rows and pass them to the builder, so the result
has the builder's name, version, features and row order. GTSRB has no builder and gets a new one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from goat_jax.data.prepare.archives import read_member, read_members
from goat_jax.data.prepare.fetch import RemoteFile
from goat_jax.data.prepare.recipe import Recipe, Rows
from goat_jax.data.tasks.benchmarks.vision import vision_classes

Files = Mapping[str, Path]

SUN_PIXELS = 120_000
SUN_SKIPPED = (
    "c/church/outdoor/sun_bhenjvsvrtumjuri.jpg",
    "t/track/outdoor/sun_aophkoiosslinihb.jpg",
)
"""Two damaged images, which TFDS leaves out as well."""


def _cars(files: Files) -> dict[str, Rows]:
    notes = {
        "train": ("train", "devkit/cars_train_annos.mat", files["car_devkit.tgz"]),
        "test": ("test", "", files["cars_test_annos_withlabels.mat"]),
    }
    return {
        split: _cars_split(files[f"cars_{name}.tgz"], read_member(path, inner) if inner else path)
        for split, (name, inner, path) in notes.items()
    }


def _cars_split(archive: Path, annotations: Path | bytes) -> Rows:
    from scipy.io import loadmat
    from tensorflow_datasets.core.features import BBox

    stored = io.BytesIO(annotations) if isinstance(annotations, bytes) else annotations
    known = {}
    for *box, label, name in loadmat(stored)["annotations"][0]:
        corners = [float(value.item()) for value in box[:4]]  # left, top, right, bottom in pixels
        known[str(name.item())] = (corners, int(label.item()) - 1)
    for name, data in read_members(archive, lambda name: Path(name).name in known):
        (left, top, right, bottom), label = known[Path(name).name]
        width, height = _size(data)
        box = BBox(top / height, left / width, min(bottom / height, 1), min(right / width, 1))
        yield Path(name).stem, {"image": data, "label": label, "bbox": box, "id": Path(name).stem}


def _dtd(files: Files) -> dict[str, Rows]:
    archive = files["dtd-r1.0.1.tar.gz"]
    lists = dict(read_members(archive, lambda name: name.startswith("dtd/labels/")))

    def split(name: str) -> Rows:
        chosen = set(lists[f"dtd/labels/{name}1.txt"].decode().split())
        inside = "dtd/images/"
        for path, data in read_members(archive, lambda n: n.removeprefix(inside) in chosen):
            inner = path.removeprefix(inside)
            yield inner, {"file_name": inner, "image": data, "label": inner.split("/")[0]}

    return {"train": split("train"), "test": split("test"), "validation": split("val")}


def _eurosat(files: Files) -> dict[str, Rows]:
    def rows() -> Rows:
        for name, data in read_members(files["EuroSAT.zip"], lambda n: n.endswith(".jpg")):
            file_name = Path(name).name
            label = file_name.split("_")[0]
            yield f"{label}_{file_name}", {"image": data, "label": label, "filename": file_name}

    return {"train": rows()}


def _resisc45(files: Files) -> dict[str, Rows]:
    def rows() -> Rows:
        for name, data in read_members(files["NWPU-RESISC45"], lambda n: n.endswith(".jpg")):
            label, file_name = name.split("/")[-2:]
            yield f"{label}_{file_name}", {"image": data, "label": label, "filename": file_name}

    return {"train": rows()}


def _gtsrb(files: Files) -> dict[str, Rows]:
    def train() -> Rows:
        for name, data in read_members(files["GTSRB-Training_fixed.zip"], _is_ppm):
            label, file_name = name.split("/")[-2:]
            number = f"{label}_{Path(file_name).stem}"
            yield number, {"image": _png(data), "label": int(label), "id": number}

    def test() -> Rows:
        table = read_member(files["GTSRB_Final_Test_GT.zip"], "GT-final_test.csv").decode()
        known = {
            row["Filename"]: int(row["ClassId"])
            for row in csv.DictReader(table.splitlines(), delimiter=";")
        }
        for name, data in read_members(files["GTSRB_Final_Test_Images.zip"], _is_ppm):
            file_name = Path(name).name
            yield (
                f"test_{file_name}",
                {"image": _png(data), "label": known[file_name], "id": Path(file_name).stem},
            )

    return {"train": train(), "test": test()}


def _sun397(files: Files) -> dict[str, Rows]:
    def split(listed: str) -> Rows:
        chosen = set(read_member(files["Partitions.zip"], listed).decode().split())
        chosen -= {f"/{name}" for name in SUN_SKIPPED}
        inside = "SUN397"
        images = read_members(files["SUN397.tar.gz"], lambda n: n.removeprefix(inside) in chosen)
        for path, data in images:
            inner = path.removeprefix(inside)
            yield (
                inner,
                {"file_name": inner, "image": _shrunk(data), "label": inner.rpartition("/")[0]},
            )

    return {"train": split("Training_01.txt"), "test": split("Testing_01.txt")}


def _svhn(files: Files) -> dict[str, Rows]:
    def split(name: str) -> Rows:
        from scipy.io import loadmat

        stored = loadmat(files[f"{name}_32x32.mat"])
        for number, label in enumerate(stored["y"].ravel().tolist()):
            image = stored["X"][..., number]
            # The official files label the digit 0 as 10.
            row = {"image": _png_of(image), "label": label % 10, "id": f"{name}_{number:06d}"}
            yield number, row

    return {"train": split("train"), "test": split("test")}


def _is_ppm(name: str) -> bool:
    return name.endswith(".ppm")


def _size(data: bytes) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.size


def _png(data: bytes) -> bytes:
    """Converts an image of any format to PNG, since TFDS stores PNG and JPEG."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return _png_of(np.asarray(image.convert("RGB")))


def _png_of(pixels: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
    return out.getvalue()


def _shrunk(data: bytes) -> bytes:
    """Converts a SUN397 image to JPEG with at most `SUN_PIXELS` pixels, as in TFDS."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        pixels = image.convert("RGB")
    factor = min(1.0, (SUN_PIXELS / (pixels.width * pixels.height)) ** 0.5)
    size = (max(1, int(pixels.width * factor)), max(1, int(pixels.height * factor)))
    out = io.BytesIO()
    pixels.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=95)
    return out.getvalue()


def _gtsrb_features(features: ModuleType) -> dict[str, Any]:
    return {
        "image": features.Image(),
        "label": features.ClassLabel(names=vision_classes("gtsrb")[0]),
        "id": features.Text(),
    }


_CARS, _SVHN = "http://ai.stanford.edu/~jkrause", "http://ufldl.stanford.edu/housenumbers"
_SUN = "https://vision.princeton.edu/projects/2010/SUN"
_GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"


def _sha(filename: str, url: str, size: int, digest: str) -> RemoteFile:
    return RemoteFile(filename, url, f"sha256:{digest}", size)


VISION_RECIPES: dict[str, Recipe] = {
    "cars": Recipe(
        builder="cars196",
        read=_cars,
        licence="Krause et al. 2013: for research only, images from the web",
        remotes=(
            _sha(
                "cars_train.tgz",
                f"{_CARS}/car196/cars_train.tgz",
                979269282,
                "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
            ),
            _sha(
                "cars_test.tgz",
                f"{_CARS}/car196/cars_test.tgz",
                977350468,
                "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
            ),
            _sha(
                "car_devkit.tgz",
                f"{_CARS}/cars/car_devkit.tgz",
                330960,
                "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
            ),
            _sha(
                "cars_test_annos_withlabels.mat",
                f"{_CARS}/car196/cars_test_annos_withlabels.mat",
                185758,
                "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
            ),
        ),
        note="the authors' host has often been down",
    ),
    "dtd": Recipe(
        builder="dtd",
        read=_dtd,
        licence="Cimpoi et al. 2014: for research only",
        remotes=(
            _sha(
                "dtd-r1.0.1.tar.gz",
                "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
                625239812,
                "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
            ),
        ),
    ),
    "eurosat": Recipe(
        builder="eurosat/rgb",
        read=_eurosat,
        licence="Helber et al. 2019: MIT; Copernicus Sentinel data",
        remotes=(
            _sha(
                "EuroSAT.zip",
                "http://madm.dfki.de/files/sentinel/EuroSAT.zip",
                94280567,
                "8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
            ),
        ),
    ),
    "gtsrb": Recipe(
        builder="gtsrb",
        read=_gtsrb,
        features=_gtsrb_features,
        licence="Stallkamp et al. 2012: free for research, no licence text",
        remotes=tuple(
            RemoteFile(name, f"{_GTSRB}/{name}", f"md5:{digest}")
            for name, digest in (
                ("GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478"),
                ("GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185"),
                ("GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5"),
            )
        ),
    ),
    "resisc45": Recipe(
        builder="resisc45",
        read=_resisc45,
        licence="Cheng, Han and Lu 2017: for research, no licence text",
        remotes=(RemoteFile("NWPU-RESISC45"),),
        note="its authors give NWPU-RESISC45.rar by hand (OneDrive, linked from the paper, "
        "doi 10.1109/JPROC.2017.2675998): unpack it, a folder with a subfolder for each class",
    ),
    "sun397": Recipe(
        builder="sun397/standard-part1-120k",
        read=_sun397,
        licence="Xiao et al. 2010: for research only, images from the web",
        remotes=(
            _sha(
                "SUN397.tar.gz",
                f"{_SUN}/SUN397.tar.gz",
                39077296924,
                "f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec",
            ),
            _sha(
                "Partitions.zip",
                f"{_SUN}/download/Partitions.zip",
                18293705,
                "e3311ea5f812d4cc6faef194688343d1111f6cd6f70f2c62f393c2b8d6ba1ec9",
            ),
        ),
    ),
    "svhn": Recipe(
        builder="svhn_cropped",
        read=_svhn,
        licence="Netzer et al. 2011: for non-commercial use only",
        remotes=(
            _sha(
                "train_32x32.mat",
                f"{_SVHN}/train_32x32.mat",
                182040794,
                "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            ),
            _sha(
                "test_32x32.mat",
                f"{_SVHN}/test_32x32.mat",
                64275384,
                "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
            ),
        ),
    ),
}
"""Name of a task -> its recipe. Addresses, sizes and checksums are those that TFDS pins; for GTSRB,
those of its archive."""
