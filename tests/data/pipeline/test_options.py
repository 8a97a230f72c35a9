"""Options of questions as evaluation rows: their tokens, and which is the most likely."""

from typing import Any

import numpy as np
import pytest

from goat_jax.data.pipeline.dataset import FILLER
from goat_jax.data.pipeline.options import encode_options, share_most_likely
from goat_jax.data.tasks.evaluation import EvalTask, Question
from goat_jax.errors import UserError

TASK = EvalTask("colours", "a.jsonl", "b.jsonl", metrics=("accuracy", "perplexity"), packing=False)


class Letters:
    """A tokenizer with a token for each character."""

    is_fast, pad_token_id, eos_token_id = True, 0, 1

    def __call__(self, text, **options):
        spans = [(n, n + 1) for n in range(len(text))]
        ids = [ord(letter) for letter in text]
        return {
            "input_ids": ids,
            "offset_mapping": spans,
            "special_tokens_mask": [0] * len(text),
        }


LETTERS: Any = Letters()


def question(number, answer, *options):
    labels = tuple(f"a{n}" for n in range(1, len(options) + 1))
    return Question(str(number), "colours", {}, "q:", answer, labels, options)


def test_every_option_is_a_row_without_an_end_of_text():
    questions = [question(1, "a2", "x", "yz"), question(2, "a1", "u", "v", "w")]
    rows = encode_options(TASK, questions, LETTERS, 8)
    batch = rows.gather(np.array([1, 4, FILLER]), 6)
    assert bytes(batch["input_ids"][0].tolist()) == b"q:yz\0\0"
    assert batch["loss_mask"].tolist() == [[0, 0, 1, 1, 0, 0], *[[0, 0, 1, 0, 0, 0]] * 2]
    assert batch["questions"].tolist() == [0, 1, 1] and batch["correct"].tolist() == [1, 0, 0]
    assert batch["weights"].tolist() == [1, 1, 0] and len(rows) == 5
    other = encode_options(TASK, [question(1, "a1", "x", "yz"), questions[1]], LETTERS, 8)
    assert any(
        np.any(np.asarray(one) != np.asarray(two))
        for one, two in zip(rows.contents[-2:], other.contents[-2:], strict=True)
    )


@pytest.mark.parametrize("options", [("x", "yyyyyyy"), ("x", "")], ids=["long", "empty"])
def test_an_option_that_cannot_be_compared_is_refused(options):
    with pytest.raises(UserError, match=r"question 7 has . tokens.*max_length is 8"):
        encode_options(TASK, [question(7, "a1", *options)], LETTERS, 8)


def test_the_order_of_rows_does_not_matter():
    questions, correct = np.array([2, 0, 1, 0, 2, 1]), np.array([1, 0, 0, 1, 0, 1])
    losses = np.array([3.0, 2.0, 1.0, 1.5, 4.0, 0.5])
    assert share_most_likely(questions, correct, losses) == 1.0
    losses[3] = 2.5
    order = np.array([5, 3, 0, 1, 4, 2])
    for each in (np.arange(6), order):
        found = share_most_likely(questions[each], correct[each], losses[each])
        assert found == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eval": "number"}, "eval number has none"),
        ({"metrics": ("accuracy", "token_accuracy")}, "with accuracy use perplexity"),
        ({"metrics": ("acuracy",)}, "use one of perplexity, token_accuracy, accuracy"),
    ],
    ids=["no options", "token accuracy", "unknown"],
)
def test_settings_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        EvalTask("c", "a", "b", **{"metrics": ("accuracy",), **changed})
