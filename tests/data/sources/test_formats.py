"""File readers: what comes out, and that every damaged file names its place in one line."""

import gzip
import importlib

import numpy as np
import pytest

from goat_jax.data.sources.read import read_rows
from goat_jax.errors import UserError

ROWS = [{"sentence": "a, b", "label": 1}, {"sentence": "é", "label": 0}]
JSONL = '{"sentence": "a, b", "label": 1}\n\n{"sentence": "é", "label": 0}\n'


def test_jsonl_plain_and_gzip(tmp_path):
    (tmp_path / "a.jsonl").write_text(JSONL, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(JSONL.encode()))
    assert read_rows(tmp_path / "a.jsonl") == ROWS
    assert read_rows(str(tmp_path / "a.jsonl.gz")) == ROWS


def test_csv_quotes_and_byte_order_mark(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" + b'sentence,label\r\n"a, ""b""\nc",1\r\n')
    assert read_rows(path) == [{"sentence": 'a, "b"\nc', "label": "1"}]


@pytest.mark.parametrize("mark", [";", "\t"], ids=["semicolons", "tabs"])
def test_the_header_of_a_csv_decides_what_separates_its_columns(tmp_path, mark):
    path = tmp_path / "a.csv"
    rows = ['"sentence, in full"|label', "", '"a, b|c"|1', "3,5, so to say|0"]
    path.write_text("\n".join(["", *rows]).replace("|", mark), encoding="utf-8")
    assert [list(row.values()) for row in read_rows(path)] == [
        [f"a, b{mark}c", "1"],
        ["3,5, so to say", "0"],
    ]


def test_tsv_keeps_quotes(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('sentence\tlabel\nhe said "no\t1\n', encoding="utf-8")
    assert read_rows(path) == [{"sentence": 'he said "no', "label": "1"}]


def test_each_line_of_plain_text_is_a_row(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa, b\r\n\r\n c\n")
    assert read_rows(tmp_path / "a.txt") == [{"text": "a, b"}, {"text": " c"}]


def test_npz_columns(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, image=np.arange(8).reshape(2, 2, 2), label=np.array([3, 4]))
    rows = read_rows(path)
    assert [row["label"] for row in rows] == [3, 4] and type(rows[0]["label"]) is int
    np.testing.assert_array_equal(rows[1]["image"], [[4, 5], [6, 7]])


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.parquet") == ROWS
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:40])
    with pytest.raises(UserError, match=r"cut\.parquet: not a readable Parquet file"):
        read_rows(tmp_path / "cut.parquet")


BROKEN = {
    "cut.jsonl": (b'{"a": 1}\n{"a": 2', r"cut\.jsonl:2: not valid JSON .* complete object"),
    "list.jsonl": (b'{"a": 1}\n[1]\n', r"list\.jsonl:2: a list, not a JSON object"),
    "latin.jsonl": (b'{"a": 1}\n{"a": "\xe9"}\n', r"latin\.jsonl:2: not UTF-8"),
    "bad.jsonl.gz": (gzip.compress(b'{"a": 1}\n' * 9000)[:60], r"bad\.jsonl\.gz:\d+: gzip data"),
    "not.jsonl.gz": (b"plain", r"not\.jsonl\.gz:1: gzip data"),
    "short.csv": (b"a,b\n1,2\n3\n", r"short\.csv:3: 1 fields, but the header names 2"),
    "open.csv": (b'a,b\n1,"2\n', r"open\.csv:2: not valid CSV"),
    "twice.csv": (b"a,a\n1,2\n", r"twice\.csv:1: column names repeat"),
    "long.tsv": (b"a\tb\n1\t2\t3\n", r"long\.tsv:2: 3 fields"),
    "cut.npz": (b"PK\x03\x04....", r"cut\.npz: not a readable \.npz"),
    "empty.jsonl": (b"\n", r"empty\.jsonl: the file has no rows"),
    "empty.csv": (b"", r"empty\.csv: the file has no rows"),
    "rows.xlsx": (b"[]", r"rows\.xlsx: unknown file type: use one of \.jsonl, "),
    "one.json": (b"{}", r"one\.json: not an array of objects"),
    "mixed.json": (b"[{}, 3]", r"mixed\.json: element 2 is a int, not an object"),
    "cut.json": (b"[{", r"cut\.json:1: not valid JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_with_its_place(tmp_path, name):
    data, message = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_npz_refuses_pickles_and_ragged_columns(tmp_path):
    np.savez(tmp_path / "pickle.npz", a=np.array([{}, {}], dtype=object))
    with pytest.raises(UserError, match=r"pickle\.npz: not a readable"):
        read_rows(tmp_path / "pickle.npz")
    np.savez(tmp_path / "ragged.npz", a=np.zeros(2), b=np.zeros(3))
    with pytest.raises(UserError, match="one common length"):
        read_rows(tmp_path / "ragged.npz")
    np.savez(tmp_path / "scalar.npz", a=np.float32(1))
    with pytest.raises(UserError, match="one common length"):
        read_rows(tmp_path / "scalar.npz")


def test_missing_and_unreadable_files(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no such file"):
        read_rows(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_text("a\n1\n")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(UserError, match=r"a\.csv: cannot be read \(Permission denied\)"):
        read_rows(tmp_path / "a.csv")
