"""The demo task: parsing, the split, and (slow, by network) the real package."""

import io
import subprocess
import tarfile
import zipfile

import pytest

from goat_jax.data.sources import reviews
from goat_jax.data.sources.reviews import normalised, parse_snippets, read_reviews, split_rows
from goat_jax.data.tasks.registry import load_examples
from goat_jax.errors import UserError
from goat_jax.files import sha256_of
from goat_jax.pretrained import pip_archives as packages
from goat_jax.pretrained.pip_archives import Package
from kinds import text_task

TEXT = "1\t0.5\tBare yes.\r\n2\t-0.49\tNeither\r\n3\t-3.2\tNo\tgood \r\n4\t2\tCaf\ufffd"


def test_rows_near_zero_are_left_out_and_the_sign_is_the_label():
    assert parse_snippets(TEXT) == [
        {"id": 1, "sentence": "Bare yes.", "label": 1},
        {"id": 3, "sentence": "No\tgood", "label": 0},
        {"id": 4, "sentence": "Caf\ufffd", "label": 1},
    ]


def test_split_is_fixed_disjoint_and_independent_of_the_files_order():
    rows = [{"sentence": f"Text {i // 2}{'.' * (i % 2)}", "label": 1} for i in range(100)]
    parts = split_rows(rows, test_rows=20)
    texts = {name: {normalised(row["sentence"]) for row in part} for name, part in parts.items()}
    assert len(parts["test"]) == 20 and len(parts["train"]) == 30  # 50 texts, each twice
    assert not texts["train"] & texts["test"]
    assert split_rows(rows, test_rows=20) == parts
    assert split_rows(rows, test_rows=20, seed=1) != parts
    again = split_rows(rows[::-1], test_rows=20)
    assert [normalised(row["sentence"]) for row in again["test"]] == [
        normalised(row["sentence"]) for row in parts["test"]
    ]
    assert parts["test"][0]["sentence"] == "Text 38"  # the same on every machine, for ever


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the real one's structure in the cache folder; returns the folder."""
    lines = "".join(f"{i}\t{(-1) ** i}.0\tsentence {i}\n" for i in range(1, 1001))
    data = lines.encode() + b"1001\t1.0\tbad byte \xe9\n"
    tar_bytes = io.BytesIO()
    with tarfile.open(fileobj=tar_bytes, mode="w:gz") as tar:
        member = tarfile.TarInfo(reviews.MEMBER)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    with zipfile.ZipFile(tmp_path / "demo.zip", "w") as archive:
        archive.writestr(reviews.ARCHIVE, tar_bytes.getvalue())
    digest = sha256_of(tmp_path / "demo.zip")
    monkeypatch.setitem(packages.PACKAGES, "reviews", Package("demo==1", "demo.zip", digest, "-"))
    return tmp_path


def test_the_task_reads_the_cached_package(package):
    task = text_task("reviews", data_dir=str(package), train_limit=50)
    assert len(load_examples(task, "evaluation")) == 800
    train = load_examples(task, "train")
    assert len(train) == 50 and set(train.labels.tolist()) == {0, 1}
    rows = read_reviews("train", package) + read_reviews("test", package)
    assert {row["sentence"] for row in rows} >= {"sentence 1", "bad byte \ufffd"}
    assert all(row["label"] == (row["id"] % 2 == 0) for row in rows if row["id"] <= 1000)


def test_a_package_without_the_snippets(package, monkeypatch):
    with zipfile.ZipFile(package / "demo.zip", "w") as archive:
        archive.writestr("other", "")
    pinned = Package("demo==1", "demo.zip", sha256_of(package / "demo.zip"), "-")
    monkeypatch.setitem(packages.PACKAGES, "reviews", pinned)
    with pytest.raises(UserError, match=r"demo\.zip has no movie review snippets"):
        read_reviews("test", package)


@pytest.mark.slow
def test_the_real_package(tmp_path, monkeypatch):
    """Fetched by pip into a fresh cache, as on a user's first run."""
    try:
        rows = {"train": read_reviews("train", tmp_path)}
    except UserError as error:
        if "could not fetch" not in str(error):
            raise
        pytest.skip(str(error))
    monkeypatch.setattr(subprocess, "run", None)  # the second read must not fetch
    rows["test"] = read_reviews("test", tmp_path)
    assert {name: len(part) for name, part in rows.items()} == {"train": 9270, "test": 800}
    texts = {name: {normalised(r["sentence"]) for r in part} for name, part in rows.items()}
    assert not texts["train"] & texts["test"]
    for part in rows.values():
        assert 0.45 < sum(row["label"] for row in part) / len(part) < 0.55
