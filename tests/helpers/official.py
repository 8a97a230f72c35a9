"""Tiny archives in the layout of the official ones: what recipes read, a few rows each."""

import dataclasses
import io
import tarfile
import zipfile
from typing import Literal

import numpy as np
from PIL import Image

from goat_jax.data.prepare.prepare import RECIPES


def picture(seed, form="JPEG", size=(40, 30)):
    """The bytes of an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def write_tar(path, members, mode: Literal["w:gz", "w:bz2", "w"] = "w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def cars(folder):
    from scipy.io import savemat

    def notes(path, count):
        kinds = [(name, object) for name in ("x1", "y1", "x2", "y2", "class", "fname")]
        rows = np.empty((1, count), dtype=kinds)
        for i in range(count):
            rows[0, i] = (4, 3, 20, 15, 1 + 5 * i, f"{i + 1:05d}.jpg")
        savemat(path, {"annotations": rows})

    out = io.BytesIO()
    notes(out, 3)
    write_tar(folder / "car_devkit.tgz", {"devkit/cars_train_annos.mat": out.getvalue()})
    notes(folder / "cars_test_annos_withlabels.mat", 2)
    for split, count in (("train", 3), ("test", 2)):
        images = {f"cars_{split}/{i + 1:05d}.jpg": picture(i) for i in range(count)}
        write_tar(folder / f"cars_{split}.tgz", images)
    return {"train": [0, 5, 10], "test": [0, 5]}


def dtd(folder):
    kinds, lists, members = ("banded", "dotted", "zigzagged"), {}, {}
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{kind}/{kind}_{number:04d}.jpg" for kind in kinds]
        lists[f"dtd/labels/{split}1.txt"] = "\n".join(names).encode()
        members |= {f"dtd/images/{name}": picture(number) for name in names}
    write_tar(folder / "dtd-r1.0.1.tar.gz", members | lists, "w")  # images before their lists
    return {"train": [0, 10, 46] * 2, "test": [0, 10, 46]}


def eurosat(folder):
    names = [f"2750/{kind}/{kind}_{i}.jpg" for kind in ("AnnualCrop", "SeaLake") for i in range(3)]
    images = {name: picture(i, size=(64, 64)) for i, name in enumerate(names)}
    write_zip(folder / "EuroSAT.zip", images)
    return {"train": [0, 0, 0, 9, 9, 9]}


def resisc45(folder):
    for kind in ("airplane", "wetland"):
        (folder / "NWPU-RESISC45" / kind).mkdir(parents=True)
        for i in range(2):
            path = folder / "NWPU-RESISC45" / kind / f"{kind}_{i:03d}.jpg"
            path.write_bytes(picture(i, size=(256, 256)))
    return {"train": [0, 0, 44, 44]}


def gtsrb(folder):
    inside = "GTSRB/Training"
    train = {f"{inside}/{i:05d}/00000_0000{i}.ppm": picture(i, "PPM") for i in (0, 7, 42)}
    notes = {f"{inside}/00000/GT-00000.csv": b"Filename;Width"}
    write_zip(folder / "GTSRB-Training_fixed.zip", train | notes)
    test = {f"GTSRB/Final_Test/Images/0000{i}.ppm": picture(i, "PPM") for i in range(2)}
    write_zip(folder / "GTSRB_Final_Test_Images.zip", test)
    table = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    table += "00000.ppm;40;30;1;1;9;9;16\n00001.ppm;40;30;1;1;9;9;1\n"
    write_zip(folder / "GTSRB_Final_Test_GT.zip", {"GT-final_test.csv": table.encode()})
    return {"train": [0, 7, 42], "test": [1, 16]}


def sun397(folder):
    names = ["/a/abbey/sun_a.jpg", "/a/apse/indoor/sun_b.jpg", "/y/youth_hostel/sun_c.jpg"]
    forms = ["JPEG", "PNG", "BMP"]  # all are called jpg
    images = {
        f"SUN397{name}": picture(i, form, size=(800, 600))
        for i, (name, form) in enumerate(zip(names, forms, strict=True))
    }
    write_tar(folder / "SUN397.tar.gz", images)
    lists = {"Training_01.txt": "\n".join(names[:2]), "Testing_01.txt": names[2]}
    write_zip(folder / "Partitions.zip", lists)
    return {"train": [0, 9], "test": [396]}


def svhn(folder):
    from scipy.io import savemat

    for split, labels in (("train", [1, 10, 3]), ("test", [10, 9])):
        shape = (32, 32, 3, len(labels))
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        savemat(folder / f"{split}_32x32.mat", {"X": pixels, "y": np.array(labels)[:, None]})
    return {"train": [0, 1, 3], "test": [0, 9]}


IMAGES = {
    "cars": cars,
    "dtd": dtd,
    "eurosat": eurosat,
    "gtsrb": gtsrb,
    "resisc45": resisc45,
    "sun397": sun397,
    "svhn": svhn,
}
"""Task -> writes its archives into a folder, gives the labels of every split, sorted."""

_PAIR = "index\tsentence1\tsentence2\tlabel\n{}"
GLUE_FILES = {
    "cola": ("CoLA.zip", "CoLA", "{}", "gj04\t1\t\tA sentence {}.\ngj04\t0\t*\tSentence a {}.\n"),
    "sst2": ("SST-2.zip", "SST-2", "sentence\tlabel\n{}", "fine film {}\t1\ndull film {}\t0\n"),
    "qqp": (
        "QQP.zip",
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n{}",
        "0\t1\t2\tWhy {}?\tHow?\t0\n1\t3\t4\tWho {}?\tWho?\t1\n",
    ),
    "qnli": (
        "QNLIv2.zip",
        "QNLI",
        "index\tquestion\tsentence\tlabel\n{}",
        "0\tWhen {}?\tThen.\tentailment\n1\tWhere {}?\tThen.\tnot_entailment\n",
    ),
    "rte": ("RTE.zip", "RTE", _PAIR, "0\tA {}.\tB.\tnot_entailment\n1\tC {}.\tC.\tentailment\n"),
    "mnli": (
        "MNLI.zip",
        "MNLI",
        "sentence1\tsentence2\tgold_label\n{}",
        "A {}.\tB.\tneutral\nC {}.\tC.\tentailment\nD {}.\tNo D.\tcontradiction\n",
    ),
}
"""Task -> archive, folder in it, the file around the rows, its rows with the split's name."""


def glue(folder, task):
    """Writes a GLUE archive; labels by split, sorted."""
    if task == "mrpc":
        return mrpc(folder)
    archive, inside, file, rows = GLUE_FILES[task]
    middle = ("dev_matched", "dev_mismatched") if task == "mnli" else ("dev",)
    last = ("test_matched", "test_mismatched") if task == "mnli" else ("test",)
    members = {
        f"{inside}/{split}.tsv": file.format(rows.replace("{}", split))
        for split in ("train", *middle)
    }
    table = [line.split("\t") for line in file.format(rows).strip().split("\n")]
    if task == "cola":  # only its test file has a header
        table = [["index", "sentence"], ["0", "A sentence."]]
    labels = {"label", "is_duplicate", "gold_label"} & set(table[0])
    kept = [i for i, column in enumerate(table[0]) if column not in labels]
    unlabelled = "".join("\t".join(row[i] for i in kept) + "\n" for row in table)
    members |= {f"{inside}/{split}.tsv": unlabelled for split in last}
    write_zip(folder / archive, members)
    return {"train": list(range(rows.count("\n"))), "evaluation": None}


def mrpc(folder):
    head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    rows = "1\t10\t11\tA b.\tB a.\n0\t12\t13\tC d.\tE f.\n1\t14\t15\tG.\tG, too.\n"
    (folder / "msr_paraphrase_train.txt").write_text("\ufeff" + head + rows, encoding="utf-8")
    (folder / "msr_paraphrase_test.txt").write_text("\ufeff" + head + rows, encoding="utf-8")
    (folder / "mrpc_dev_ids.tsv").write_text("14\t15\n")
    return {"train": [0, 1], "evaluation": None}


def unpinned(monkeypatch, task):
    """Lets a task's recipe take other files than the official ones."""
    recipe = RECIPES[task]
    remotes = tuple(dataclasses.replace(r, checksum=None, size=0) for r in recipe.remotes)
    monkeypatch.setitem(RECIPES, task, dataclasses.replace(recipe, remotes=remotes))
