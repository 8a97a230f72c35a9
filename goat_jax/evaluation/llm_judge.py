"""Evaluation by an LLM judge: the model answers all turns, and the judge grades the answers.

Answers and judgments are written in FastChat's format.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from goat_jax.data.tasks.evaluation import EvalTask, Question
from goat_jax.data.tasks.formats.conversations import chat_ids
from goat_jax.data.tasks.formats.mt_bench import answer_record, judge_messages
from goat_jax.data.tasks.language import CHAT_FORMATS, fill
from goat_jax.data.tasks.prompts import NEXT_TURN
from goat_jax.errors import RunFailed
from goat_jax.evaluation.generate_and_loglikelihood import answer_all, cut_share
from goat_jax.evaluation.judge_client import Judge, Verdict, grade
from goat_jax.evaluation.sampler import Answer, Prompt
from goat_jax.evaluation.types import EvalRequest, EvalResult
from goat_jax.typing import Tokenizer

ANSWERS, JUDGMENTS = "answers", "judgments"
"""Names of the record files: FastChat's model_answer and its single-answer judgments."""


def score_by_judge(request: EvalRequest) -> EvalResult:
    """Generates answers to all turns and, if there is a judge, has each of them graded.

    Scores: score (the mean over all graded turns), score/turn_1, score/turn_2, and unscored, the
    number of turns without a grade. Without a judge there is only `answered`, the number of
    questions. cut_answers is added if any answer ran out of new tokens.

    Raises:
        RunFailed: the judge rejects requests for a reason that no retry can fix.
    """
    questions, judge = request.questions, request.options.judge
    conversations = _conversations(request)
    answers = [[answer.text.strip() for answer in conversation] for conversation in conversations]
    cut = cut_share([answer for conversation in conversations for answer in conversation])
    answered = [
        answer_record(question.id, request.model.name, turns, uuid.uuid4().hex, time.time())
        | {"cut": [answer.cut for answer in conversation]}
        for question, turns, conversation in zip(questions, answers, conversations, strict=True)
    ]
    if judge is None:
        return EvalResult({"answered": float(len(answered))} | cut, {ANSWERS: answered})
    to_grade = [
        (place, turn)
        for place, conversation in enumerate(answers)
        for turn in range(1, len(conversation) + 1)
    ]
    verdicts = _verdicts(request, judge, answers, to_grade)
    judgments = [
        _judgment(request.model.name, judge, questions[place], turn, verdict)
        for (place, turn), verdict in zip(to_grade, verdicts, strict=True)
    ]
    turns = [turn for _, turn in to_grade]
    problem = ""
    if all(verdict.score is None for verdict in verdicts):
        problem = f"the judge graded none of {len(verdicts)} turns: {verdicts[0].error}"
    records = {ANSWERS: answered, JUDGMENTS: judgments}
    return EvalResult(_scores(turns, verdicts) | cut, records, problem)


def _conversations(request: EvalRequest) -> list[list[Answer]]:
    """Generates the answers to all turns: the first turns of all questions, then the second."""
    questions, options = request.questions, request.options
    generator = request.model.generator()
    answers: list[list[Answer]] = [[] for _ in questions]
    total = sum(len(question.turns) for question in questions)
    done = 0
    for turn in range(max(len(question.turns) for question in questions)):
        # A batch shares its sampling settings, so it has questions of one temperature only.
        for temperature in sorted({question.temperature for question in questions}):
            places = [
                place
                for place, question in enumerate(questions)
                if question.temperature == temperature and turn < len(question.turns)
            ]
            prompts = [
                conversation(
                    request.task,
                    generator.tokenizer,
                    questions[p].turns,
                    [answer.text.strip() for answer in answers[p]],
                )
                for p in places
            ]
            turn_answers = answer_all(
                generator,
                prompts,
                options.sampling(request.task, temperature, turn),
                min(options.batch_size, max(1, len(prompts))),
                lambda count, before=done: request.progress(before + count, total),
                request.journal,
            )
            for place, answer in zip(places, turn_answers, strict=True):
                answers[place].append(answer)
            done += len(places)
    return answers


def conversation(
    task: EvalTask, tokenizer: Tokenizer, turns: Sequence[str], answers: Sequence[str]
) -> Prompt:
    """Builds the prompt of the turn that follows these answers.

    A model trained on `messages` gets its tokenizer's chat template. Another model gets the task's
    template that it was trained with, with later turns appended in the same format.

    Args:
        task: the eval task, with the template.
        tokenizer: the model's tokenizer.
        turns: the user's turns of the conversation.
        answers: the model's answers so far, one per earlier turn.
    """
    if task.format in CHAT_FORMATS:
        messages = []
        for user, assistant in zip(turns, answers, strict=False):
            messages += [
                {"role": "user", "content": user},
                {"role": "assistant", "content": assistant},
            ]
        messages.append({"role": "user", "content": turns[len(answers)]})
        return chat_ids(tokenizer, messages)
    text = fill(task.prompt, {"instruction": turns[0], "asked": turns[0]})
    for answer, following in zip(answers, turns[1:], strict=False):
        text += answer + NEXT_TURN.replace("{asked}", following)
    return text


def _verdicts(
    request: EvalRequest, judge: Judge, answers: list[list[str]], to_grade: list[tuple[int, int]]
) -> list[Verdict]:
    refused: list[RunFailed] = []

    def one(place: int, turn: int) -> Verdict:
        if refused:  # permanently: the remaining turns would fail the same way
            raise refused[0]
        question = request.questions[place]
        category = str(question.row.get("category", ""))
        turns, turn_answers = question.turns[:turn], answers[place][:turn]
        _, messages = judge_messages(
            judge.prompts, category, turns, turn_answers, judge.references.get(question.id)
        )
        key = [judge.url, judge.model, messages]
        if (kept := request.journal.get(key)) is not None:
            return Verdict(kept["score"], tuple(kept["prompt"]), kept["judgment"])
        try:
            verdict = grade(judge, question.id, category, turns, turn_answers)
        except RunFailed as refusal:
            refused.append(refusal)
            raise
        if verdict.score is not None:  # turns without a grade are retried by the next evaluation
            request.journal.put(key, dataclasses.asdict(verdict))
        return verdict

    verdicts = []
    pool = ThreadPoolExecutor(request.options.workers)
    try:
        for verdict in pool.map(lambda each: one(*each), to_grade):
            verdicts.append(verdict)
            request.progress(len(verdicts), len(to_grade))
    finally:
        pool.shutdown(cancel_futures=True)
    return verdicts


def _judgment(
    model: str, judge: Judge, question: Question, turn: int, verdict: Verdict
) -> dict[str, Any]:
    """Builds one line of FastChat's judgments file; its score is null if there is no grade."""
    return {
        "question_id": int(question.id) if question.id.isdigit() else question.id,
        "model": model,
        "judge": [judge.model, verdict.prompt[0]],
        "user_prompt": verdict.prompt[1],
        "judgment": verdict.judgment,
        "score": verdict.score,
        "turn": turn,
        "tstamp": time.time(),
        **({"error": verdict.error} if verdict.error else {}),
    }


def _scores(turns: Sequence[int], verdicts: Sequence[Verdict]) -> dict[str, float]:
    grades: dict[str, list[float]] = {}
    for turn, verdict in zip(turns, verdicts, strict=True):
        if verdict.score is not None:
            grades.setdefault("score", []).append(verdict.score)
            grades.setdefault(f"score/turn_{turn}", []).append(verdict.score)
    means = {name: sum(values) / len(values) for name, values in grades.items()}
    unscored = sum(verdict.score is None for verdict in verdicts)
    return dict(sorted(means.items())) | {"unscored": float(unscored)}
