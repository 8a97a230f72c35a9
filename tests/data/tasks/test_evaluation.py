"""Eval tasks: real rows become questions, bad ones are told, sets in other forms are put right."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from goat_jax.config.fields import config_from_json, flatten
from goat_jax.config.run import ModelConfig, RunConfig
from goat_jax.data.tasks.benchmarks.commonsense import FOLDERS
from goat_jax.data.tasks.evaluation import EvalTask, load_questions, scoring_of
from goat_jax.data.tasks.formats.commonsense import instructed
from goat_jax.data.tasks.formats.multiple_choice import read_choices
from goat_jax.data.tasks.language import load_pieces
from goat_jax.data.tasks.registry import language_files
from goat_jax.errors import UserError
from kinds import eval_task

UNUSED: Any = None
"""The tokenizer of rows without messages."""

ROW = {
    "instruction": "Please choose the correct answer to the question: Hot?\n\nAnswer1: ice "
    "Answer2: fire\n\nAnswer format: answer1/answer2",
    "input": "",
    "output": "the correct answer is answer2",
    "answer": "answer2",
}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    for name, parts in FOLDERS.items():
        write(tmp_path / parts[0] / "test.jsonl", [ROW, ROW | {"output": name}])
    (tmp_path / "commonsense_170k.json").write_text(json.dumps([ROW] * 200))
    return tmp_path


COUNTS = {"boolq": 3270, "piqa": 1838, "siqa": 1954, "arc_easy": 2376, "arc_challenge": 1172}


@pytest.mark.parametrize("name", [*COUNTS, "obqa"])
def test_real_rows_are_questions(shared, name):
    task = eval_task(name, folder=str(shared / "data" / "commonsense"))
    questions = load_questions(task)
    assert len(questions) == COUNTS.get(name, 500)
    for question in questions:
        assert question.answer in question.labels
        assert len(set(question.labels)) == len(question.continuations) >= 2
        assert question.prompt.endswith("### Response:\n")
    bare = load_questions(eval_task(name, folder=str(shared / "data" / "commonsense"), cloze=True))
    options = [text for question in bare for text in question.continuations]
    assert all(text.strip() for text in options)
    assert not any("Answer format" in q.prompt or "nswer2:" in q.prompt for q in bare)


def test_real_numbers_are_questions(shared):
    questions = load_questions(eval_task("gsm8k", folder=str(shared / "data" / "gsm8k")))
    assert len(questions) == 1319 and questions[0].answer == "18"
    for question in questions:
        written = question.row["answer"].rpartition("####")[2].strip().replace(",", "")
        assert float(question.answer) == float(written)


def test_joint_training_is_evaluated_on_every_set_that_is_there(folder):
    task = eval_task("commonsense170k", folder=str(folder))
    assert list(task.questions) == list(FOLDERS)
    assert len(load_questions(task)) == 16
    assert len(load_questions(dataclasses.replace(task, question_limit=1))) == 8
    train, held_out = (load_pieces(task, split, UNUSED) for split in ("train", "evaluation"))
    assert (len(train), len(held_out)) == (80, 120)
    answer = train[0].pieces[1]
    assert answer.text == "the correct answer is answer2" and answer.in_loss


def test_tasks_survive_run_json(folder):
    for task in (
        eval_task("commonsense170k", folder=str(folder)),
        eval_task("arc_easy", folder=str(folder), cloze=True, question_limit=3),
    ):
        config = RunConfig(ModelConfig("m"), task)
        assert config_from_json(json.loads(json.dumps(flatten(config)))) == config


def test_a_set_without_training_rows_can_be_asked(folder):
    task = eval_task("piqa", folder=str(folder))
    assert len(load_questions(task)) == 2
    with pytest.raises(UserError, match=r"piqa/train.jsonl: no such file"):
        load_pieces(task, "train", UNUSED)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"answer": "answer9"},
            "row 2: answer 'answer9' is not among the options answer1, answer2",
        ),
        ({"answer": None}, "row 2: no text in column answer"),
        ({"instruction": "Hot?"}, "row 2: no line 'Answer format:'"),
        ({"instruction": 3}, "row 2: no text in column instruction"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path, row, says):
    write(tmp_path / "boolq" / "test.jsonl", [ROW, ROW | row])
    with pytest.raises(UserError, match=says):
        load_questions(eval_task("boolq", folder=str(tmp_path)))


def test_rows_of_unknown_columns_are_named(tmp_path):
    write(tmp_path / "boolq" / "test.jsonl", [{"asked": "Hot?"}])
    with pytest.raises(UserError, match="row 1: no column 'instruction', nor those of a known set"):
        load_questions(eval_task("boolq", folder=str(tmp_path)))


def test_other_eval_tasks_name_their_rows(tmp_path):
    write(tmp_path / "gsm" / "train.jsonl", [{"question": "2 + 2?", "answer": "#### 4"}])
    write(tmp_path / "gsm" / "test.jsonl", [{"question": "2 + 2?", "answer": "four"}])
    with pytest.raises(UserError, match="row 1: no number in its answer 'four'"):
        load_questions(eval_task("gsm8k", folder=str(tmp_path / "gsm")))
    write(tmp_path / "test.jsonl", [{"prompt": "def f():", "test": "", "task_id": "a"}])
    with pytest.raises(UserError, match="row 1: no text in column entry_point"):
        load_questions(eval_task("humaneval", questions=str(tmp_path)))
    write(tmp_path / "wizardlm.jsonl", [{"instruction": "Hi", "output": "Hello"}])
    write(tmp_path / "question.jsonl", [{"question_id": 1, "turns": "Why?"}])
    task = eval_task("wizardlm", folder=str(tmp_path), questions=str(tmp_path))
    with pytest.raises(UserError, match="row 1: no list of texts in column 'turns'"):
        load_questions(task)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: eval_task("boolq", folder=str(p)), "no file test"),
        (lambda p: eval_task("commonsense170k"), "needs folder="),
        (lambda p: eval_task("metamath", folder=str(p)), "has none of the files MetaMathQA"),
        (lambda p: eval_task("codefeedback", folder=str(p)), "questions"),
        (
            lambda p: EvalTask("x", "a", "a", eval="number", scoring="code"),
            "cannot be scored by 'code'",
        ),
        (lambda p: EvalTask("x", "a", "a", max_new_tokens=0), "must be 1 or more"),
        (lambda p: load_questions(EvalTask("x", "a", "a")), "has no questions"),
        (lambda p: scoring_of(language_files("a", "b"), "judge"), "has no questions"),
        (lambda p: language_files("a", "b", held_out=3), "held_out 3"),
        (lambda p: language_files("a", "b", selection="som"), "unknown selection"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, make, says):
    with pytest.raises(UserError, match=says) as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)


MATH = [
    {"query": "2 + 2?", "response": "4\nThe answer is: 4", "type": "GSM_Rephrased"},
    {"query": "sin 0?", "response": "0", "type": "MATH_AnsAug"},
    {"query": "3 + 2?", "response": "5", "type": "GSM_SV"},
]


def test_only_selected_rows_are_learnt_and_counted(tmp_path):
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps(MATH * 3))
    write(tmp_path / "test.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}])
    task = eval_task(
        "metamath", folder=str(tmp_path), questions=str(tmp_path), held_out=2, train_limit=3
    )
    train = load_pieces(task, "train", UNUSED)
    assert len(train) == 3 and len(load_pieces(task, "evaluation", UNUSED)) == 2
    assert all("sin" not in text.pieces[0].text for text in train)
    assert load_questions(task)[0].prompt == train[0].pieces[0].text.replace(
        train[0].pieces[0].text.split("\n")[3], "1 + 1?"
    )
    with pytest.raises(UserError, match="6 rows held out of 6 leave none"):
        load_pieces(dataclasses.replace(task, held_out=6), "train", UNUSED)
    (tmp_path / "MetaMathQA-395K.json").write_text(json.dumps(MATH[1:2]))
    with pytest.raises(UserError, match=r"task\.selection grade_school keeps none of 1 rows"):
        load_pieces(task, "train", UNUSED)


ORIGINAL = {
    "boolq": (
        {"question": "is ice hot", "passage": "...", "answer": False, "title": "ice"},
        "false",
    ),
    "piqa": ({"id": "1", "goal": "Heat.", "sol1": "ice", "sol2": "fire", "label": 1}, "solution2"),
    "siqa": (
        {
            "context": "It snows.",
            "question": "Why?",
            "answerA": "a",
            "answerB": "b",
            "answerC": "c",
            "label": "3",
        },
        "answer3",
    ),
    "hellaswag": (
        {"activity_label": "Run", "ctx": "He", "endings": ["a", "b", "c", "d"], "label": "1"},
        "ending2",
    ),
    "hellaswag of TFDS": (
        {
            "activity_label": "Run",
            "context": "He",
            "endings": np.array([b"a", b"b", b"c", b"d"], object),
            "label": 0,
        },
        "ending1",
    ),
    "winogrande": ({"sentence": "_ ran", "option1": "a", "option2": "b", "answer": "2"}, "option2"),
    "winogrande of TFDS": (
        {"sentence": "_ ran", "option1": "a", "option2": "b", "label": 0},
        "option1",
    ),
    "arc": (
        {
            "question": "Hot?",
            "choices": {"text": ["ice", "fire", "air"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
        "answer2",
    ),
    "arc of TFDS": (
        {
            "question": "Hot?",
            "choices": {"text": np.array([b"ice", b"fire"], object), "label": np.array([0, 1])},
            "answerKey": 1,
        },
        "answer2",
    ),
    "obqa": (
        {
            "question_stem": "Hot is",
            "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
            "answerKey": "B",
        },
        "answer2",
    ),
    "obqa of TFDS": (
        {
            "question": {
                "stem": "Hot is",
                "choice_A": "ice",
                "choice_B": "fire",
                "choice_C": "air",
                "choice_D": "sea",
            },
            "fact1": "...",
            "answerKey": 1,
        },
        "answer2",
    ),
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_original_columns_become_instructions(name):
    row, answer = ORIGINAL[name]
    found = instructed(row)
    choices = read_choices(found["instruction"])
    assert found["answer"] == answer in choices.labels
    assert found["output"] == f"the correct answer is {answer}"


@pytest.mark.parametrize("name", ["piqa", "siqa", "winogrande", "arc", "obqa of TFDS"])
def test_a_row_without_its_label_is_told(name):
    row = dict(ORIGINAL[name][0])
    key = next(column for column in ("label", "answerKey", "answer") if column in row)
    with pytest.raises(UserError, match="the row has no label"):
        instructed(row | {key: -1 if isinstance(row[key], int) else ""})


@pytest.mark.parametrize(
    ("name", "original"),
    [
        (
            "piqa",
            {
                "goal": "How do I ready a guinea pig cage for it's new occupants?",
                "sol1": "Provide the guinea pig with a cage full of a few inches of bedding "
                "made of ripped paper strips, you will also need to supply it with a "
                "water bottle and a food dish.",
                "sol2": "Provide the guinea pig with a cage full of a few inches of bedding "
                "made of ripped jeans material, you will also need to supply it with a "
                "water bottle and a food dish.",
                "label": 0,
            },
        ),
        (
            "boolq",
            {
                "question": "does ethanol take more energy make that produces",
                "passage": "...",
                "answer": False,
            },
        ),
        (
            "siqa",
            {
                "context": "Tracy didn't go home that evening and resisted Riley's attacks.",
                "question": "What does Tracy need to do before this?",
                "answerA": "make a new plan",
                "answerB": "Go home and see Riley",
                "answerC": "Find somewhere to go",
                "label": "3",
            },
        ),
    ],
)
def test_they_are_the_very_rows_of_llm_adapters(shared, name, original):
    folder = str(shared / "data" / "commonsense")
    first = load_questions(eval_task(name, folder=folder))[0].row
    assert instructed(original) == first
