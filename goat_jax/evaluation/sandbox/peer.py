"""Calls between two processes that exchange plain values only (`values`).

The program's process and its test's hold one `Peer` each, over a pair of pipes. Calling a `Remote`
runs the function where it lives. Functions and iterators cross as remotes in both directions, so a
test can hand a function to the program and read a generator that the program returns; no object of
one process is ever in the other.
"""

import builtins
import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

from goat_jax.evaluation.sandbox.values import Malformed, read_message, write_message

LARGEST = 16 * 2**20
"""Bytes of a message."""
LENGTH = 8
"""Bytes in front of a message that give its length."""
TEXT = 500
"""Characters that are sent of an exception's text."""

GONE = "ended by itself before its last line"
"""Breach of a side whose pipes are closed."""

_STOPS = (StopIteration, StopAsyncIteration)
"""Exceptions with which an iteration ends: sent on, they would end an iteration of the test."""


class Breach(BaseException):
    """The other side is gone, or sent what is no message: nothing it says counts any more."""


class Remote:
    """A function or another object of the other process, which can be called and handed back.

    It cannot be compared and has no truth value: what these give would be up to its owner.
    """

    __slots__ = ("_ref", "_peer")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, peer: "Peer", ref: int | str):
        self._peer, self._ref = peer, ref

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.ask("call", self._ref, [list(args), kwargs])

    def __iter__(self) -> "Remote":
        return self

    def __next__(self) -> Any:
        return self._peer.ask("next", self._ref, [])

    def _refuse(self, *other: Any) -> bool:
        raise TypeError("an object of the program that is no plain value was compared or tested")

    __eq__ = __ne__ = __bool__ = _refuse


class Peer:
    """One end.

    Args:
        reading: file descriptor of the pipe that the other side writes.
        writing: file descriptor of the pipe that the other side reads.
        names: objects that the other side may name.

    Attributes:
        breach: why the other side is not listened to any more; empty while it is.
    """

    def __init__(self, reading: int, writing: int, names: Mapping[str, Any]):
        self._reading, self._writing, self._names = reading, writing, names
        self._lent: list[Any] = []
        self.breach = ""

    def ask(self, what: str, ref: int | str, roots: list[Any]) -> Any:
        """What the other side answers, or the exception it answers with."""
        message, sent = write_message(roots, [], self._lend)
        self._send({"do": what, "on": ref, **message})
        return self.answer(sent)

    def answer(self, sent: list[Any]) -> Any:
        """The next answer; calls of the other side that come before it are served.

        Args:
            sent: the mutable objects that the question handed over.
        """
        while True:
            message = self._receive()
            kind = message.get("do")
            if kind in ("call", "next"):
                self._serve(message)
                continue
            (value,), _ = self._read(message, sent, roots=1)
            if kind == "return":
                return value
            if kind == "stop":
                raise StopIteration
            if kind == "raise":
                raise _exception(message.get("names"), message.get("text"))
            self._broken("sent an answer of no known kind")

    def serve(self) -> None:
        """Answers calls until the other side is gone."""
        while True:
            self._serve(self._receive())

    def _serve(self, message: dict[str, Any]) -> None:
        kind = message.get("do")
        roots, objects = self._read(message, [], roots=2 if kind == "call" else 0)
        try:
            own = self._find(message.get("on"))
            value = own(*roots[0], **roots[1]) if kind == "call" else next(own)
            self._reply({"do": "return"}, value, objects)
        except StopIteration as error:
            if kind == "next":
                self._reply({"do": "stop"}, None, objects)
            else:
                self._reply(described(error), None, objects)
        except Breach:
            raise
        except BaseException as error:
            self._reply(described(error), None, objects)

    def _reply(self, head: dict[str, Any], value: Any, objects: list[Any]) -> None:
        message, _ = write_message([value], objects, self._lend)
        self._send({**head, **message})

    def reply(self, error: BaseException | None) -> None:
        """Answers a question that was not sent: how it went, without a value."""
        self._reply({"do": "return"} if error is None else described(error), None, [])

    def _find(self, ref: Any) -> Any:
        if isinstance(ref, str):
            if ref not in self._names:
                raise NameError(f"name {ref!r} is not defined")
            return self._names[ref]
        if type(ref) is not int or not 0 <= ref < len(self._lent):
            self._broken("named an object that it was not given")
        return self._lent[ref]

    def _lend(self, value: Any) -> list:
        if isinstance(value, Remote):
            return ["yours", value._ref]
        self._lent.append(value)
        return ["mine", len(self._lent) - 1]

    def _handle(self, tag: str, ref: Any) -> Any:
        if tag == "mine":
            return Remote(self, ref)
        if tag == "yours":
            return self._find(ref)
        raise Malformed

    def _read(
        self, message: dict[str, Any], sent: list[Any], roots: int
    ) -> tuple[list[Any], list[Any]]:
        try:
            values, objects = read_message(message, sent, self._handle)
        except (Malformed, MemoryError):
            self._broken("sent values that are not plain data")
        if len(values) != roots:
            self._broken("sent too many values, or too few")
        return values, objects

    def _send(self, message: dict[str, Any]) -> None:
        text = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if len(text) > LARGEST:
            raise ValueError(f"values of more than {LARGEST} bytes")
        left = memoryview(len(text).to_bytes(LENGTH, "big") + text)
        try:
            while left:
                left = left[os.write(self._writing, left) :]
        except OSError:
            self._broken(GONE)

    def _receive(self) -> dict[str, Any]:
        length = int.from_bytes(self._bytes(LENGTH), "big")
        if length > LARGEST:
            self._broken(f"sent more than {LARGEST} bytes")
        try:
            message = json.loads(self._bytes(length).decode("utf-8", "surrogatepass"))
        except (ValueError, RecursionError, MemoryError):
            self._broken("sent what is no message")
        if not isinstance(message, dict):
            self._broken("sent what is no message")
        return message

    def _bytes(self, count: int) -> bytes:
        parts = []
        while count:
            part = os.read(self._reading, min(count, 2**20))
            if not part:
                self._broken(GONE)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _broken(self, why: str) -> Any:
        self.breach = self.breach or why
        raise Breach(why)


def described(error: BaseException) -> dict[str, Any]:
    """An exception as data: the names of its classes, the nearest first, and its text."""
    try:
        text = str(error)[:TEXT]
    except BaseException:
        text = ""
    return {"do": "raise", "names": [each.__name__ for each in type(error).__mro__], "text": text}


def _exception(names: Any, text: Any) -> Exception:
    """An exception of Python's own: the nearest of the classes that it has."""
    names = names if isinstance(names, list) else []
    names = [each for each in itertools.islice(names, TEXT) if isinstance(each, str)]
    text = text[:TEXT] if isinstance(text, str) else ""
    first = names[0][:TEXT] if names else "an exception without a name"
    whole = f"{first}: {text}" if text else first
    for name in names:
        kind = getattr(builtins, name, None)
        if not isinstance(kind, type) or not issubclass(kind, Exception):
            continue
        try:
            if not issubclass(kind, _STOPS):
                return kind(text if name == first else whole)
        except Exception:  # some take more than a text
            continue
    return RuntimeError(whole)
