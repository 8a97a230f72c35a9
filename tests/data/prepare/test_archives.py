"""Archives from elsewhere: read, or refused in one line; nothing leads out of them."""

import io
import struct
import tarfile
import zipfile
from typing import Literal

import pytest

from goat_jax.data.prepare import archives
from goat_jax.data.prepare.archives import read_members, unpack
from goat_jax.errors import UserError


def everything(name):
    return True


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def tarred(path, members, mode: Literal["w", "w:gz", "w:bz2", "w:xz"] = "w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            if isinstance(data, tarfile.TarInfo):
                data.name = name
                archive.addfile(data)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def special(kind, target=""):
    member = tarfile.TarInfo()
    member.type, member.linkname = kind, target
    return member


MAKE = {"zip": zipped, "tar": tarred}
refused = pytest.mark.parametrize("kind", MAKE)


@refused
def test_what_macos_adds_is_left_out(tmp_path, kind):
    names = ["a/0.png", "a/._0.png", "__MACOSX/a/._0.png", "__MACOSX/a/1.png"]
    path = MAKE[kind](tmp_path / "a", [(name, b"x") for name in names])
    assert list(read_members(path, everything)) == [("a/0.png", b"x")]


@refused
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "./../x"])
def test_names_that_lead_out_are_refused(tmp_path, kind, name):
    path = MAKE[kind](tmp_path / "a", [(name, b"x")])
    with pytest.raises(UserError, match="leads out of the target folder"):
        unpack(path, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} <= {"a", "out"}


@refused
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_doubled_names_are_refused(tmp_path, kind):
    path = MAKE[kind](tmp_path / "a", [("b/x", b"1"), ("./b//x", b"2")])
    with pytest.raises(UserError, match="contains 'b/x' twice"):
        list(read_members(path, everything))


@refused
def test_a_name_that_is_file_and_folder_is_refused(tmp_path, kind):
    path = MAKE[kind](tmp_path / "a", [("b", b"1"), ("b/x", b"2")])
    with pytest.raises(UserError, match="'b/x' is both a file and a folder"):
        unpack(path, tmp_path / "out")


@refused
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(archives, "TOTAL_BYTES", 1000)
    path = MAKE[kind](tmp_path / "a", [(f"{i}", bytes(500_000)) for i in range(4)])
    with pytest.raises(UserError, match="more than is plausible"):
        list(read_members(path, lambda name: False))
    monkeypatch.setattr(archives, "TOTAL_BYTES", 10**7)
    assert len(list(read_members(path, everything))) == 4
    monkeypatch.setattr(archives, "MEMBER_BYTES", 400_000)
    with pytest.raises(UserError, match="'0' unpacks to 500,000 bytes"):
        list(read_members(path, everything))


def test_links_and_devices_are_no_files(tmp_path):
    members = [
        ("a", b"1"),
        ("link", special(tarfile.SYMTYPE, "/etc/passwd")),
        ("hard", special(tarfile.LNKTYPE, "a")),
        ("device", special(tarfile.CHRTYPE)),
        ("pipe", special(tarfile.FIFOTYPE)),
        ("link/x", b"2"),
    ]
    out = unpack(tarred(tmp_path / "a.tar", members, "w"), tmp_path / "out")
    assert {p.relative_to(out).as_posix() for p in out.rglob("*")} == {"a", "link", "link/x"}


def test_an_encrypted_zip_is_one_line(tmp_path):
    path = zipped(tmp_path / "a.zip", [("x", b"secret")])
    data = bytearray(path.read_bytes())
    for start, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(start) + flags] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="'x' is encrypted: unpack it first") as caught:
        list(read_members(path, everything))
    assert "\n" not in str(caught.value)


def test_an_unknown_compression_is_one_line(tmp_path):
    path = zipped(tmp_path / "a.zip", [("x", b"1")])
    data = bytearray(path.read_bytes())
    for start, place in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        data[data.index(start) + place : data.index(start) + place + 2] = struct.pack("<H", 77)
    path.write_bytes(data)
    with pytest.raises(UserError, match="not a readable archive"):
        list(read_members(path, everything))


@pytest.mark.parametrize("ending", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_tar_is_one_line(tmp_path, ending, damage):
    # Bytes that do not pack, so that the cut is inside of the member.
    body = b"".join(struct.pack("<Q", i * 0x9E3779B97F4A7C15 % 2**64) for i in range(4000))
    path = tarred(tmp_path / "a", [("x", body)], ending)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 255
    path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with pytest.raises(UserError, match="not a readable archive"):
        list(read_members(path, everything))
