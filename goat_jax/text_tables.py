"""Tables as plain text, Markdown or HTML, and short forms of numbers for them."""

import html
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from goat_jax.errors import UserError


def render_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Any]],
    align: str | None = None,
    *,
    markdown: bool = False,
) -> str:
    """Returns a table with one line per row and no newline at the end.

    Args:
        headers: the header of each column.
        rows: the cells; floats get 4 significant digits, None a dash, anything else its `str`.
        align: one letter per column, `l` or `r`; by default columns of numbers are right-aligned.
        markdown: whether to return a GitHub table instead of plain text.

    Raises:
        UserError: a row or `align` whose length does not match the headers, or another letter.

    >>> print(render_table(["method", "trained"], [["lora", 1024], ["goat", 96]]))
    method  trained
    ------  -------
    lora       1024
    goat         96
    >>> print(render_table(["method", "score"], [["goat", 0.81249]], markdown=True))
    | method |  score |
    | :----- | -----: |
    | goat   | 0.8125 |
    """
    for row in rows:
        if len(row) != len(headers):
            raise UserError(
                f"row {list(row)} has {len(row)} cells: {len(headers)} headers need one each"
            )
    align = _default_align(len(headers), rows) if align is None else align
    if len(align) != len(headers) or set(align) - set("lr"):
        raise UserError(
            f"align {align!r}: give one letter l or r for each of {len(headers)} columns"
        )
    cells = [[_cell(value, markdown) for value in row] for row in [headers, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    if markdown:
        widths = [max(width, 3) for width in widths]
        rules = [_markdown_rule(width, side) for width, side in zip(widths, align, strict=True)]
    else:
        rules = ["-" * width for width in widths]
    lines = [cells[0], rules, *cells[1:]]
    return "\n".join(_line(line, widths, align, markdown) for line in lines)


def html_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a table in HTML, with the cells of `render_table`.

    >>> html_table(["text", "score"], [["1 < 2", 0.81249]])
    '<table><tr><th>text</th><th>score</th></tr><tr><td>1 &lt; 2</td><td>0.8125</td></tr></table>'
    """
    lines = [("th", headers), *(("td", row) for row in rows)]
    return f"<table>{''.join(_html_row(*line) for line in lines)}</table>"


def _html_row(tag: str, cells: Sequence[Any]) -> str:
    texts = (html.escape(_cell(cell, markdown=False)) for cell in cells)
    return f"<tr>{''.join(f'<{tag}>{text}</{tag}>' for text in texts)}</tr>"


def human_count(number: float) -> str:
    """Returns a number with three significant digits and k, M, B (1e9) or T.

    >>> [human_count(n) for n in (0, 980, 999_999, 22_713_216, 7e9)]
    ['0', '980', '1M', '22.7M', '7B']
    """
    return _scaled(number, 1000, ("", "k", "M", "B", "T"))


def human_bytes(number: float) -> str:
    """Returns a size with three significant digits and a binary unit (1 KiB = 1024 B).

    >>> [human_bytes(n) for n in (0, 1023, 1024, 150_994_944, 3 * 2**39)]
    ['0 B', '1023 B', '1 KiB', '144 MiB', '1.5 TiB']
    """
    return _scaled(number, 1024, (" B", " KiB", " MiB", " GiB", " TiB", " PiB"))


def _scaled(number: float, base: int, units: Sequence[str]) -> str:
    size, unit = abs(float(number)), 0
    # A number that would round up to the base gets the next unit: 1M, never 1000k.
    while size >= base - 0.5 and unit < len(units) - 1:
        size, unit = size / base, unit + 1
    digits = f"{size:.0f}" if size >= 99.95 else f"{size:.3g}"
    return f"{'-' if number < 0 else ''}{digits}{units[unit]}"


def _default_align(columns: int, rows: Sequence[Sequence[Any]]) -> str:
    def is_numeric(column: int) -> bool:
        cells = [row[column] for row in rows if row[column] is not None]
        return bool(cells) and all(isinstance(cell, Real) for cell in cells)

    return "".join("r" if is_numeric(column) else "l" for column in range(columns))


def _cell(value: object, markdown: bool) -> str:
    if value is None:
        return "-"
    text = (
        f"{value:.4g}"
        if isinstance(value, Real) and not isinstance(value, Integral)
        else str(value)
    )
    text = " ".join(text.split("\n"))
    return text.replace("|", "\\|") if markdown else text


def _markdown_rule(width: int, side: str) -> str:
    return ":" + "-" * (width - 1) if side == "l" else "-" * (width - 1) + ":"


def _line(cells: Sequence[str], widths: Sequence[int], align: str, markdown: bool) -> str:
    padded = [
        cell.ljust(width) if side == "l" else cell.rjust(width)
        for cell, width, side in zip(cells, widths, align, strict=True)
    ]
    return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()
