"""Remote calls between two processes that exchange only plain values (`values`).

The program's process and its test's process hold one `Peer` each, over a pair of pipes. Calling a
`RemoteObject` runs the function in the process that owns it. Functions and iterators are sent as
such objects in both directions, so a test can pass a function to the program and read a generator
that the program returns. No object of one process is ever in the other.
"""

import builtins
import itertools
import json
import os
from collections.abc import Mapping
from typing import Any, NoReturn

from goat_jax.evaluation.sandbox.values import Malformed, read_message, write_message

LARGEST = 16 * 2**20
"""Largest message, in bytes."""
LENGTH = 8
"""Number of bytes before a message that give its length."""
TEXT = 500
"""Longest text of an exception that is sent, in characters."""

GONE = "ended by itself before its last line"
"""Breach of a process whose pipes are closed."""

_STOPS = (StopIteration, StopAsyncIteration)
"""Exceptions that end an iteration. They are not passed on: they would end a loop of the test."""


class Breach(BaseException):
    """The other process is gone or broke the protocol, so nothing more from it is accepted."""


class RemoteObject:
    """A function or other object of the other process, which can be called and sent back.

    It cannot be compared and has no truth value, because the untrusted process would decide them.
    """

    __slots__ = ("_peer", "_ref")

    def __init__(self, peer: "Peer", ref: int | str):
        self._peer, self._ref = peer, ref

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.ask("call", self._ref, [list(args), kwargs])

    def __iter__(self) -> "RemoteObject":
        return self

    def __next__(self) -> Any:
        return self._peer.ask("next", self._ref, [])

    def _refuse(self, *other: Any) -> bool:
        raise TypeError("an object of the program that is not a plain value was compared or tested")

    __eq__ = __ne__ = __bool__ = _refuse


class Peer:
    """One end of the connection between the two processes.

    Args:
        reading: the file descriptor of the pipe that the other process writes to.
        writing: the file descriptor of the pipe that the other process reads from.
        names: the objects that the other process may refer to by name.

    Attributes:
        breach: the reason that the other process is no longer trusted to answer; empty before.
    """

    def __init__(self, reading: int, writing: int, names: Mapping[str, Any]):
        self._reading, self._writing, self._names = reading, writing, names
        self._lent: list[Any] = []
        self.breach = ""

    def ask(self, what: str, ref: int | str, roots: list[Any]) -> Any:
        """Sends a request and returns the answer, or raises the exception that is the answer."""
        message, sent = write_message(roots, [], self._lend)
        self._send({"do": what, "on": ref, **message})
        return self.answer(sent)

    def answer(self, sent: list[Any]) -> Any:
        """Waits for the next answer and serves calls of the other process that arrive before it.

        Args:
            sent: the mutable objects that the request passed, which the answer may change.

        Raises:
            Breach: the other process is gone or broke the protocol.
            StopIteration: the iterator that was asked for its next value is exhausted.
            Exception: the exception that the call raised in the other process.
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
        """Serves calls until the other process is gone.

        Raises:
            Breach: the other process is gone or broke the protocol.
        """
        while True:
            self._serve(self._receive())

    def _serve(self, message: dict[str, Any]) -> None:
        kind = message.get("do")
        roots, objects = self._read(message, [], roots=2 if kind == "call" else 0)
        try:
            target = self._find(message.get("on"))
            value = target(*roots[0], **roots[1]) if kind == "call" else next(target)
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

    def _reply(self, head: dict[str, Any], value: object, objects: list[Any]) -> None:
        message, _ = write_message([value], objects, self._lend)
        self._send({**head, **message})

    def reply(self, error: BaseException | None) -> None:
        """Sends an answer that nobody requested: success or an exception, without a value."""
        self._reply({"do": "return"} if error is None else described(error), None, [])

    def _find(self, ref: object) -> Any:
        if isinstance(ref, str):
            if ref not in self._names:
                raise NameError(f"name {ref!r} is not defined")
            return self._names[ref]
        if type(ref) is not int or not 0 <= ref < len(self._lent):
            self._broken("named an object that it was not given")
        return self._lent[ref]

    def _lend(self, value: object) -> list:
        if isinstance(value, RemoteObject):
            return ["yours", value._ref]
        self._lent.append(value)
        return ["mine", len(self._lent) - 1]

    def _handle(self, tag: str, ref: int | str) -> Any:
        if tag == "mine":
            return RemoteObject(self, ref)
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
            self._broken("sent something that is not a message")
        if not isinstance(message, dict):
            self._broken("sent something that is not a message")
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

    def _broken(self, why: str) -> NoReturn:
        self.breach = self.breach or why
        raise Breach(why)


def described(error: BaseException) -> dict[str, Any]:
    """Describes an exception as data: the names of its classes, nearest first, and its text."""
    try:
        text = str(error)[:TEXT]
    except BaseException:
        text = ""
    return {"do": "raise", "names": [each.__name__ for each in type(error).__mro__], "text": text}


def _exception(names: object, text: object) -> Exception:
    """Rebuilds an exception as the nearest of its classes that is a Python builtin."""
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
        except Exception:  # the constructors of some classes need more than a text
            continue
    return RuntimeError(whole)
