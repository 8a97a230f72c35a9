"""MT-Bench's files: FastChat's own are read, grades are found or there is none."""

import json

import pytest

from goat_jax.data.tasks.evaluation import load_questions
from goat_jax.data.tasks.formats.mt_bench import (
    OWN_PROMPTS,
    answer_record,
    judge_messages,
    read_judge_prompts,
    read_rating,
    read_references,
)
from goat_jax.errors import UserError
from kinds import eval_task


def test_the_published_files_are_read(shared, tmp_path):
    folder = shared / "data" / "mt_bench"
    prompts = read_judge_prompts(folder / "judge_prompts.jsonl.gz")
    references = read_references(folder / "reference_answer_gpt4.jsonl.gz")
    (tmp_path / "wizardlm.jsonl").write_text('{"instruction": "Hi", "output": "Hello"}\n')
    questions = load_questions(eval_task("wizardlm", folder=str(tmp_path), questions=str(folder)))
    assert len(questions) == 80 and len(references) == 30
    assert questions[0].id == "81" and questions[0].temperature == 0.7
    assert {len(question.turns) for question in questions} == {2}
    for question in questions:
        for turns in (1, 2):
            asked, answers = question.turns[:turns], ["first", "second"][:turns]
            category, reference = question.row["category"], references.get(question.id)
            name, messages = judge_messages(prompts, category, asked, answers, reference)
            own, ours = judge_messages(OWN_PROMPTS, category, asked, answers, reference)
            assert name.endswith("multi-turn") == (turns == 2) == ("multi" in own)
            assert ("math" in name) == (reference is not None) == own.endswith("ref")
            for told in (messages, ours):
                assert asked[-1] in told[1]["content"] and answers[-1] in told[1]["content"]


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Fine. Rating: [[8]]", 8.0),
        ("[[7.5]]", 7.5),
        ("Rating: [6]", 6.0),
        ("[[10]] and then [[2]]", 2.0),
        ("[[ 7 ]]", 7.0),
        ("[[7/10]]", 7.0),
        ("Rating: 7", 7.0),
        ("**Rating:** 7.5/10.", 7.5),
        ("Rating: 8 out of 10", 8.0),
        ("My grade is 6", 6.0),
        ("As [1] says. Score: 9", 9.0),
        ("<think>perhaps [[3]]</think> [[8]]", 8.0),
        ("[[9]] <think>no, [[3]]</think>", 9.0),
        ("perhaps [[3]]</think>\nRating: [[8]]", 8.0),
        ("<Thinking>[[3]] or [[4]]", None),
        ("[[5]] no, [[50]]", None),
        ("[[-5]]", None),
        ("Rating: 70/100", None),
        ("Rating: 7/100", None),
        ("Rating: 7-8", None),
        ("Rate this from 1 to 10", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[eight]]", None),
        ("8", None),
        ("", None),
    ],
)
def test_the_grade_of_a_verdict(text, grade):
    assert read_rating(text) == grade


def test_answers_have_fastchats_fields(shared):
    record = answer_record("101", "goat", ["a", "b"], "id", 1.0)
    path = shared / "data" / "mt_bench" / "reference_answer_gpt4.jsonl.gz"
    import gzip

    with gzip.open(path, "rt") as lines:
        published = json.loads(next(lines))
    assert record.keys() == published.keys()
    assert record["choices"][0].keys() == published["choices"][0].keys()
    assert type(record["question_id"]) is type(published["question_id"])


@pytest.mark.parametrize("form", ["template", "messages"])
def test_mt_bench_needs_no_rows_to_train_on(shared, form):
    task = eval_task("mt_bench", questions=str(shared / "data" / "mt_bench"), format=form)
    assert len(load_questions(task)) == 80 and task.scoring == "judge"


@pytest.mark.parametrize(
    ("read", "line", "says"),
    [
        (read_judge_prompts, {"name": "single-v1"}, "row 1: needs text in name, system_prompt"),
        (
            read_judge_prompts,
            {"name": "single-v1", "system_prompt": "", "prompt_template": ""},
            "no prompt is named 'single-math-v1'",
        ),
        (read_references, {"question_id": 1}, "row 1: needs question_id and choices"),
    ],
)
def test_files_in_another_form_are_told(tmp_path, read, line, says):
    (tmp_path / "file.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match=says):
        read(tmp_path / "file.jsonl")
