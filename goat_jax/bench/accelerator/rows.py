"""Rows of the suite's table, as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from goat_jax.text_tables import human_count, render_table


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the suite.

    Attributes:
        model: the decoder whose sizes are used, as for `models.known_sizes.model_config`.
        rank: the total rank of the adapters.
        turns: the number of timed calls of each program.
        tiny: whether every size is tiny, so that the suite runs on a CPU within a minute.
    """

    model: str = "llama-3-8b"
    rank: int = 32
    turns: int = 5
    tiny: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """Measurement of one program.

    Attributes:
        part: the part of the suite.
        work: the work that the program does.
        contender: the method, or the way of attention.
        seconds: the median seconds of a call; None in the row of a part that failed.
        ratio: the median over the turns of the seconds divided by the first contender's.
        rate: the number of `unit` per second.
        unit: the unit of the rate, such as "tokens".
        mfu: the model FLOPs per second over the device's peak.
        peak: the most bytes of the device in use during the first call: the program's arguments,
            and what it took besides.
        planned: the bytes of arguments and temporaries that the compiler planned.
        error: the largest error relative to the largest value of float32's result.
        remark: anything else in one line, such as the reason of a failure.
    """

    part: str
    work: str = ""
    contender: str = ""
    seconds: float | None = None
    ratio: float | None = None
    rate: float | None = None
    unit: str = ""
    mfu: float | None = None
    peak: int | None = None
    planned: int | None = None
    error: float | None = None
    remark: str = ""

    @property
    def failed(self) -> bool:
        """True for the row of a part that failed."""
        return self.seconds is None


HEADERS = [
    "part",
    "work",
    "contender",
    "ms",
    "ratio",
    "rate",
    "MFU",
    "peak GiB",
    "planned GiB",
    "error",
    "remark",
]


def markdown(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table.

    >>> print(markdown([Row("train", "2 x 4", "lora", 0.5, 1.0, 16.0, "tokens", 0.25)]))
    | part  | work  | contender |    ms | ratio |        rate | MFU | peak GiB | planned GiB | \
error | remark |
    | :---- | :---- | :-------- | ----: | ----: | ----------: | --: | -------: | ----------: | \
----: | :----- |
    | train | 2 x 4 | lora      | 500.0 | 1.000 | 16 tokens/s | 25% |        - |           - | \
    - |        |
    """
    return render_table(HEADERS, [_cells(row) for row in rows], "lllrrrrrrrl", markdown=True)


def _cells(row: Row) -> list[str | None]:
    def text(value: float | None, form: str) -> str | None:
        return None if value is None else format(value, form)

    sizes = (None if size is None else size / 2**30 for size in (row.peak, row.planned))
    return [
        row.part,
        row.work,
        row.contender,
        None if row.seconds is None else f"{1e3 * row.seconds:.1f}",
        text(row.ratio, ".3f"),
        None if row.rate is None else f"{human_count(row.rate)} {row.unit}/s",
        text(row.mfu, ".0%"),
        *(text(size, ".3g") for size in sizes),
        text(row.error, ".1e"),
        row.remark,
    ]
