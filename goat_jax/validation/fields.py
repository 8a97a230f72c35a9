"""Field types with valid ranges, and the checks of configs and parts at construction.

A frozen dataclass declares a field's valid values by its type, ``steps: Count = 150``, and calls
`check_fields` in ``__post_init__``. The words of a command line are parsed by the same types
(`read_words`), so a value is checked by the same rule wherever it comes from.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any

from goat_jax.errors import UserError
from goat_jax.validation.checks import check_choice, check_number
from goat_jax.validation.other_names import did_you_mean, other_name_hint
from goat_jax.validation.records import Dataclass
from goat_jax.validation.renamed import renamed_hint

FLOAT32_MAX, FLOAT32_TINY = 3.4028234e38, 1.1754944e-38
INT32_MAX = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of a field's valid numbers; every limit is optional.

    Attributes:
        at_least: the smallest valid number.
        above: an exclusive lower limit.
        at_most: the largest valid number.
        below: an exclusive upper limit.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf:
    """Set of a field's valid words.

    Attributes:
        known: the valid words; for a mapping, its keys.
    """

    known: Collection[str]


@dataclasses.dataclass(frozen=True)
class NotEmpty:
    """Marks a text field that needs at least one character."""


Name = Annotated[str, NotEmpty()]
Count = Annotated[int, Range(at_least=1)]
Natural = Annotated[int, Range(at_least=0)]
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
Rate = Annotated[float, Range(at_least=0, below=1)]
"""Dropout rate, or decay of a moving average; 1 is excluded, since nothing would remain."""


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """Returns the types of a dataclass's fields by name.

    >>> list(field_types(Range))
    ['at_least', 'above', 'at_most', 'below']
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def check_fields(instance: Dataclass, prefix: str = "") -> None:
    """Checks every field of a frozen dataclass against its type, and converts lists to tuples.

    Args:
        instance: the dataclass under construction.
        prefix: the prefix of the fields' names in errors, such as ``"train."``.

    Raises:
        UserError: a field is not valid; the error names the first one.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Sizes:
    ...     steps: Count = 1
    ...     def __post_init__(self):
    ...         check_fields(self, "train.")
    >>> field_types.cache_clear()
    >>> Sizes.__annotations__ = {"steps": Count}
    >>> Sizes(0)
    Traceback (most recent call last):
    goat_jax.errors.UserError: train.steps 0 is not valid: give a whole number of at least 1
    """
    for name, kind in field_types(type(instance)).items():
        value = getattr(instance, name)
        valid = checked(prefix + name, value, kind)
        if valid is not value:
            object.__setattr__(instance, name, valid)


def checked(name: str, value: object, kind: Any) -> Any:
    """Checks a value and converts it to its type: lists to tuples, integers to floats.

    Args:
        name: the field's name, for errors.
        value: the value.
        kind: the type, with its valid range if it has one.

    Raises:
        UserError: the value is not of the type, or outside of its range.

    >>> checked("mean", [0, 1], tuple[float, ...])
    (0.0, 1.0)
    """
    kind, limits = _bare(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return _checked_union(name, value, kind)
    if kind in (int, float):
        return _checked_number(name, value, kind, limits)
    if kind in (bool, str):
        return _checked_plain(name, value, kind, limits)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _checked_tuple(name, value, kind)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _checked_mapping(name, value, typing.get_args(kind)[1])
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and not isinstance(value, kind):
        if not isinstance(value, Mapping):
            raise UserError(f"{name} {value!r} is not valid: give {describe(kind)}")
        return construct(name, kind, value)
    return value


def construct(name: str, kind: type, values: Mapping[str, Any]) -> Any:
    """Makes a dataclass from the values of its fields by name.

    Args:
        name: the name of what is made, for errors.
        kind: the dataclass.
        values: the values by field.

    Raises:
        UserError: an unknown field, a missing one, or a value that is not valid.
    """
    known = {field.name: field for field in dataclasses.fields(kind)}
    for field in values:
        if field not in known:
            raise UserError(f"{name} has no field {field!r}: it has {', '.join(known)}")
    for field in known.values():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise UserError(f"{name} has no {field.name}, which is required")
    return kind(**values)


def call(
    function: Callable[..., Any], options: Mapping[str, Any], where: str, *, others: bool = False
) -> Any:
    """Calls a function with options by name, each checked against its annotation.

    Args:
        function: any function, also a `functools.partial`.
        options: the options by name; a number or bool for a text parameter is converted to text.
        where: the function's name, for errors.
        others: whether options without a named parameter go to a ``**`` parameter.

    Raises:
        UserError: an unknown option, a missing one, or a value that is not valid.

    >>> call(lambda rank=8: rank, {"rnk": 4}, "demo.py")
    Traceback (most recent call last):
    goat_jax.errors.UserError: demo.py has no option 'rnk' (did you mean 'rank'?): it has rank
    """
    parameters = inspect.signature(function).parameters
    named = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    takes_all = others and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    whole = function.func if isinstance(function, functools.partial) else function
    kinds = typing.get_type_hints(whole, include_extras=True)
    values = {}
    for name, value in options.items():
        if name not in named and not takes_all:
            hint = renamed_hint(name) or did_you_mean(name, named) or other_name_hint(name)
            raise UserError(
                f"{where} has no option {name!r}{hint}: it has {', '.join(named) or 'none'}"
            )
        kind = kinds.get(name, Any) if name in named else Any
        values[name] = checked(f"{where}: {name}", _as_typed(value, kind), kind)
    for name, parameter in parameters.items():
        if name in named and parameter.default is parameter.empty and name not in values:
            raise UserError(f"{where} needs the option {name}")
    return function(**values)


def _as_typed(value: object, kind: Any) -> Any:
    """Converts a number or bool to text if the type is text: a folder may be called 2024."""
    members = [_bare(member)[0] for member in _members(kind)]
    if str in members and not {int, float, bool} & set(members) and isinstance(value, int | float):
        return json.dumps(value)
    return value


def _bare(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns a type without its annotations, and the annotations."""
    if typing.get_origin(kind) is Annotated:
        return kind.__origin__, kind.__metadata__
    return kind, ()


def _members(kind: Any) -> tuple[Any, ...]:
    """Returns the member types of a union without None, or the type itself."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(one for one in typing.get_args(kind) if one is not types.NoneType)
    return (kind,)


def _is_optional(kind: Any) -> bool:
    return types.NoneType in typing.get_args(kind)


def _checked_union(name: str, value: object, kind: Any) -> Any:
    if value is None and _is_optional(kind):
        return None
    members, error = _members(kind), None
    for member in members:
        try:
            return checked(name, value, member)
        except UserError as refused:
            error = refused
    if len(members) == 1:
        raise UserError(f"{error}, or none")
    raise UserError(f"{name} {value!r} is not valid: give {describe(kind)}")


def _checked_number(name: str, value: Any, kind: type, limits: tuple[Any, ...]) -> int | float:
    bounds = next((limit for limit in limits if isinstance(limit, Range)), Range())
    check_number(name, value, **dataclasses.asdict(bounds), whole=kind is int)
    if kind is int:
        if bounds.at_most is None and abs(value) > INT32_MAX:
            raise UserError(f"{name} {value!r} is not valid: give at most {INT32_MAX}")
        return value if type(value) is int else int(value)
    if value and not FLOAT32_TINY <= abs(value) <= FLOAT32_MAX:
        raise UserError(
            f"{name} {value!r} is not valid: float32 holds 0 and magnitudes from 1.2e-38 to 3.4e38"
        )
    return value if type(value) is float else float(value)


def _checked_plain(name: str, value: Any, kind: type, limits: tuple[Any, ...]) -> Any:
    words = next((limit for limit in limits if isinstance(limit, OneOf)), None)
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if words is not None:
        check_choice(name, value, words.known)
    elif not isinstance(value, kind):
        raise UserError(f"{name} {value!r} is not valid: give {describe(kind)}")
    elif kind is str and ("\0" in value or (not value and NotEmpty() in limits)):
        raise UserError(f"{name} {value!r} is not valid: give {describe(kind)} with characters")
    return value


def _checked_tuple(name: str, value: object, kind: Any) -> tuple[Any, ...]:
    inner = typing.get_args(kind)
    if isinstance(value, str) and inner[0] is str:
        value = (value,)  # a single name may be given without a list
    several = len(inner) == 2 and inner[1] is Ellipsis
    if not isinstance(value, list | tuple) or (not several and len(value) != len(inner)):
        raise UserError(f"{name} {value!r} is not valid: give {describe(kind)}")
    kinds = [inner[0]] * len(value) if several else inner
    found = tuple(
        checked(name, one, item_kind) for one, item_kind in zip(value, kinds, strict=True)
    )
    return found


def _checked_mapping(name: str, value: object, inner: object) -> Any:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{name} {value!r} is not valid: give values by name")
    for key, one in value.items():
        if inner is Any:
            _check_finite(f"{name} {key}", one)
        else:
            checked(f"{name} {key}", one, inner)
    return value


def _check_finite(name: str, value: object) -> None:
    """Raises `UserError` for numbers that are not finite, also inside lists and mappings."""
    if isinstance(value, float):
        check_number(name, value)
    if isinstance(value, list | tuple | Mapping):
        for one in value.values() if isinstance(value, Mapping) else value:
            _check_finite(name, one)


def describe(kind: Any) -> str:
    """Describes a type's values in words, for errors and help.

    >>> describe(str | tuple[str, ...]), describe(Positive | None)
    ('a text or a list', 'a number or none')
    """
    kind, limits = _bare(kind)
    members = _members(kind)
    if len(members) > 1 or _is_optional(kind):
        words = [describe(one) for one in members] + (["none"] if _is_optional(kind) else [])
        return " or ".join(words)
    words = next((limit for limit in limits if isinstance(limit, OneOf)), None)
    if words is not None:
        return ("one of " if len(words.known) > 1 else "") + ", ".join(words.known)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    origin = typing.get_origin(kind)
    if origin is tuple:
        inner = typing.get_args(kind)
        return "a list" if Ellipsis in inner else f"a list of {len(inner)}"
    return names.get(kind, "values by name" if origin or dataclasses.is_dataclass(kind) else "it")


def read_words(name: str, words: Sequence[str], kind: Any) -> Any:
    """Parses the words of a command line to a value, which is not checked yet.

    Args:
        name: the field's name, for errors.
        words: the words after the name.
        kind: the field's type.

    Raises:
        UserError: fewer or more words than the type takes.

    >>> read_words("a", ["2"], float), read_words("b", ["x", "y"], str | tuple[str, ...])
    (2.0, ('x', 'y'))
    >>> read_words("c", ['["x"]'], str | tuple[str, ...]), read_words("d", ["None"], int | None)
    (('x',), None)
    """
    kind, _ = _bare(kind)
    members = [_bare(member)[0] for member in _members(kind)]
    if len(words) == 1 and _is_optional(kind) and words[0].lower() in ("none", "null"):
        return None
    if len(words) == 1 and words[0][:1] in ("[", "{") and members != [str]:
        value = read_value(words[0])
        return tuple(value) if isinstance(value, list) else value
    origins = [typing.get_origin(member) for member in members]
    if any(isinstance(one, type) and issubclass(one, Mapping) for one in origins):
        return _pairs(name, words)
    if tuple in origins and (len(members) == 1 or len(words) != 1):
        inner = _bare(typing.get_args(members[origins.index(tuple)])[0])[0]
        return tuple(words) if inner is str else tuple(map(read_value, words))
    if not words and members == [bool]:
        return True
    if len(words) != 1:
        raise UserError(f"{name} takes one value, not {len(words)}: give {describe(kind)}")
    if members == [Any]:
        return read_value(words[0])
    if members == [bool]:
        return {"true": True, "false": False}.get(words[0].lower(), words[0])
    if str in members and not {int, float} & set(members):
        return words[0]
    return _number(words[0], (float,) if float in members else (int, float))


def _number(word: str, kinds: Sequence[type] = (int, float)) -> Any:
    for kind in kinds:
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _pairs(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Parses ``NAME=VALUE`` words to a dict."""
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"{name} {word!r} is not of the form NAME=VALUE")
        pairs[key] = read_value(value)
    return pairs


def read_value(text: str) -> Any:
    """Parses a text as JSON; if it is not JSON, as a number such as ``nan``, or else as text.

    >>> read_value("0.5"), read_value("true"), read_value("rte"), read_value('["a"]')
    (0.5, True, 'rte', ['a'])
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _number(text) if text.strip() else text
