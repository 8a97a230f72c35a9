"""File formats: each reader turns one file into a list of dictionaries."""

import csv
import gzip
import itertools
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.errors import UserError, first_line
from goat_jax.extras import import_extra
from goat_jax.files import user_path

Row = dict[str, Any]

LONGEST_CELL = 2**31 - 1
"""Most characters allowed in a CSV cell; Python's default of 131,072 is too few for documents."""


def text_lines(path: Path) -> Iterator[str]:
    """Yields the decoded lines of a UTF-8 file (gzip if it ends in .gz), with their line endings.

    Raises UserError naming file and line if the text is not UTF-8 or the gzip data is truncated.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "two.txt"
    >>> _ = path.write_bytes(b"one" + bytes([10]) + b"two")
    >>> [line.strip() for line in text_lines(path)]
    ['one', 'two']
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                # Spreadsheets write a byte-order mark at the start, which is not part of the text.
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 text ({error.reason}): re-encode it") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise UserError(
            f"{path}:{number + 1}: gzip data is truncated or damaged: fetch it again"
        ) from None


def read_jsonl(path: Path) -> list[Row]:
    """Reads one JSON object per line and skips blank lines.

    Raises UserError naming the line that is not a JSON object.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rows.jsonl"
    >>> _ = path.write_text('{"sentence": "fine", "label": 1}')
    >>> read_jsonl(path)
    [{'sentence': 'fine', 'label': 1}]
    """
    rows = []
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{number}: not valid JSON ({error.msg}, column {error.colno}):"
                " give one complete object per line"
            ) from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: {_unreadable(error)}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: a {type(row).__name__}, not a JSON object {{...}}")
        rows.append(row)
    return rows


def _unreadable(error: Exception) -> str:
    """Describes why Python cannot read valid JSON: too deeply nested, or too many digits."""
    deep = isinstance(error, RecursionError)
    return (
        "JSON nested too deep to be read" if deep else f"JSON cannot be read ({first_line(error)})"
    )


def read_json(path: Path) -> list[Row]:
    """Reads one JSON array of objects.

    Raises UserError naming the line of a syntax error, or the element that is not an object.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rows.json"
    >>> _ = path.write_text('[{"sentence": "fine"}, {"sentence": "poor"}]')
    >>> read_json(path)[1]
    {'sentence': 'poor'}
    """
    text = "".join(text_lines(path))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {_unreadable(error)}") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}: not an array of objects [{{...}}, ...]: give the rows alone")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: element {number} is a {type(row).__name__}, not an object")
    return rows


def _table(path: Path, records: Iterator[tuple[int, list[str]]]) -> list[Row]:
    """Builds rows from (line number, fields) records; the first record names the columns."""
    _, header = next(records, (0, []))
    if len(set(header)) != len(header):
        raise UserError(f"{path}:1: column names repeat ({', '.join(header)}): rename them")
    rows = []
    for number, fields in records:
        if len(fields) != len(header):
            raise UserError(
                f"{path}:{number}: {len(fields)} fields, but the header names {len(header)}: give "
                "every line as many; one that holds the separator goes in double quotes"
            )
        rows.append(dict(zip(header, fields, strict=True)))
    return rows


def read_csv(path: Path) -> list[Row]:
    """Reads comma-separated values with a header and RFC 4180 quoting; all values are strings.

    Semicolons or tabs separate them if the header has no comma: spreadsheets write such files where
    the comma is the decimal sign.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rows.csv"
    >>> _ = path.write_text('''sentence,label
    ... "well, fine",1''')
    >>> read_csv(path)
    [{'sentence': 'well, fine', 'label': '1'}]
    """
    csv.field_size_limit(LONGEST_CELL)
    lines, start = text_lines(path), []
    for line in lines:
        start.append(line)
        if line.strip():
            break
    mark = _delimiter("".join(start))
    reader = csv.reader(itertools.chain(start, lines), delimiter=mark, strict=True)
    try:
        return _table(path, ((reader.line_num, fields) for fields in reader if fields))
    except csv.Error as error:
        raise UserError(
            f"{path}:{reader.line_num}: not valid CSV ({error}): close each double quote, and "
            "write those inside a field twice"
        ) from None


def _delimiter(header: str) -> str:
    """Returns the first of comma, semicolon and tab that separates the names in a CSV header.

    >>> _delimiter("Review; in full,Stars"), _delimiter('"Review, in full";Stars')
    (',', ';')
    """
    names = re.sub(r'"[^"]*"', "", header)
    return next((mark for mark in ",;\t" if mark in names), ",")


def read_tsv(path: Path) -> list[Row]:
    r"""Reads tab-separated values with a header; quotes are plain characters, as in GLUE's files.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rows.tsv"
    >>> _ = path.write_text("sentence\tlabel\nsay \"fine\"\t1\n")
    >>> read_tsv(path)
    [{'sentence': 'say "fine"', 'label': '1'}]
    """
    lines = (line.rstrip("\r\n") for line in text_lines(path))
    return _table(path, ((n, line.split("\t")) for n, line in enumerate(lines, start=1) if line))


def read_txt(path: Path) -> list[Row]:
    """Reads plain text: each line that is not blank is a row, its column is `text`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "lines.txt"
    >>> _ = path.write_text("a warm, sharp film")
    >>> read_txt(path)
    [{'text': 'a warm, sharp film'}]
    """
    return [{"text": line.rstrip("\r\n")} for line in text_lines(path) if line.strip()]


def read_npz(path: Path) -> list[Row]:
    """Reads an archive of arrays of equal length N as columns; row i has element i of each.

    Raises UserError for an unreadable archive; pickled arrays are rejected.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rows.npz"
    >>> np.savez(path, sentence=["fine", "poor"], label=[1, 0])
    >>> read_npz(path)[1]
    {'sentence': 'poor', 'label': 0}
    """
    try:
        # Opened here because numpy leaves the file open when it cannot read the archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, TypeError) as error:
        raise UserError(
            f"{path}: not a readable .npz of plain arrays ({first_line(error)})"
        ) from None
    shapes = {name: column.shape for name, column in columns.items()}
    if any(shape == () for shape in shapes.values()) or len({s[0] for s in shapes.values()}) > 1:
        raise UserError(f"{path}: columns need one common length, got shapes {shapes}")
    lists = [c.tolist() if c.ndim == 1 else list(c) for c in columns.values()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]


def read_parquet(path: Path) -> list[Row]:
    """Reads a Parquet file with pyarrow, an optional package.

    Raises UserError if pyarrow is missing or the file is not readable.

    >>> import pyarrow, pyarrow.parquet, tempfile
    >>> path = Path(tempfile.mkdtemp()) / "rows.parquet"
    >>> pyarrow.parquet.write_table(pyarrow.table({"sentence": ["fine"], "label": [1]}), path)
    >>> read_parquet(path)
    [{'sentence': 'fine', 'label': 1}]
    """
    pyarrow = import_extra("pyarrow", f"{path}: reading Parquet")
    parquet = import_extra("pyarrow.parquet", f"{path}: reading Parquet")
    try:
        return parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)})") from None


FORMATS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".json": read_json,
    ".json.gz": read_json,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".tsv": read_tsv,
    ".tsv.gz": read_tsv,
    ".txt": read_txt,
    ".txt.gz": read_txt,
    ".npz": read_npz,
    ".parquet": read_parquet,
}


def find_split(folders: Sequence[Path], split: str) -> str:
    """Returns the path of a split's file, in any format, from the first folder that has one.

    Raises UserError if no folder has one.
    """
    for folder in folders:
        for suffix in FORMATS:
            if (path := folder / f"{split}{suffix}").is_file():
                return str(path.resolve())
    known = ", ".join(FORMATS)
    raise UserError(f"{folders[0]} has no file {split} with one of the suffixes {known}")


def split_files(folder: str | Path, *splits: str) -> list[str]:
    """Returns the paths of the given splits' files in one folder."""
    return [find_split([user_path(folder)], split) for split in splits]
