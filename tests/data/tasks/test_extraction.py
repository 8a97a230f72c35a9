"""Extraction of numbers and labels from answers, in the forms that models give them."""

from fractions import Fraction

import pytest

from goat_jax.data.tasks.evaluation import EVALS, Question
from goat_jax.data.tasks.formats.final_number import extract_number, numbers_in, strict_number
from goat_jax.data.tasks.formats.multiple_choice import extract_label, read_choices
from goat_jax.errors import UserError
from goat_jax.evaluation.generate_and_loglikelihood import score_answers
from goat_jax.evaluation.sampler import Answer

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", 18),
        ("9 * 2 = <<9*2=18>>18\n#### 18", 18),
        ("so 5.\n#### 1,234", 1234),
        ("#### 1,234,567", 1234567),
        ("#### -7", -7),
        (f"#### {MINUS}7", -7),
        ("#### $1,200.50 dollars.\n\nQuestion: next 5 eggs?", Fraction("1200.5")),
        ("#### 18\nThe answer is: 20", 18),
        ("#### 12.0", 12),
        ("#### 70,000 a year for 3 years", 70000),
        (r"thus \boxed{42}. In 3 days.", 42),
        (r"\boxed{\frac{3}{4}} of 10", Fraction(3, 4)),
        (r"\boxed{1{,}234}", 1234),
        (r"\boxed{\text{18 eggs}}", 18),
        (r"\boxed{5", 5),
        ("The answer is: 18", 18),
        ("The answer is 18. It took 3 days.", 18),
        ("The answer is 18.50. It took 3 days.", Fraction("18.5")),
        ("The answer is: 3 + 4 = 7", 7),
        ("The answer is 25%.", 25),
        (r"The answer is therefore $-5$.", -5),
        ("the answer is **18**", 18),
        ("First 4, then 7 eggs are left", 7),
        ("It costs $2.50.", Fraction("2.5")),
        ("It costs $ 2.50 each", Fraction("2.5")),
        ("He owes -$5", -5),
        ("He owes $-5", -5),
        ("pages 10-5", 5),
        ("x = -5", -5),
        ("3 - 5 = -2", -2),
        ("3/4 cup", Fraction(3, 4)),
        ("1 1/2 cups", Fraction(3, 2)),
        (".5 of it", Fraction(1, 2)),
        ("about 1,2,3", 3),
        ("He has 5.", 5),
        ("5/0", None),
        ("none at all", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer(text, number):
    assert extract_number(text) == number


def test_numbers_of_a_text_in_order():
    text = "Of 1,000 people 3/4 (75%) paid $2.50, -3 left"
    assert numbers_in(text) == [1000, Fraction(3, 4), 75, Fraction(5, 2), -3]


ABCD = ("answer1", "answer2", "answer3", "answer4")


@pytest.mark.parametrize(
    ("text", "labels", "label"),
    [
        ("the correct answer is answer3", ABCD, "answer3"),
        ("The correct answer is Answer 3.", ABCD, "answer3"),
        ("ANSWER2", ABCD, "answer2"),
        ("answer4: because answer1 is wrong", ABCD, "answer4"),
        ("\n answer1\n\n### Instruction: answer2", ABCD, "answer1"),
        ("answer10", ABCD, None),
        ("answer", ABCD, None),
        ("3", ABCD, None),
        ("", ABCD, None),
        ("It is true.", ("true", "false"), "true"),
        ("untrue; falsehood", ("true", "false"), None),
        ("False, not true", ("true", "false"), "false"),
        ("solution 2", ("solution1", "solution2"), "solution2"),
        ("(answer2)", ABCD, "answer2"),
    ],
)
def test_the_label_of_an_answer(text, labels, label):
    assert extract_label(text, labels) == label


def test_options_that_mention_each_other():
    asked = (
        "Please choose the correct answer to the question: Which?\n\n"
        "Answer1: see Answer1: twice Answer2: both: a and b Answer3: none\n\n"
        "Answer format: answer1/answer2/answer3"
    )
    found = read_choices(asked)
    assert found.stem == "Which?"
    assert found.texts == ("see Answer1: twice", "both: a and b", "none")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("Which?", "no line 'Answer format:'"),
        ("Which?\n\nAnswer format: answer1", "two or more labels"),
        (
            "Which?\n\nAnswer1: a\n\nAnswer format: answer1/answer2",
            "1 of 2 options are found",
        ),
    ],
)
def test_what_is_no_multiple_choice_is_told(asked, says):
    with pytest.raises(UserError, match=says):
        read_choices(asked)


@pytest.mark.parametrize(
    ("text", "loose", "strict"),
    [
        ("18 eggs. #### 18", True, True),
        ("18 eggs.\n####18\nThe answer is: 18", True, True),
        ("#### 18.50", False, True),  # only the whole number is read
        ("#### $18", True, False),
        ("#### 18\n#### 19", False, True),  # the first one
        ("The answer is 18.", True, False),
        (r"\boxed{18}", True, False),
        ("So 9 and 9 are 18", True, False),
        ("#### 17", False, False),
        ("nothing", False, False),
    ],
)
def test_sums_are_marked_by_two_readings(text, loose, strict):
    """An answer counts as it says itself, and as the paper's published script reads it."""
    found = score_answers(EVALS["number"], [Question("1", "gsm8k", {}, "", "18")], [Answer(text)])
    assert (found.scores["accuracy"], found.scores["accuracy_strict"]) == (loose, strict)


def test_thousands_and_signs_are_read_strictly_too():
    for text, number in (("#### -1,234", -1234), ("#### 5,000,000 dollars", 5_000_000)):
        assert strict_number(text) == number
    assert strict_number("#### none") is None
    choice = Question("1", "a", {}, "", "a1", ("a1", "a2"))
    assert "accuracy_strict" not in score_answers(EVALS["choice"], [choice], [Answer("a1")]).scores
