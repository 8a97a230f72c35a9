"""Serializes plain values as JSON data, the only data that a program and its test exchange.

A message lists its roots (the values that are sent) and its heap (the mutable containers that they
reach, each written once). Containers that the sender received keep their place in the heap, so that
a function's changes to its arguments reach the caller's objects. An instance of a subclass of a
plain type is sent as the plain type. Any other object stays with its owner and is sent as a number,
a handle.

In JSON, null, booleans, text, floats and integers of up to 1000 bits are written as they are. A
list is a tag followed by its data (`_Writer.value`, `_Reader.value`).
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

DEPTH = 100
"""Deepest nesting of immutable containers; mutable ones are listed side by side in the heap."""
SMALL_INT = 1000
"""Most bits of an integer that is written as a JSON number: Python parses decimal digits slowly."""

MUTABLE: dict[str, type] = {
    "list": list,
    "dict": dict,
    "set": set,
    "bytearray": bytearray,
    "deque": deque,
}
"""Tag -> type of a container that is stored in the heap."""
VIEWS: dict[str, type] = {
    "keys": type({}.keys()),
    "values": type({}.values()),
    "items": type({}.items()),
}


TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(bool, int, float, complex, str, bytes, bytearray, range),
        *(list, tuple, dict, set, frozenset),
    )
}
"""Name -> type that can itself be sent as a value."""


class NotPlain(TypeError):
    """Raised for a value that cannot be sent."""


class Malformed(Exception):
    """Raised for a message that does not have this module's format."""


def write_message(
    roots: Sequence[Any], known: Sequence[Any], handle: Callable[[Any], list]
) -> tuple[dict[str, Any], list[Any]]:
    """Returns the message of some values, and the mutable objects of its heap in their order.

    Args:
        roots: the values to send.
        known: the mutable objects that the receiver already has; they come first in the heap.
        handle: a function that encodes an object that is not plain.

    Raises:
        NotPlain: immutable containers are nested deeper than `DEPTH`.

    >>> write_message([[1], "a"], [], list)[0]
    {'roots': [['at', 0], 'a'], 'heap': [['list', [1]]]}
    """
    writer = _Writer(known, handle)
    written = [writer.value(root) for root in roots]
    return {"roots": written, "heap": writer.contents()}, writer.objects


def read_message(
    message: Any, known: Sequence[Any], handle: Callable[[str, Any], Any]
) -> tuple[list[Any], list[Any]]:
    """Returns the values of a message, and the mutable objects of its heap.

    The known objects are changed in place to their content in the message.

    Args:
        message: the message, untrusted JSON data.
        known: the receiver's objects that the first entries of the heap refer to.
        handle: (tag, number) -> the object of a handle.

    Raises:
        Malformed: the message does not have the format of `write_message`.

    >>> mine = [3]
    >>> message, _ = write_message([(mine, mine)], [], list)
    >>> read_message(message, [mine], list)[0][0][0] is mine
    True
    """
    try:
        heap, roots = message["heap"], message["roots"]
        objects: list[Any] = list(known)
        if len(heap) < len(known):
            raise Malformed
        for tag, _ in heap[len(known) :]:
            objects.append(MUTABLE[tag]())
        reader = _Reader(objects, handle)
        filled = []
        for (tag, content), original in zip(heap, objects, strict=True):
            if not isinstance(original, MUTABLE[tag]):
                raise Malformed
            filled.append(reader.content(tag, content))
        for original, content in zip(objects, filled, strict=True):
            _refill(original, content)
        return [reader.value(root) for root in roots], objects
    except (TypeError, ValueError, LookupError, RecursionError, OverflowError, ArithmeticError):
        raise Malformed from None


class _Writer:
    def __init__(self, known: Sequence[Any], handle: Callable[[Any], list]):
        self.objects = list(known)
        self._places = {id(each): place for place, each in enumerate(known)}
        self.handle = handle

    def value(self, value: object, depth: int = 0) -> Any:
        """Encodes one value; a mutable container is encoded as its place in the heap."""
        kind = type(value)
        if kind in _AS_THEY_ARE:
            return value
        write = _WRITE.get(kind) or next(
            (encode for base, encode in _WRITE.items() if isinstance(value, base)), _write_handle
        )
        return write(self, value, depth)

    def place(self, value: object) -> list:
        """Encodes the place of a mutable container in the heap, adding it if it is new."""
        place = self._places.setdefault(id(value), len(self.objects))
        if place == len(self.objects):
            self.objects.append(value)
        return ["at", place]

    def all(self, values: Iterable[Any], depth: int) -> list[Any]:
        if depth >= DEPTH:
            raise NotPlain(f"a value with tuples nested deeper than {DEPTH}")
        return [self.value(each, depth + 1) for each in values]

    def contents(self) -> list[list]:
        """Encodes the heap, which grows while it is encoded."""
        encoded: list[list] = []
        while len(encoded) < len(self.objects):
            encoded.append(self._content(self.objects[len(encoded)]))
        return encoded

    def _content(self, mutable: Any) -> list:
        tag = _TAGS.get(type(mutable)) or next(
            tag for kind, tag in _TAGS.items() if isinstance(mutable, kind)
        )
        if tag == "bytearray":
            return [tag, bytes(mutable).hex()]
        if tag == "dict":
            pairs = dict.items(mutable)
            return [tag, [[self.value(key), self.value(value)] for key, value in pairs]]
        return [tag, [self.value(each) for each in MUTABLE[tag].__iter__(mutable)]]


def _write_int(writer: _Writer, value: int, depth: int) -> Any:
    plain = int.__pos__(value)
    return plain if plain.bit_length() <= SMALL_INT else ["int", hex(plain)]


def _write_type(writer: _Writer, value: type, depth: int) -> list:
    plain = TYPES.get(value.__name__) is value
    return ["type", value.__name__] if plain else writer.handle(value)


def _write_handle(writer: _Writer, value: object, depth: int) -> list:
    return writer.handle(value)


def _write_items(tag: str) -> Callable[[_Writer, Any, int], list]:
    return lambda writer, value, depth: [tag, *writer.all(value, depth)]


_SCALARS = (type(None), bool, int, float, str)
_AS_THEY_ARE = (type(None), bool, float, str)
_TAGS = {kind: tag for tag, kind in MUTABLE.items()}
# Methods of the plain types are called directly where possible, so that an instance of a subclass
# is written by its plain value and not by the subclass's overrides.
_WRITE: dict[type, Callable[[_Writer, Any, int], Any]] = {
    **dict.fromkeys(MUTABLE.values(), lambda writer, value, depth: writer.place(value)),
    int: _write_int,
    float: lambda writer, value, depth: float.__pos__(value),
    str: lambda writer, value, depth: str.__str__(value),
    complex: lambda writer, value, depth: ["complex", value.real, value.imag],
    bytes: lambda writer, value, depth: ["bytes", bytes.hex(value)],
    tuple: lambda writer, value, depth: ["tuple", *writer.all(tuple.__iter__(value), depth)],
    frozenset: _write_items("frozenset"),
    range: lambda writer, value, depth: ["range", value.start, value.stop, value.step],
    type: _write_type,
    Decimal: lambda writer, value, depth: ["decimal", str(value)],
    **{kind: _write_items(tag) for tag, kind in VIEWS.items()},
    Fraction: lambda writer, value, depth: ["fraction", value.numerator, value.denominator],
}
"""Type -> the function that encodes its values and those of its subclasses."""


class _Reader:
    def __init__(self, objects: Sequence[Any], handle: Callable[[str, Any], Any]):
        self._objects, self._handle = objects, handle

    def value(self, data: object, depth: int = 0) -> Any:
        if not isinstance(data, list):
            if isinstance(data, _SCALARS):
                return data
            raise Malformed
        tag, *rest = data
        if depth > DEPTH:
            raise Malformed
        if tag == "at":
            return self._objects[_place(*rest)]
        if tag in _MADE_OF_TEXT:
            return _MADE_OF_TEXT[tag](*rest)
        if tag in _MADE_OF_VALUES:
            return _MADE_OF_VALUES[tag]([self.value(each, depth + 1) for each in rest])
        return self._handle(tag, _place(*rest) if tag == "mine" else rest[0])

    def content(self, tag: str, content: Any) -> Any:
        """Decodes the content of a mutable container."""
        if tag == "bytearray":
            return bytes.fromhex(content)
        if tag == "dict":
            return [(self.value(key), self.value(value)) for key, value in content]
        return [self.value(each) for each in content]


def _place(number: object) -> int:
    if type(number) is not int or number < 0:
        raise Malformed
    return number


def _refill(mutable: Any, content: Any) -> None:
    if isinstance(mutable, bytearray):
        mutable[:] = content
        return
    mutable.clear()
    if isinstance(mutable, (list, deque)):  # faster than a union
        mutable.extend(content)
    elif isinstance(mutable, dict):
        for key, value in content:
            mutable[key] = value
    else:
        mutable.update(content)


def _read_decimal(text: object) -> Decimal:
    if not isinstance(text, str):
        raise Malformed
    return Decimal(text)


def _read_fraction(top: object, bottom: object) -> Fraction:
    if type(top) is not int or type(bottom) is not int:
        raise Malformed
    return Fraction(top, bottom)


_MADE_OF_TEXT: dict[str, Callable[..., Any]] = {
    "int": lambda text: int(text, 16),
    "complex": lambda real, imaginary: complex(float(real), float(imaginary)),
    "bytes": lambda text: bytes.fromhex(text),
    "range": lambda *ends: range(*ends),
    "type": TYPES.__getitem__,
    "decimal": _read_decimal,
    "fraction": _read_fraction,
}
_MADE_OF_VALUES: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "frozenset": frozenset,
    "keys": lambda values: dict.fromkeys(values).keys(),
    "values": lambda values: dict(enumerate(values)).values(),
    "items": lambda values: dict(values).items(),
}
