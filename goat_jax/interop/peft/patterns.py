"""Values by name in PEFT's configs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def by_pattern(name: str, patterns: Mapping[str, Any] | None, usual: object) -> Any:
    """Returns the value of the first pattern that matches the end of a name, as PEFT does.

    >>> by_pattern("layer.0.query", {"value": 1, "query": 2}, 3)
    2
    """
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return usual
