"""Dataclasses whose fields are settings: their type, and the test for one."""

import dataclasses
from typing import Any, ClassVar, Protocol, TypeGuard


class Dataclass(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def is_record(value: object) -> TypeGuard[Dataclass]:
    """True for an instance of a dataclass; `dataclasses.is_dataclass` is true for classes, too."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
