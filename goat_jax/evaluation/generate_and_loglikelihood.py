"""Evaluation by generated answers and by the log-likelihood of answer options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from goat_jax.data.tasks.evaluation import EVALS, EvalSpec, Question, share_correct
from goat_jax.evaluation.journal import NOTHING_KEPT, Journal
from goat_jax.evaluation.sampler import Answer, Generator, Prompt, Sampling
from goat_jax.evaluation.types import CUT_ANSWERS, PREDICTIONS, EvalRequest, EvalResult


def answer_all(
    generator: Generator,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
    journal: Journal = NOTHING_KEPT,
) -> list[Answer]:
    """Generates the answers to prompts and returns them in the prompts' order.

    Prompts of similar length share a batch. The last batch is padded with copies of its last
    prompt, since another batch size would cost another compile.

    Args:
        generator: the model.
        prompts: the texts or token ids to continue.
        sampling: the sampling settings.
        batch_size: the number of prompts per batch.
        progress: a function that is called with the number of finished prompts.
        journal: batches generated earlier; they are not generated again. The other batches get the
            same random draws as in an uninterrupted evaluation.
    """
    lengths = [len(generator.encode(prompt)) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lengths.__getitem__)
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        filled = [*places, *[places[-1]] * (batch_size - len(places))]
        batch = [prompts[place] for place in filled]
        key = [dataclasses.asdict(sampling), [p if isinstance(p, str) else list(p) for p in batch]]
        kept = journal.get(key)
        if kept is None:
            batch_answers = generator.complete(batch, sampling)[: len(places)]
            journal.put(key, [[answer.text, answer.cut] for answer in batch_answers])
        else:
            batch_answers = [Answer(text, cut) for text, cut in kept]
        answers |= zip(places, batch_answers, strict=True)
        progress(start + len(places))
    return [answers[place] for place in range(len(prompts))]


def cut_share(answers: Sequence[Answer]) -> dict[str, float]:
    """Returns the score cut_answers: the fraction of answers that ran out of new tokens.

    The result is empty if there are none.
    """
    cut = sum(answer.cut for answer in answers)
    return {CUT_ANSWERS: cut / len(answers)} if cut else {}


def score_by_answer(request: EvalRequest) -> EvalResult:
    """Generates an answer to every question and compares it with the correct one."""
    questions, task = request.questions, request.task
    answers = answer_all(
        request.model.generator(),
        [question.prompt for question in questions],
        request.options.sampling(task, 0.0),
        request.options.batch_size,
        lambda done: request.progress(done, len(questions)),
        request.journal,
    )
    return score_answers(EVALS[task.eval], questions, answers)


def score_answers(
    spec: EvalSpec, questions: Sequence[Question], answers: Sequence[Answer]
) -> EvalResult:
    """Extracts answers from generated texts and compares them with the correct ones.

    Scores: accuracy; accuracy_strict, if the eval task has a stricter parser, for which an answer
    that it cannot parse is wrong; without_answer, the fraction of texts without an extractable
    answer.
    """
    records, correct, strict = [], [], []
    for question, answer in zip(questions, answers, strict=True):
        prediction = spec.extract(question, answer.text)
        correct.append(prediction is not None and prediction == question.answer)
        record = {"generated": answer.text, "cut": answer.cut, "prediction": prediction}
        records.append(_record(question, correct[-1]) | record)
        if spec.strictly is not None:
            prediction = records[-1]["prediction_strict"] = spec.strictly(question, answer.text)
            strict.append(prediction is not None and prediction == question.answer)
    silent = sum(record["prediction"] is None for record in records)
    scores = share_correct(questions, correct) | {"without_answer": silent / len(questions)}
    if spec.strictly is not None:
        scores |= {
            name.replace("accuracy", "accuracy_strict", 1): value
            for name, value in share_correct(questions, strict).items()
        }
    return EvalResult(scores | cut_share(answers), {PREDICTIONS: records})


def score_by_likelihood(request: EvalRequest) -> EvalResult:
    """Picks the most likely option by the sum of its tokens' log-probabilities, and by the mean.

    Scores: accuracy (sum) and accuracy_norm (mean, which does not favor short options); cut_prompts
    is the fraction of prompts that lost their beginning, if there are any.
    """
    questions = request.questions
    pairs = [(q.prompt, text) for q in questions for text in q.continuations]
    likelihoods = request.model.scorer()(
        pairs,
        request.options.batch_size,
        progress=lambda done: request.progress(done, len(pairs)),
    )
    records, by_sum, by_mean, start = [], [], [], 0
    for question in questions:
        span = slice(start, start + len(question.labels))
        start = span.stop
        chosen = question.labels[int(likelihoods.sums[span].argmax())]
        normal = question.labels[int(likelihoods.means[span].argmax())]
        by_sum.append(chosen == question.answer)
        by_mean.append(normal == question.answer)
        records.append(
            _record(question, by_sum[-1])
            | {
                "prediction": chosen,
                "prediction_norm": normal,
                "log_likelihoods": dict(
                    zip(question.labels, likelihoods.sums[span].tolist(), strict=True)
                ),
                "tokens": likelihoods.tokens[span].tolist(),
            }
        )
    normed = share_correct(questions, by_mean)
    scores = share_correct(questions, by_sum) | {
        name.replace("accuracy", "accuracy_norm", 1): value for name, value in normed.items()
    }
    if likelihoods.cut:
        scores["cut_prompts"] = likelihoods.cut / len(pairs)
    return EvalResult(scores, {PREDICTIONS: records})


def _record(question: Question, correct: bool) -> dict[str, Any]:
    return {
        "id": question.id,
        "set": question.group,
        "correct": correct,
        "answer": question.answer,
        "prompt": question.prompt,
    }
