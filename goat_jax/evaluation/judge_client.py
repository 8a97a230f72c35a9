"""A judge behind an endpoint that speaks the OpenAI chat protocol."""

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

from goat_jax.data.tasks.mt_bench import (
    OWN_PROMPTS,
    JudgePrompt,
    judge_messages,
    read_rating,
)
from goat_jax.errors import RunFailed, UserError
from goat_jax.files import parse_json, user_path
from goat_jax.validation.checks import check_number

FINAL = {
    401: "it wants a key, or another one",
    403: "the key may not use it",
    404: "there is nothing at this address, or no such model",
}
"""HTTP errors that end the evaluation."""
PASSING = (408, 409, 425, 429)
"""Errors of the 4xx kind that another attempt may not meet; others are the request's own."""
TOKENS = 2048
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of the field that limits an answer: the protocol's first, and that of newer models."""
LONGEST_WAIT = 120.0
"""Seconds; an endpoint may ask for more, but then another attempt is made early."""
LARGEST = 4 * 2**20
"""Bytes of an answer."""
DETAIL = 200
"""Characters of an error."""
FIRST_QUESTION = [{"role": "user", "content": "Answer with the word yes."}]


class Refused(Exception):
    """An answer to one request that would be the same at another attempt."""


class Busy(Exception):
    """A failure that another attempt may not meet.

    Attributes:
        wait: seconds after which the endpoint asks for it.
    """

    def __init__(self, text: str, wait: float = 0.0):
        super().__init__(text)
        self.wait = wait


@dataclasses.dataclass(frozen=True)
class Judge:
    """An endpoint that grades, and how it is asked.

    Attributes:
        url: the endpoint's address, up to and without /chat/completions.
        model: the judge's name there.
        key: bearer token; empty for none. It is sent to this address and nowhere else.
        prompts: the judge's instructions (`goat_jax.data.tasks.mt_bench`).
        references: question id -> reference answers.
        attempts: requests before a grade is given up.
        wait: seconds before the second attempt; doubled for each further one.
        timeout: seconds for one request.
        sleep: function that waits, for tests.
        refused: fields that the model does not take, filled as it says so.
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
    """Refuses what is no address of an endpoint, or would show the key to everybody between."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urllib.parse.urlsplit(""), None
    odd = not url.isascii() or not url.isprintable() or " " in url
    if parts.scheme not in ("http", "https") or not host or odd:
        raise UserError(f"judge {url!r} is no address: http://HOST/v1 or https://...")
    if parts.username is not None or parts.password is not None:
        raise UserError("the judge's address holds a name or a password: use --judge-key FILE")
    if parts.query or parts.fragment:
        raise UserError("the judge's address ends in ?... or #...: leave that out")
    if with_key and parts.scheme == "http" and not _is_loopback(host):
        raise UserError(
            f"judge {url}: http would show the key to everybody on the way: use https://, or no "
            "--judge-key"
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_key(key: str, where: str) -> None:
    """Refuses a key that cannot be one; the message does not show it."""
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{where} is not one line of printable ASCII characters without spaces")


def read_key(path: Path) -> str:
    """The key in a file, which is not on a command line for everybody to see."""
    try:
        key = user_path(path).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UserError(f"{path}: no key can be read from it (it is not text)") from None
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: no key can be read from it ({error})") from None
    if not key:
        raise UserError(f"{path}: no key can be read from it (it is empty)")
    check_key(key, f"{path}: the key")
    return key


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A judge's answer about one turn.

    Attributes:
        score: 1 to 10; None if no request gave a grade.
        prompt: the name of the judge's instructions, and the request's text.
        judgment: the answer's text, of the last attempt that had any.
        error: why there is no score.
    """

    score: float | None
    prompt: tuple[str, str]
    judgment: str = ""
    error: str = ""


def check_judge(judge: Judge) -> None:
    """Asks something tiny, before anything that takes long depends on the judge.

    Raises:
        RunFailed: no attempt gets an answer in the protocol's form.
    """
    _, error = _attempts(judge, FIRST_QUESTION, lambda said: "")
    if error:
        raise RunFailed(f"the judge at {judge.url} does not answer: {error}")


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
    said, error = _attempts(
        judge,
        messages,
        lambda said: "no grade from 1 to 10 in its answer" if read_rating(said) is None else "",
    )
    score = None if error else read_rating(said)
    return Verdict(score, (name, messages[-1]["content"]), said, error)


def _attempts(
    judge: Judge, messages: Sequence[Mapping[str, str]], problem: Callable[[str], str]
) -> tuple[str, str]:
    """The last text that the judge answered, and why it is of no use; empty if it is.

    Args:
        problem: text -> why it is of no use, or empty.
    """
    said, error, asked_for = "", "", 0.0
    for attempt in range(judge.attempts):
        if attempt:
            backoff = judge.wait * 2.0 ** min(attempt - 1, 30)
            judge.sleep(min(max(backoff, asked_for), LONGEST_WAIT))
        asked_for = 0.0
        try:
            said = ask(judge, messages)
        except Refused as refusal:
            return said, _line(judge, refusal)
        except Busy as busy:
            error, asked_for = _line(judge, busy), busy.wait
            continue
        except (OSError, http.client.HTTPException, ValueError) as failure:
            error = _line(judge, f"{type(failure).__name__}: {failure}")
            continue
        error = problem(said)
        if not error:
            break
    return said, error


def _line(judge: Judge, text: object) -> str:
    """A text in one short line, without the key that an endpoint may have repeated."""
    return "".join(
        each if each.isprintable() else " " for each in _without_key(judge, str(text)).strip()
    )[:DETAIL]


def _without_key(judge: Judge, text: str) -> str:
    return text.replace(judge.key, "[key]") if judge.key else text


def ask(judge: Judge, messages: Sequence[Mapping[str, str]]) -> str:
    """The text that the endpoint answers.

    Raises:
        RunFailed: it refuses for good.
        Refused: it refuses this request for good.
        Busy, OSError, HTTPException, ValueError: it failed, or did not answer in the protocol's
            form.
    """
    while True:
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
    """A request, without the fields that the model has refused."""
    body: dict[str, Any] = {"model": judge.model, "messages": list(messages)}
    limit = next((name for name in TOKEN_LIMITS if name not in judge.refused), None)
    if limit is not None:
        body[limit] = TOKENS
    if "temperature" not in judge.refused:
        body["temperature"] = 0
    return body


def _refused_field(body: Mapping[str, Any], why: str) -> str | None:
    """The optional field of a request that an error names first."""
    places = {
        name: found.start()
        for name in (*TOKEN_LIMITS, "temperature")
        if name in body and (found := re.search(rf"\b{name}\b", why))
    }
    return min(places, key=places.__getitem__) if places else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: another address would get the key, and no question (POST becomes GET)."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def _post(judge: Judge, body: bytes) -> bytes:
    headers = {"Content-Type": "application/json"}
    if judge.key:
        headers["Authorization"] = f"Bearer {judge.key}"
    request = urllib.request.Request(judge.url.rstrip("/") + "/chat/completions", body, headers)
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if judge.url.startswith("http:"):  # a proxy would see the key
        handlers.append(urllib.request.ProxyHandler({}))
    with urllib.request.build_opener(*handlers).open(request, timeout=judge.timeout) as response:
        return _read(response, judge.timeout)


def _read(response: Any, timeout: float) -> bytes:
    """A response's bytes, which may neither come for ever nor be without end."""
    end, data = time.monotonic() + timeout, b""
    while part := response.read1(2**16):
        data += part
        if len(data) > LARGEST:
            raise Busy(f"more than {LARGEST} bytes")
        if time.monotonic() > end:
            raise TimeoutError("its answer does not end in time")
    return data


def _reason(data: bytes) -> str:
    """What an error's body says: its parameter and message, or its text."""
    try:
        error = parse_json(data, "an error")
        error = error.get("error", error) if isinstance(error, dict) else error
        if isinstance(error, dict):
            return f"{error.get('param') or ''} {error.get('message') or ''}".strip()
        return str(error)
    except ValueError:
        return data.decode("utf-8", "replace")


def _failure(judge: Judge, error: urllib.error.HTTPError, why: str) -> Exception:
    """The exception for an HTTP error that no change of the request avoids."""
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
    """Seconds that a Retry-After header asks for, a number or a date; 0 if it is neither."""
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
