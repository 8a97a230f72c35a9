"""Every set is made from archives in the official layout, and read back by its task."""

import pytest

import official
from goat_jax.data.pipeline.images import load_images
from goat_jax.data.prepare.prepare import RECIPES, gather_files, prepare
from goat_jax.data.tasks.benchmarks.vision import VISION
from goat_jax.data.tasks.text import load_examples
from goat_jax.errors import UserError
from kinds import image_task, text_task


@pytest.fixture
def archives(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", VISION)
def test_image_sets_from_their_archives(name, archives, tmp_path, monkeypatch):
    official.unpinned(monkeypatch, name)
    expected = official.IMAGES[name](archives)
    out = tmp_path / "sets"
    made = prepare(name, out, archives)
    assert made.fresh and not prepare(name, out, archives).fresh
    task = image_task(name, data_dir=str(out), image_size=32)
    if name in ("eurosat", "resisc45"):  # one split, cut at the numbers of the real set
        with pytest.raises(UserError, match=r"tfds:.*21600|tfds:.*18900"):
            load_images(task, "train")
        source = f"tfds:{RECIPES[name].builder}@train[:50%]"
        task = image_task("image_files", train=source, evaluation=source, labels=task.labels,
                          data_dir=str(out), image_size=32)  # fmt: skip
        rows = load_images(task, "train")
        assert len(rows) == len(expected["train"]) // 2
    else:
        splits = [load_images(task, split) for split in ("train", "evaluation")]
        for rows, labels in zip(splits, expected.values(), strict=True):
            assert sorted(rows.labels.tolist()) == sorted(labels)
        rows = splits[0]
    assert rows.pixels(0).shape == (32, 32, 3)
    assert not list(out.rglob("*incomplete*"))


@pytest.mark.parametrize("name", [*official.GLUE_FILES, "mrpc"])
def test_glue_from_its_archives(name, archives, tmp_path, monkeypatch):
    official.unpinned(monkeypatch, name)
    official.glue(archives, name)
    made = prepare(name, tmp_path / "sets", archives)
    assert made.fresh
    task = text_task(name, data_dir=str(tmp_path / "sets"))
    train, held_out = load_examples(task, "train"), load_examples(task, "evaluation")
    assert sorted(set(train.labels.tolist())) == list(range(len(task.labels)))
    assert len(held_out) == (1 if name == "mrpc" else 6 if name == "mnli" else 2)
    assert {part: rows.sum() for part, rows in held_out.parts.items()} == dict.fromkeys(
        task.parts, 3.0
    )
    assert sorted(p.name for p in made.folder.parent.iterdir()) == [made.folder.name]


def test_what_only_a_person_can_get_is_said(archives):
    with pytest.raises(UserError, match=r"NWPU-RESISC45 cannot be fetched: .*--archives"):
        prepare("resisc45", archives / "sets")
    with pytest.raises(UserError, match=r"put NWPU-RESISC45 into .*archives"):
        prepare("resisc45", archives / "sets", archives)
    with pytest.raises(UserError, match=r"no such folder: give the one with dtd-r1.0.1.tar.gz"):
        prepare("dtd", archives / "sets", archives / "nowhere")


def test_archives_of_another_content_are_refused(archives, monkeypatch):
    official.IMAGES["dtd"](archives)
    with pytest.raises(UserError, match=r"dtd-r1.0.1.tar.gz has .* bytes, not 625,239,812"):
        prepare("dtd", archives / "sets", archives)
    official.unpinned(monkeypatch, "dtd")
    (archives / "dtd-r1.0.1.tar.gz").write_bytes(b"no archive at all")
    with pytest.raises(UserError, match="not a readable archive"):
        prepare("dtd", archives / "sets", archives)
    assert not list((archives / "sets").rglob("*.array_record*"))


def test_a_name_that_leads_out_of_an_archive_is_refused(archives, monkeypatch):
    official.unpinned(monkeypatch, "rte")
    official.write_zip(archives / "RTE.zip", {"../../outside.txt": "no"})
    with pytest.raises(UserError, match="leads out of the target folder"):
        prepare("rte", archives / "sets", archives)
    assert not list(archives.rglob("outside.txt"))


def test_given_files_are_not_fetched_again(archives, monkeypatch):
    official.unpinned(monkeypatch, "gtsrb")
    official.IMAGES["gtsrb"](archives)
    found = gather_files(RECIPES["gtsrb"], archives / "fetched", archives)
    assert {path.parent for path in found.values()} == {archives}
