"""Numbers and words that people give."""

import numpy as np
import pytest

from goat_jax.errors import UserError
from goat_jax.validation.checks import check_choice, check_number


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), True, "1", None, [1]])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(UserError, match=r"learning_rate .* is not valid: give a number"):
        check_number("learning_rate", value)


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (0, {"above": 0}),
        (-1, {"at_least": 0}),
        (1, {"below": 1}),
        (1.5, {"at_most": 1}),
        (1.0, {"whole": True}),
        (10**400, {"at_least": 1, "whole": True}),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused(value, limits):
    with pytest.raises(UserError, match="is not valid"):
        check_number("x", value, **limits)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(1)])
def test_numbers_in_range_pass(value):
    check_number("x", value, above=0, at_most=1)


def test_none_passes_only_where_it_may():
    check_number("patience", None, at_least=1, whole=True, optional=True)
    check_number("x", np.int64(3), whole=True)


def test_the_error_names_the_range():
    with pytest.raises(UserError, match=r"x 0 is not valid: give a whole number of at least 1$"):
        check_number("x", 0, at_least=1, whole=True)
    with pytest.raises(UserError, match=r"x 0 is not valid: give a number above 0 and below 1$"):
        check_number("x", 0, above=0, below=1)


@pytest.mark.parametrize("value", ["nosuch", None, 3, float("nan")], ids=str)
def test_unknown_words_are_refused_with_the_known_ones(value):
    with pytest.raises(UserError, match=r"remat .* is not known.*: give one of none, layer"):
        check_choice("remat", value, ["none", "layer"])
