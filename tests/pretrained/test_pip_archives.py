"""Pinned archives: fetched by a real pip from a local folder, checked, cached, unpacked."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from disks import full_disk
from goat_jax.data.pipeline.tokenize import load_tokenizer
from goat_jax.errors import Notice, UserError
from goat_jax.files import sha256_of
from goat_jax.pretrained import packaged_models
from goat_jax.pretrained import pip_archives as packages
from goat_jax.pretrained.packaged_models import minilm_folder, smollm2_file
from goat_jax.pretrained.pip_archives import extract_members, fetch_package

NAME = "goat_demo-1.0-py3-none-any.whl"


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> dict[str, str]:
    """Arguments that fetch a small wheel; pip sees only the folder it lies in."""
    links = tmp_path / "links"
    links.mkdir()
    info = "goat_demo-1.0.dist-info"
    with zipfile.ZipFile(links / NAME, "w") as archive:
        archive.writestr("goat_demo/config.json", "{}")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: goat-demo\nVersion: 1.0")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    digest = sha256_of(links / NAME)
    return {"requirement": "goat-demo==1.0", "filename": NAME, "sha256": digest}


def no_pip(*args, **kwargs):
    raise AssertionError("pip must not run")


@pytest.mark.slow
def test_fetched_once_and_again_if_damaged(tmp_path, wheel, monkeypatch):
    cache = tmp_path / "deep" / "cache"
    path = fetch_package(**wheel, cache_dir=cache)
    assert path == cache / NAME and sha256_of(path) == wheel["sha256"]
    assert list(cache.iterdir()) == [path]

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", no_pip)
        assert fetch_package(**wheel, cache_dir=cache) == path

    path.write_bytes(b"damaged")
    assert sha256_of(fetch_package(**wheel, cache_dir=cache)) == wheel["sha256"]


def test_another_hash_names_both_and_keeps_nothing(tmp_path, wheel):
    cache, pinned = tmp_path / "cache", "0" * 64
    with pytest.raises(UserError, match=f"{wheel['sha256']}, expected {pinned}") as caught:
        fetch_package(**{**wheel, "sha256": pinned}, cache_dir=cache)
    assert "\n" not in str(caught.value) and not list(cache.iterdir())


def test_the_hash_is_checked_here_too(tmp_path, wheel, monkeypatch):
    """Refuses a wrong archive even if pip let it through."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(
        packages, "_run_pip", lambda *args: (args[3] / args[1]).write_bytes(b"other") and None
    )
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(UserError, match=f"received sha256 {other}, expected {wheel['sha256']}"):
        fetch_package(**wheel, cache_dir=cache)
    assert not list(cache.iterdir())


@pytest.mark.slow
def test_what_pip_cannot_find(tmp_path, wheel):
    with pytest.raises(UserError, match=r"could not fetch goat-nil==1 .* put .* into ") as caught:
        fetch_package(**{**wheel, "requirement": "goat-nil==1"}, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_unexpected_file_name(tmp_path, wheel):
    with pytest.raises(UserError, match=r"pip brought no file named other\.whl"):
        fetch_package(**{**wheel, "filename": "other.whl"}, cache_dir=tmp_path / "cache")


def test_python_without_pip(tmp_path, wheel, monkeypatch):
    def run(command, **options):
        message = f"{sys.executable}: No module named pip\n"
        return subprocess.CompletedProcess(command, 1, "", message)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match=r"No module named pip\): check"):
        fetch_package(**wheel, cache_dir=tmp_path / "cache")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The folder that stands for the process's temporary one."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.setattr(packages, "temporary_folder", lambda: folder)
    return folder


@pytest.mark.slow
def test_a_cache_that_cannot_be_made_costs_a_warning(tmp_path, wheel, elsewhere):
    (tmp_path / "file").write_text("")
    cache = tmp_path / "file" / "cache"
    with pytest.warns(Notice) as notices:
        for _ in range(2):
            found = fetch_package(**wheel, cache_dir=cache)
            assert found == elsewhere / NAME and sha256_of(found) == wheel["sha256"]
    (notice,) = notices
    assert str(notice.message).startswith(f"cannot use the cache {cache} (Not a directory)")


def test_no_room_anywhere_is_one_line(tmp_path, monkeypatch, wheel):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(packages, "temporary_folder", lambda: tmp_path / "file" / "other")
    message = "neither the cache .*/file/cache nor .* can be written"
    with pytest.warns(Notice), pytest.raises(UserError, match=message):
        fetch_package(**wheel, cache_dir=tmp_path / "file" / "cache")


@pytest.mark.slow
def test_a_disk_that_fills_under_pip(tmp_path, wheel, elsewhere, monkeypatch):
    run = subprocess.run

    def full(command, **options):
        if str(elsewhere) in " ".join(command):
            return run(command, **options)
        message = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left\n"
        return subprocess.CompletedProcess(command, 2, "", message)

    monkeypatch.setattr(subprocess, "run", full)
    with pytest.warns(Notice, match="No space left on device"):
        assert fetch_package(**wheel, cache_dir=tmp_path / "cache") == elsewhere / NAME
    assert list((tmp_path / "cache").iterdir()) == []


def texts(folder):
    return {p.name: p.read_text() for p in folder.glob("*.txt")}


def test_extract_is_all_or_nothing(tmp_path):
    archive, out = tmp_path / "a.zip", tmp_path / "out"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x/one.txt", "1")
        file.writestr("x/two.txt", "2")
    members = {"x/one.txt": "one.txt", "x/two.txt": "second.txt"}
    with pytest.raises(UserError, match=r"a\.zip: .*x/three\.txt"):
        extract_members(archive, {**members, "x/three.txt": "three.txt"}, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]

    assert extract_members(archive, members, out) == out
    assert texts(out) == {"one.txt": "1", "second.txt": "2"}

    (out / "one.txt").unlink()
    (out / "second.txt").write_text("stale")
    extract_members(archive, members, out)
    assert texts(out) == {"one.txt": "1", "second.txt": "2"}
    archive.unlink()
    assert extract_members(archive, members, out) == out  # complete: the archive is not opened


def test_extract_from_a_damaged_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"a\.zip: .*fetch it again"):
        extract_members(tmp_path / "a.zip", {"x": "x"}, tmp_path / "out")


MODELS = pytest.mark.parametrize(
    ("name", "members", "get", "expected"),
    [
        ("minilm", packaged_models.MINILM_MEMBERS, minilm_folder, "model.safetensors"),
        ("smollm2", packaged_models.SMOLLM2_MEMBERS, smollm2_file, packaged_models.SMOLLM2_GGUF),
    ],
)


def put_wheel(tmp_path, monkeypatch, name, members):
    """A stand-in wheel of the right name and, by the table, of the right hash."""
    package = packages.PACKAGES[name]
    with zipfile.ZipFile(tmp_path / package.filename, "w") as archive:
        for member in members:
            archive.writestr(member, member * 9)
    digest = sha256_of(tmp_path / package.filename)
    pinned = packages.Package(package.requirement, package.filename, digest, package.licence)
    monkeypatch.setitem(packages.PACKAGES, name, pinned)
    monkeypatch.setattr(subprocess, "run", no_pip)
    return tmp_path / package.filename


@MODELS
def test_a_model_comes_from_the_cached_wheel(tmp_path, monkeypatch, name, members, get, expected):
    wheel = put_wheel(tmp_path, monkeypatch, name, members)
    found = get(tmp_path)
    folder = found if found.is_dir() else found.parent
    assert set(unpacked(folder)) == {*members.values(), packages.CHECKSUMS}
    assert {expected, "LICENSE"} <= set(unpacked(folder)) and found in (folder, folder / expected)
    wheel.unlink()
    assert get(tmp_path) == found


def unpacked(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


DAMAGE = {
    "flip": lambda file: file.write_bytes(b"X" + file.read_bytes()[1:]),
    "cut": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "folder in its place": lambda file: (file.unlink(), file.mkdir()),
    "file in place of all": lambda file: (shutil.rmtree(file.parent), file.parent.touch()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_model_is_unpacked_again(tmp_path, monkeypatch, damage):
    put_wheel(tmp_path, monkeypatch, "minilm", packaged_models.MINILM_MEMBERS)
    folder = minilm_folder(tmp_path)
    good = unpacked(folder)
    DAMAGE[damage](folder / "model.safetensors")
    packaged_models._checked.clear()  # as another process starts
    assert minilm_folder(tmp_path) == folder and unpacked(folder) == good


@MODELS
def test_a_model_of_a_full_cache_is_unpacked_elsewhere(
    tmp_path, monkeypatch, elsewhere, name, members, get, expected
):
    put_wheel(tmp_path, monkeypatch, name, members)
    before = sorted(tmp_path.iterdir())
    write = packages.write_folder

    def write_folder(out, *rest):
        with full_disk(20) if out.parent == tmp_path else contextlib.nullcontext():
            return write(out, *rest)

    monkeypatch.setattr(packages, "write_folder", write_folder)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("fetched again"))
    monkeypatch.setattr(packaged_models, "fetch_package", lambda *_: next(tmp_path.glob("*.whl")))
    with pytest.warns(Notice) as notices:
        found = get(tmp_path)
    assert elsewhere in found.parents and expected in {p.name for p in elsewhere.rglob("*")}
    assert len(notices) == 1 and sorted(tmp_path.iterdir()) == before


def test_ten_processes_unpack_one_model(tmp_path, monkeypatch):
    """Threads stand for them; each has a damaged folder before it."""
    put_wheel(tmp_path, monkeypatch, "minilm", packaged_models.MINILM_MEMBERS)
    folder = minilm_folder(tmp_path)
    (folder / "config.json").write_text("damaged")
    packaged_models._checked.clear()
    archive = next(tmp_path.glob("*.whl"))
    with ThreadPoolExecutor(10) as pool:
        members = packaged_models.MINILM_MEMBERS
        made = pool.map(lambda _: extract_members(archive, members, folder), range(10))
        assert set(made) == {folder}
    assert packages.is_whole(folder, list(members.values()))
    assert sorted(tmp_path.iterdir()) == sorted([archive, folder])


@pytest.mark.slow
def test_the_real_minilm(tmp_path):
    """Fetched by pip into a fresh cache; its tokenizer knows the usual ids."""
    try:
        folder = minilm_folder(tmp_path)
    except UserError as error:
        if "could not fetch" not in str(error):
            raise
        pytest.skip(str(error))
    assert (folder / "model.safetensors").stat().st_size == 90_868_376
    assert load_tokenizer(folder)("hello world")["input_ids"] == [101, 7592, 2088, 102]
