"""A judge behind an endpoint that speaks the OpenAI chat protocol."""

from __future__ import annotations

import dataclasses
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from goat_jax.data.mt_bench import (
    OWN_PROMPTS,
    JudgePrompt,
    judge_messages,
    read_rating,
)
from goat_jax.errors import RunFailed, UserError

FINAL = {
    401: "it wants a key, or another one",
    403: "the key may not use it",
    404: "there is nothing at this address, or no such model",
}
"""HTTP errors that another attempt does not mend."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """Who grades, and how it is asked.

    Attributes:
        url: of the endpoint, up to and without /chat/completions.
        model: the name it knows the judge by.
        key: sent as a bearer token; empty for none.
        prompts: its instructions (`goat_jax.data.mt_bench`).
        references: question id -> reference answers.
        attempts: requests before a grade is given up.
        wait: seconds before the second attempt; doubled for each further one.
        timeout: seconds for one request.
        sleep: for tests.
    """

    url: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    prompts: Mapping[str, JudgePrompt] = dataclasses.field(default_factory=lambda: OWN_PROMPTS)
    references: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    attempts: int = 4
    wait: float = 1.0
    timeout: float = 120.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"judge {self.url!r} is no address: http://HOST/v1 or https://...")
        if not self.model:
            raise UserError("the judge's model has no name: give --judge-model")
        if self.attempts < 1:
            raise UserError(f"attempts {self.attempts} must be 1 or more")


def read_key(path: Path) -> str:
    """The key in a file, which is not on a command line for everybody to see."""
    try:
        return path.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no key can be read from it ({error})") from None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a judge said of one turn.

    Attributes:
        score: 1 to 10; None if no request gave a grade.
        prompt: the name of the judge's instructions, and what it was asked.
        judgment: its words, of the last attempt that had any.
        error: why there is no score.
    """

    score: float | None
    prompt: tuple[str, str]
    judgment: str = ""
    error: str = ""


def grade(
    judge: Judge, question: str, category: str, asked: Sequence[str], answers: Sequence[str]
) -> Verdict:
    """A grade for the last of one or two turns; without one after all attempts, none.

    Args:
        question: the question's id.

    Raises:
        RunFailed: the endpoint refuses in a way that no attempt would mend.
    """
    reference = judge.references.get(question)
    name, messages = judge_messages(judge.prompts, category, asked, answers, reference)
    prompt = (name, messages[-1]["content"])
    said, error = "", ""
    for attempt in range(judge.attempts):
        if attempt:
            judge.sleep(judge.wait * 2 ** (attempt - 1))
        try:
            said = ask(judge, messages)
        except (OSError, http.client.HTTPException, ValueError) as problem:
            error = f"{type(problem).__name__}: {problem}".splitlines()[0][:200]
            continue
        score = read_rating(said)
        if score is not None:
            return Verdict(score, prompt, said)
        error = "no grade from 1 to 10 in what it said"
    return Verdict(None, prompt, said, error)


def ask(judge: Judge, messages: Sequence[Mapping[str, str]]) -> str:
    """What the endpoint answers.

    Raises:
        RunFailed: it refuses for good.
        OSError, HTTPException, ValueError: it failed, or did not answer in the protocol's form.
    """
    body = {"model": judge.model, "messages": list(messages), "temperature": 0, "max_tokens": 2048}
    headers = {"Content-Type": "application/json"}
    if judge.key:
        headers["Authorization"] = f"Bearer {judge.key}"
    request = urllib.request.Request(
        judge.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.urlopen(request, timeout=judge.timeout) as response:
            answer = json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            if error.code in FINAL:
                raise RunFailed(
                    f"the judge at {judge.url} answers {error.code}: {FINAL[error.code]}"
                ) from None
            raise OSError(f"HTTP {error.code}") from None
    return _content(answer)


def _content(answer: Any) -> str:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError("no choices[0].message.content in its answer") from None
    if not isinstance(text, str):
        raise ValueError(f"its answer's content is {type(text).__name__}, not text")
    return text
