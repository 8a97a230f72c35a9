"""Writes predictions to a file row by row, and continues a file that was left unfinished.

While a file is written, a stamp lies beside it: digests of everything that the rows depend on. It
is removed with the last row. A file with an equal stamp is continued after its last whole row.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.data.sources.formats import Row, read_jsonl
from goat_jax.errors import UserError, first_line
from goat_jax.extras import import_extra
from goat_jax.files import read_json, whole_file, write_whole
from goat_jax.inference.predictions import Predictions, result_columns

STAMP = ".unfinished"
"""Ending of the stamp's name, after that of the file."""


@dataclasses.dataclass(frozen=True)
class TextFormat:
    """A format whose rows are added at the end of a file.

    Attributes:
        head: column names -> the text before the first row.
        line: the cells of a row by their columns -> its text, with a newline at the end.
        quote: the character that has an even number in every whole row; b"" if newlines end rows
            wherever they are.
    """

    head: Callable[[Sequence[str]], str]
    line: Callable[[Mapping[str, Any]], str]
    quote: bytes


def _csv_line(cells: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _csv_cell(value: object) -> object:
    return value if value is None or isinstance(value, str) else json.dumps(value, default=str)


CSV = TextFormat(_csv_line, lambda row: _csv_line([_csv_cell(v) for v in row.values()]), b'"')
JSONL = TextFormat(
    lambda columns: "",
    lambda row: json.dumps(row, ensure_ascii=False, default=str) + "\n",
    b"",
)

PARQUET = ".parquet"
STREAMED = {".csv": CSV, ".jsonl": JSONL}
"""Ending of a file's name -> its format. Parquet is made of a JSONL file at the end."""


def check_out(out: Path) -> None:
    """Raises `UserError` if predictions cannot go to a file of this name."""
    if out.suffix == PARQUET:
        import_extra("pyarrow.parquet", f"{out}: writing Parquet")
    elif out.suffix not in STREAMED:
        known = ", ".join((*STREAMED, PARQUET))
        raise UserError(f"{out}: unknown file type: end its name in one of {known}")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out.parent} is not a folder: make it first, or choose another --out")
    if out.exists() and not _stamp(out).is_file():
        raise UserError(f"{out} is there already: choose another --out, or remove it first")


def write_predictions(
    out: Path,
    rows: Sequence[Row],
    classes: Sequence[str],
    predict: Callable[[range], Predictions],
    chunk: int,
    identity: Mapping[str, str],
    progress: Callable[[int], None] = lambda done: None,
    announce: Callable[[int], object] = lambda begun: None,
) -> int:
    """Writes rows with their predictions in order, and continues an unfinished file.

    Args:
        out: the file; the ending of its name gives the format.
        rows: the rows; those of `left_out_columns` are not written.
        classes: the names of the classes; empty without classes.
        predict: numbers of rows -> their predictions.
        chunk: the number of rows that are predicted together, then written.
        identity: what the predictions depend on -> its digest, for example "input".
        progress: a function that is called with the number of rows in the file.
        announce: a function that is called once, before the first row is predicted, with the number
            of rows that the file has.

    Returns:
        The number of rows that the file had before.

    Raises:
        UserError: the file is there already, was begun with other rows or another checkpoint, or
            cannot be written.
    """
    check_out(out)
    stream = out.with_name(f"{out.name}.jsonl") if out.suffix == PARQUET else out
    form = STREAMED[stream.suffix]
    left_out = left_out_columns(rows)
    columns = [name for name in _columns(rows) if name not in left_out]
    results = result_columns(classes, columns)
    try:
        _check_stamp(out, identity)
        text = form.head([*columns, *results]).encode()
        begun = _whole_rows(stream, form, head=bool(text))
        with stream.open("ab") as file:
            if file.tell() == 0:
                file.write(text)
            progress(begun)
            announce(begun)
            for numbers in chunks(begun, len(rows), chunk):
                batch_results = predict(numbers).results()
                for number, result in zip(numbers, batch_results, strict=True):
                    if number >= begun:
                        cells = {name: _as_list(rows[number].get(name)) for name in columns}
                        cells |= zip(results, result, strict=True)
                        file.write(form.line(cells).encode())
                file.flush()
                progress(numbers.stop)
        if stream != out:
            _make_parquet(stream, out)
        _stamp(out).unlink()
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or first_line(error)}") from None
    return begun


def chunks(begun: int, count: int, chunk: int) -> Iterator[range]:
    """Yields the numbers of the rows that are predicted together.

    Chunks begin where they did before an interruption, so that each row has the same batch.

    >>> list(chunks(5, 9, 4))
    [range(4, 8), range(8, 9)]
    """
    for start in range(begun // chunk * chunk, count, chunk):
        yield range(start, min(start + chunk, count))


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def left_out_columns(rows: Sequence[Row]) -> list[str]:
    """Returns the columns that a file of predictions leaves out: images, and other bytes.

    >>> left_out_columns([{"words": np.array(["a", "film"]), "photo": np.zeros((8, 8)), "id": 1}])
    ['photo']
    """
    return [name for name in _columns(rows) if any(_is_image(row.get(name)) for row in rows)]


def _is_image(value: object) -> bool:
    if isinstance(value, Mapping):  # a stored image with its path
        return any(map(_is_image, value.values()))
    return isinstance(value, bytes) or (isinstance(value, np.ndarray) and value.ndim > 1)


def _as_list(value: object) -> object:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _stamp(out: Path) -> Path:
    return out.with_name(out.name + STAMP)


def _check_stamp(out: Path, identity: Mapping[str, str]) -> None:
    """Writes the stamp of a new file; compares that of an unfinished one."""
    stamp = _stamp(out)
    if not stamp.is_file():
        write_whole(stamp, json.dumps(dict(identity), indent=1) + "\n")
        return
    before = read_json(stamp)
    known = before if isinstance(before, dict) else {}
    other = [name for name, value in identity.items() if known.get(name) != value]
    if other:
        raise UserError(
            f"{out} was begun with another {other[0]}: choose another --out, or remove it and "
            f"{stamp.name}"
        )


def _whole_rows(path: Path, form: TextFormat, head: bool) -> int:
    """Returns the number of whole rows of a file, after cutting off an incomplete one."""
    if not path.is_file():
        return 0
    count, length = 0, 0
    with path.open("rb+") as file:
        for end in _ends(file, form.quote):
            count, length = count + 1, end
        file.truncate(length)
    return max(count - head, 0)


def _ends(lines: Iterator[bytes], quote: bytes) -> Iterator[int]:
    """Yields the position after each whole row, or head, of a file."""
    place, quotes = 0, 0
    for line in lines:
        place += len(line)
        quotes += line.count(quote) if quote else 0
        if quotes % 2 == 0 and line.endswith(b"\n"):
            yield place


def _make_parquet(stream: Path, out: Path) -> None:
    pyarrow = import_extra("pyarrow", f"{out}: writing Parquet")
    parquet = import_extra("pyarrow.parquet", f"{out}: writing Parquet")
    try:
        table = pyarrow.Table.from_pylist(read_jsonl(stream))
        with whole_file(out) as aside:
            parquet.write_table(table, aside)
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{out}: a column holds values of several kinds ({first_line(error)}): the rows are in "
            f"{stream}"
        ) from None
    stream.unlink()


def digest_of_rows(rows: Sequence[Row]) -> str:
    """Returns the SHA-256 of rows, in hexadecimal digits.

    >>> digest_of_rows([{"text": "fine"}])[:8] == digest_of_rows([{"text": "weak"}])[:8]
    False
    """
    total = hashlib.sha256()
    for row in rows:
        total.update(json.dumps(dict(row), default=_hashed).encode() + b"\n")
    return total.hexdigest()


@functools.singledispatch
def _hashed(value: object) -> str:
    return str(value)


@_hashed.register
def _(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


@_hashed.register
def _(value: np.ndarray) -> str:
    return f"{value.dtype}{value.shape}" + _hashed(value.tobytes())


def digest_of_arrays(arrays: Sequence[Any]) -> str:
    """Returns the SHA-256 of arrays with their shapes, in hexadecimal digits.

    >>> digest_of_arrays([np.zeros(2)]) == digest_of_arrays([np.zeros((1, 2))])
    False
    """
    total = hashlib.sha256()
    for array in arrays:
        total.update(_hashed(np.asarray(array)).encode())
    return total.hexdigest()
