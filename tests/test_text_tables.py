"""Tables line up, and short numbers are right at the edges of their units."""

import numpy as np
import pytest

from goat_jax.errors import UserError
from goat_jax.text_tables import human_bytes, human_count, render_table

ROWS = [["goat", 96, 0.81249], ["lora|x", 1024, None]]


def test_plain_text():
    assert render_table(["method", "rank", "score"], ROWS).splitlines() == [
        "method  rank   score",
        "------  ----  ------",
        "goat      96  0.8125",
        "lora|x  1024       -",
    ]


def test_markdown_has_one_cell_a_column_even_with_bars_and_newlines_in_it():
    lines = render_table(["a", "b"], [["x|y", "two\nlines"]], markdown=True).splitlines()
    assert lines == ["| a    | b         |", "| :--- | :-------- |", "| x\\|y | two lines |"]


def test_align_is_the_callers_to_choose():
    assert render_table(["name", "n"], [["a", 10]], align="rl").splitlines() == [
        "name  n",
        "----  --",
        "   a  10",
    ]


def test_numpy_numbers_are_numbers():
    assert render_table(["the score"], [[np.float32(1 / 3)]]).splitlines()[-1] == "   0.3333"


def test_no_rows():
    assert render_table(["a", "bc"], []) == "a  bc\n-  --"


def test_what_does_not_fit_is_named():
    with pytest.raises(UserError, match="has 1 cells: 2 headers"):
        render_table(["a", "b"], [["x"]])
    with pytest.raises(UserError, match="align 'lx'"):
        render_table(["a", "b"], [], align="lx")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *[(0, "0"), (999, "999"), (1000, "1k"), (1234, "1.23k"), (12_345, "12.3k")],
        *[(99_950, "100k"), (999_499, "999k"), (999_500, "1M"), (22_713_216, "22.7M")],
        *[(8.03e9, "8.03B"), (-1500, "-1.5k"), (2.5e12, "2.5T"), (1e16, "10000T"), (0.25, "0.25")],
    ],
)
def test_human_count(number, text):
    assert human_count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *[(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1023.6 * 1024, "1 MiB")],
        (16 * 2**30, "16 GiB"),
    ],
)
def test_human_bytes(number, text):
    assert human_bytes(number) == text
