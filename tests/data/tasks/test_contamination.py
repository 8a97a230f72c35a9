"""Questions that are learnt, too, are told with their number, and stay among the rows."""

import dataclasses
import json

import pytest

from goat_jax.data.tasks.benchmarks.commonsense import FOLDERS
from goat_jax.data.tasks.contamination import questions_in_training
from goat_jax.data.tasks.evaluation import load_questions
from goat_jax.data.tasks.language import load_rows
from kinds import eval_task


def choice(number, **more):
    asked = (
        f"Please choose: {number}?\n\nAnswer1: ice Answer2: fire\n\nAnswer format: answer1/answer2"
    )
    right = {"output": "the correct answer is answer2", "answer": "answer2"}
    return {"instruction": asked, "input": "", **right, **more}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def joint(tmp_path):
    """Commonsense170K in small: 140 rows; the sets ask 4 others each but for three of them."""
    rows = [choice(n, id=f"row_{n}") for n in range(140)]
    write(tmp_path / "commonsense_170k.jsonl", rows)
    for place, parts in enumerate(FOLDERS.values()):
        own = [choice(f"{parts[0]} {n}", id=n) for n in range(4)]
        write(tmp_path / parts[0] / "test.jsonl", own)
        assert place < 8
    return tmp_path


def learnt(task):
    return [row for _, row in load_rows(task, "train")]


def test_commonsense_that_is_learnt_is_told(joint):
    task = eval_task("commonsense170k", folder=str(joint))
    assert questions_in_training(task) == []
    first, second, *_ = learnt(task)
    shouted = first | {"instruction": first["instruction"].replace("Please", "PLEASE  ") + " "}
    write(joint / "piqa" / "test.jsonl", [shouted, choice("x", id="y"), second])
    write(joint / "boolq" / "test.jsonl", [choice("other words", id=first["id"]), choice("z")])
    assert questions_in_training(task) == [
        "boolq: 1 of 2 questions is also in the training rows",
        "piqa: 2 of 3 questions are also in the training rows",
    ]
    assert len(learnt(task)) == 20 and len(load_questions(task)) == 6 * 4 + 5  # none is left out


def test_numbers_are_no_ids(joint):
    task = eval_task("commonsense170k", folder=str(joint))
    numbered = [row | {"id": place} for place, row in enumerate(learnt(task))]
    write(joint / "commonsense_170k.jsonl", numbered * 10)
    assert questions_in_training(task) == []


def test_rows_held_out_are_not_learnt(joint):
    task = eval_task("commonsense170k", folder=str(joint))
    held = [row for _, row in load_rows(task, "evaluation")]
    write(joint / "piqa" / "test.jsonl", held)
    assert len(held) == 120 and questions_in_training(task) == []


@pytest.fixture
def mathematics(tmp_path):
    rows = [
        {"query": f"{n} + {n}?", "response": f"#### {2 * n}", "type": "GSM_AnsAug"}
        for n in range(210)
    ]
    write(tmp_path / "MetaMathQA-395K.jsonl", rows)
    write(
        tmp_path / "test.jsonl", [{"question": f"{n} - 1?", "answer": "#### 1"} for n in range(3)]
    )
    return eval_task("metamath", folder=str(tmp_path), questions=str(tmp_path))


def test_metamath_that_asks_gsm8k_is_told(mathematics, tmp_path):
    assert questions_in_training(mathematics) == []
    asked = [
        {"question": row["query"].replace(" ", "  "), "answer": "#### 1"}
        for row in learnt(mathematics)[:2]
    ]
    write(tmp_path / "test.jsonl", [*asked, {"question": "What?", "answer": "#### 1"}])
    assert questions_in_training(mathematics) == [
        "gsm8k: 2 of 3 questions are also in the training rows"
    ]


def test_questions_that_cannot_be_read_are_told(mathematics, tmp_path):
    task = dataclasses.replace(mathematics, questions={"gsm8k": str(tmp_path / "gone.jsonl")})
    (note,) = questions_in_training(task)
    assert note.startswith("gsm8k: not compared with the training rows (") and "gone.jsonl" in note


def test_first_turns_of_conversations_are_compared(tmp_path):
    rows = [{"instruction": f"Write {n}.", "output": "Yes."} for n in range(210)]
    write(tmp_path / "wizardlm.jsonl", rows)
    asked: list[dict] = [
        {"category": "writing", "question_id": n, "turns": [f"Write {word}.", "Again."]}
        for n, word in enumerate(("a", "b"))
    ]
    write(tmp_path / "question.jsonl", asked)
    task = eval_task("wizardlm", folder=str(tmp_path), questions=str(tmp_path))
    assert questions_in_training(task) == []
    asked[1]["turns"][0] = learnt(task)[3]["instruction"]
    write(tmp_path / "question.jsonl", asked)
    assert questions_in_training(task) == [
        "mt_bench: 1 of 2 questions is also in the training rows"
    ]
