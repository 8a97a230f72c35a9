"""``goat-jax data`` from the command line, with a server on the loopback in place of the hosts."""

import dataclasses
import functools
import hashlib
import http.server
import threading

import pytest

import official
from goat_jax.cli.main import main
from goat_jax.data.pipeline.images import load_images
from goat_jax.data.prepare.prepare import RECIPES
from goat_jax.data.sources import read
from goat_jax.data.tasks.registry import TASKS
from kinds import image_task


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """DTD's archive, tiny, on a server that the recipe points to."""
    folder = tmp_path / "served"
    folder.mkdir()
    official.IMAGES["dtd"](folder)
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    recipe = RECIPES["dtd"]
    (archive,) = recipe.remotes
    data = (folder / archive.filename).read_bytes()
    own = dataclasses.replace(
        archive,
        url=f"http://127.0.0.1:{server.server_address[1]}/{archive.filename}",
        checksum=f"sha256:{hashlib.sha256(data).hexdigest()}",
        size=len(data),
    )
    monkeypatch.setitem(RECIPES, "dtd", dataclasses.replace(recipe, remotes=(own,)))
    yield folder / archive.filename
    server.shutdown()
    server.server_close()
    thread.join(timeout=10)


@pytest.mark.slow
def test_a_set_is_fetched_and_made(served, tmp_path, capsys):
    out = tmp_path / "sets"
    for said in ("prepared", "already prepared"):
        assert main(["data", "prepare", "dtd", "--out", str(out), "--quiet"]) == 0
        printed = capsys.readouterr()
        assert f"dtd: {said} in {out}/dtd/" in printed.out
        assert all(f"{split} 3" in printed.out for split in ("train", "validation", "test"))
        assert "licence: Cimpoi et al. 2014" in printed.out
        assert f"--task.data-dir {out}" in printed.out
    assert len(load_images(image_task("dtd", data_dir=str(out)), "train")) == 6


def test_a_changed_archive_is_refused_in_one_line(served, tmp_path, capsys):
    data = bytearray(served.read_bytes())
    data[len(data) // 2] ^= 1
    served.write_bytes(bytes(data))
    assert main(["data", "prepare", "dtd", "--out", str(tmp_path / "sets"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("goat-jax: error: dtd-r1.0.1.tar.gz has sha256") and said.count("\n") == 1
    )
    assert not [path for path in (tmp_path / "sets").rglob("*") if path.is_file()]


def test_what_only_a_person_can_get_and_wrong_names(tmp_path, capsys):
    for arguments, said in (
        (["prepare", "resisc45", "--out", str(tmp_path)], "NWPU-RESISC45 cannot be fetched: its"),
        (["prepare"], "data prepare needs a task"),
        (["prepare", "dtdd"], "no recipe for 'dtdd' (did you mean 'dtd'?)"),
    ):
        assert main(["data", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_the_list_has_every_set_and_its_licence(capsys):
    assert main(["data", "list"]) == 0
    printed = capsys.readouterr().out
    for task, recipe in RECIPES.items():
        assert task in TASKS
        assert recipe.licence in printed
    assert "by hand: NWPU-RESISC45" in printed


def test_rows_of_a_text_task_as_a_table(tmp_path, monkeypatch, capsys):
    rows = [{"sentence": f'a "fine" film, {n}', "label": n % 2} for n in range(40)]
    monkeypatch.setattr(read, "read_reviews", lambda split, folder=None: rows)
    out = tmp_path / "a folder to make" / "reviews.csv"
    assert main(["data", "write", "reviews", "--rows", "10", "--out", str(out)]) == 0
    assert "wrote 10 rows" in capsys.readouterr().out
    lines = out.read_text().splitlines()
    assert lines[:2] == ["sentence,label", '"a ""fine"" film, 0",negative'] and len(lines) == 11
    for words, message in [
        (["reviews", "--out", str(out)], "exists"),
        (["reviews"], "give --out FILE.csv"),
        (["digits", "--out", str(tmp_path / "a.csv")], "rows of text with a label"),
    ]:
        assert main(["data", "write", *words]) == 2
        assert message in capsys.readouterr().err
