"""Client for an LLM judge behind an endpoint with the OpenAI chat protocol."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from goat_jax.data.tasks.formats.mt_bench import (
    OWN_PROMPTS,
    JudgePrompt,
    judge_messages,
    read_rating,
)
from goat_jax.errors import RunFailed, UserError
from goat_jax.files import parse_json, user_path
from goat_jax.validation.checks import check_number

FINAL = {
    401: "it needs a key, or another one",
    403: "the key has no access to it",
    404: "nothing is at this address, or the model does not exist",
}
"""HTTP status codes that end the evaluation, with their explanations."""
PASSING = (408, 409, 425, 429)
"""4xx status codes that a retry may avoid; other 4xx codes are the fault of the request."""
TOKENS = 2048
"""Limit of an answer's tokens."""
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of the field that limits an answer's tokens: the protocol's, then that of newer models."""
LONGEST_WAIT = 120.0
"""Longest wait before a retry, in seconds, even if the endpoint asks for a longer one."""
LARGEST = 4 * 2**20
"""Largest answer that is read, in bytes."""
DETAIL = 200
"""Longest error message that is kept, in characters."""
FIRST_QUESTION = [{"role": "user", "content": "Answer with the word yes."}]


class Refused(Exception):
    """Permanent failure of one request: a retry would get the same answer."""


class Busy(Exception):
    """Temporary failure: a retry may succeed.

    Attributes:
        wait: the seconds that the endpoint asks to wait before the retry.
    """

    def __init__(self, text: str, wait: float = 0.0):
        super().__init__(text)
        self.wait = wait


@dataclasses.dataclass(frozen=True)
class Judge:
    """An endpoint that grades answers, with the settings of its requests.

    Attributes:
        url: the endpoint's address, without the ending /chat/completions.
        model: the judge's model name at the endpoint.
        key: the bearer token; empty for none. It is sent to this address and nowhere else.
        prompts: the judge's instructions (`goat_jax.data.tasks.formats.mt_bench`).
        references: question id -> reference answers.
        attempts: the number of requests before a grade is given up.
        wait: the seconds before the second attempt; doubled for each further one.
        timeout: the seconds that one request may take.
        sleep: the function that waits, replaced in tests.
        refused: request fields that the model rejects, added when it first rejects them.

    Raises:
        UserError: an invalid address or key, a key sent over plain http, no model name, or a number
            out of its range.
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
    refused: set[str] = dataclasses.field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_key(self.key, "the judge's key")
        _check_address(self.url, with_key=bool(self.key))
        if not self.model:
            raise UserError("the judge's model has no name: give --judge-model")
        check_number("attempts", self.attempts, at_least=1, whole=True)
        check_number("wait", self.wait, at_least=0)
        check_number("judge timeout", self.timeout, above=0)


def _check_address(url: str, with_key: bool) -> None:
    """Raises `UserError` for an invalid address, or for one that would expose the key."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urllib.parse.urlsplit(""), None
    odd = not url.isascii() or not url.isprintable() or " " in url
    if parts.scheme not in ("http", "https") or not host or odd:
        raise UserError(f"judge {url!r} is not an address: give http://HOST/v1 or https://...")
    if parts.username is not None or parts.password is not None:
        raise UserError("the judge's address holds a name or a password: use --judge-key FILE")
    if parts.query or parts.fragment:
        raise UserError("the judge's address has a query (?...) or fragment (#...): leave that out")
    if with_key and parts.scheme == "http" and not _is_loopback(host):
        raise UserError(
            f"judge {url}: http would send the key unencrypted: use https://, or no --judge-key"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_key(key: str, where: str) -> None:
    """Raises `UserError` for an invalid key; the message does not contain it."""
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{where} is not one line of printable ASCII characters without spaces")


def read_key(path: Path) -> str:
    """Reads the key from a file, since a command line is visible to other users.

    Raises:
        UserError: the file cannot be read, is empty or holds no valid key.
    """
    try:
        key = user_path(path).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UserError(f"{path}: no key can be read (the file is not text)") from None
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: no key can be read ({error})") from None
    if not key:
        raise UserError(f"{path}: no key can be read (the file is empty)")
    check_key(key, f"{path}: the key")
    return key


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judge's grade of one turn.

    Attributes:
        score: the grade, 1 to 10; None if no request gave one.
        prompt: the name of the judge's instructions, and the request's text.
        judgment: the text of the last answer received.
        error: the reason that there is no score; empty if there is one.
    """

    score: float | None
    prompt: tuple[str, str]
    judgment: str = ""
    error: str = ""


def check_judge(judge: Judge) -> None:
    """Sends a short test request, so that an unusable judge fails before any long computation.

    Raises:
        RunFailed: no attempt gets an answer in the protocol's format.
    """
    _, error = _attempts(judge, FIRST_QUESTION, lambda reply: "")
    if error:
        raise RunFailed(f"the judge at {judge.url} does not answer: {error}")


def grade(
    judge: Judge, question: str, category: str, turns: Sequence[str], answers: Sequence[str]
) -> Verdict:
    """Asks the judge to grade the last of one or two turns.

    If all attempts fail, the verdict has no score.

    Args:
        judge: the judge.
        question: the question's id.
        category: the question's category, which selects the judge's instructions.
        turns: the user's turns.
        answers: the model's answers to them.

    Raises:
        RunFailed: the endpoint rejects the requests for a reason that no retry can fix.
    """
    reference = judge.references.get(question)
    name, messages = judge_messages(judge.prompts, category, turns, answers, reference)
    reply, error = _attempts(
        judge,
        messages,
        lambda reply: "no grade from 1 to 10 in its answer" if read_rating(reply) is None else "",
    )
    score = None if error else read_rating(reply)
    return Verdict(score, (name, messages[-1]["content"]), reply, error)


def _attempts(
    judge: Judge, messages: Sequence[Mapping[str, str]], problem: Callable[[str], str]
) -> tuple[str, str]:
    """Returns the judge's last answer and the reason that it is unusable, empty if it is usable.

    Args:
        judge: the judge.
        messages: the request's messages.
        problem: text -> the reason that it is unusable, or empty.
    """
    reply, error, requested_wait = "", "", 0.0
    for attempt in range(judge.attempts):
        if attempt:
            backoff = judge.wait * 2.0 ** min(attempt - 1, 30)
            judge.sleep(min(max(backoff, requested_wait), LONGEST_WAIT))
        requested_wait = 0.0
        try:
            reply = ask(judge, messages)
        except Refused as refusal:
            return reply, _line(judge, refusal)
        except Busy as busy:
            error, requested_wait = _line(judge, busy), busy.wait
            continue
        except (OSError, http.client.HTTPException, ValueError) as failure:
            error = _line(judge, f"{type(failure).__name__}: {failure}")
            continue
        error = problem(reply)
        if not error:
            break
    return reply, error


def _line(judge: Judge, text: object) -> str:
    """Shortens a text to one line and removes the key, which an endpoint may have repeated."""
    return "".join(
        each if each.isprintable() else " " for each in _without_key(judge, str(text)).strip()
    )[:DETAIL]


def _without_key(judge: Judge, text: str) -> str:
    return text.replace(judge.key, "[key]") if judge.key else text


def ask(judge: Judge, messages: Sequence[Mapping[str, str]]) -> str:
    """Sends one request and returns the text of the answer.

    An optional field that the endpoint rejects is added to `judge.refused`, and the request is sent
    again without it.

    Raises:
        RunFailed: the endpoint rejects all requests permanently.
        Refused: the endpoint rejects this request permanently.
        Busy: the endpoint failed temporarily, or its answer is too long.
        OSError: the connection failed or timed out.
        HTTPException: the answer is not valid HTTP.
        ValueError: the answer does not have the protocol's format.
    """
    while True:  # ends: every repetition leaves out one more optional field
        body = _body(judge, messages)
        try:
            data = _post(judge, json.dumps(body).encode())
        except urllib.error.HTTPError as error:
            with error:
                why = _reason(_read(error, judge.timeout))
                unknown = _refused_field(body, why) if error.code in (400, 422) else None
                if unknown is None:
                    raise _failure(judge, error, why) from None
                judge.refused.add(unknown)
            continue
        return _without_key(judge, _content(parse_json(data, "its answer")))


def _body(judge: Judge, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Builds a request's body without the fields that the model has rejected."""
    body: dict[str, Any] = {"model": judge.model, "messages": list(messages)}
    limit = next((name for name in TOKEN_LIMITS if name not in judge.refused), None)
    if limit is not None:
        body[limit] = TOKENS
    if "temperature" not in judge.refused:
        body["temperature"] = 0
    return body


def _refused_field(body: Mapping[str, Any], why: str) -> str | None:
    """Returns the optional field of a request that an error names first; None if it names none."""
    places = {
        name: match.start()
        for name in (*TOKEN_LIMITS, "temperature")
        if name in body and (match := re.search(rf"\b{name}\b", why))
    }
    return min(places, key=places.__getitem__) if places else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the other address would get the key, but no request body.

    urllib turns a redirected POST into a GET.
    """

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any
    ) -> None:
        return None


def _post(judge: Judge, body: bytes) -> bytes:
    headers = {"Content-Type": "application/json"}
    if judge.key:
        headers["Authorization"] = f"Bearer {judge.key}"
    request = urllib.request.Request(judge.url.rstrip("/") + "/chat/completions", body, headers)
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if judge.url.startswith("http:"):  # without TLS a proxy would see the key
        handlers.append(urllib.request.ProxyHandler({}))
    with urllib.request.build_opener(*handlers).open(request, timeout=judge.timeout) as response:
        return _read(response, judge.timeout)


def _read(response: Any, timeout: float) -> bytes:
    """Reads a response's bytes, with a limit on their number and on the time.

    Raises:
        Busy: more than `LARGEST` bytes.
        TimeoutError: the response does not end in time.
    """
    end, data = time.monotonic() + timeout, b""
    while part := response.read1(2**16):
        data += part
        if len(data) > LARGEST:
            raise Busy(f"more than {LARGEST} bytes")
        if time.monotonic() > end:
            raise TimeoutError("its answer does not end in time")
    return data


def _reason(data: bytes) -> str:
    """Extracts an error's parameter and message from its body, or else returns the body's text."""
    try:
        error = parse_json(data, "an error")
        error = error.get("error", error) if isinstance(error, dict) else error
        if isinstance(error, dict):
            return f"{error.get('param') or ''} {error.get('message') or ''}".strip()
        return str(error)
    except ValueError:
        return data.decode("utf-8", "replace")


def _failure(judge: Judge, error: urllib.error.HTTPError, why: str) -> Exception:
    """Returns the exception for an HTTP error that no change of the request avoids."""
    code, place = error.code, f"the judge at {judge.url} answers {error.code}"
    if code in FINAL:
        return RunFailed(f"{place}: {FINAL[code]}")
    if 300 <= code < 400:
        where = error.headers.get("Location", "") if error.headers else ""
        why = f"{place}: it has moved to {where or 'elsewhere'}: give that address"
        return RunFailed(_line(judge, why))
    text = f"HTTP {code}: {why}" if why else f"HTTP {code}"
    if 400 <= code < 500 and code not in PASSING:
        return Refused(text)
    after = error.headers.get("Retry-After", "") if error.headers else ""
    return Busy(text, _seconds(after))


def _seconds(after: str) -> float:
    """Parses a Retry-After header, a number or a date, to seconds; 0 if it is neither."""
    after = after.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", after):
        return float(after)
    try:
        when = parsedate_to_datetime(after)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _content(answer: Any) -> str:
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError("no choices[0].message.content in its answer") from None
    if not isinstance(text, str):
        raise ValueError(f"its answer's content is {type(text).__name__}, not text")
    return text
