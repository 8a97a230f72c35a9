"""Whole writes, checked JSON and the rule for cache folders."""

import os
from pathlib import Path

import pytest

from goat_jax.errors import UserError
from goat_jax.files import cache_folder, parse_json, read_json, sha256_of, user_path, write_whole


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_whole(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["run.json"]


def test_a_written_file_has_the_rights_of_any_other(tmp_path):
    write_whole(tmp_path / "a", b"1")
    (tmp_path / "b").write_bytes(b"1")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
    assert sha256_of(tmp_path / "a") == sha256_of(tmp_path / "b")


def test_a_long_name_can_be_written(tmp_path):
    write_whole(tmp_path / ("x" * 250), "whole")
    assert (tmp_path / ("x" * 250)).read_text() == "whole"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b"[NaN]", "the number NaN"),
        (b"[-Infinity]", "the number -Infinity"),
        (b"[1e999]", "the number 1e999"),
        (b"1" * 5000, "not valid JSON"),
    ],
    ids=["encoding", "cut", "empty", "deep", "nan", "infinity", "overflow", "digits"],
)
def test_json_that_cannot_be_used_is_one_line(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(UserError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert parse_json(b"\xef\xbb\xbf[1.5]", "here") == [1.5]


def test_the_cache_folder_follows_xdg_unless_it_is_relative(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder("svd") == Path("/somewhere/goat_jax/svd")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/goat_jax")


def test_a_home_folder_of_nobody_is_one_line(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/runs") == Path("/home/me/runs")
    with pytest.raises(UserError, match="~nosuchuser/x: no such user"):
        user_path("~nosuchuser/x")
