"""Answers and grades written as they come, so that a killed evaluation continues where it was.

A journal is a file of JSON lines: the first names what its results depend on, each further one is
a result. It is only a help, removed when the evaluation is done: one of other settings, or a line
that is not whole, is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from goat_jax.files import parse_json, write_whole


class Journal:
    """Results by what they depend on.

    Args:
        path: the file; None keeps nothing.
        settings: what all results depend on, as JSON data.
    """

    def __init__(self, path: Path | None, settings: Any = None):
        self.path = path
        self._results: dict[str, Any] = {}
        self._lock = threading.Lock()
        if path is None:
            return
        head = json.dumps({"settings": digest(settings)})
        lines = [head, *self._read(path, head)]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(f"{line}\n" for line in lines))

    def _read(self, path: Path, head: str) -> list[str]:
        """The lines of results that a file with this head has."""
        try:
            first, *lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, ValueError):
            return []
        if first != head:
            return []
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                found = parse_json(line, str(path))
                self._results[found["key"]] = found["result"]
                kept.append(line)
        return kept

    def get(self, key: Any) -> Any:
        """The result of what it depends on; None if there is none."""
        return self._results.get(digest(key))

    def put(self, key: Any, result: Any) -> None:
        """Writes a result, a whole line."""
        if self.path is None:
            return
        line = json.dumps({"key": digest(key), "result": result}) + "\n"
        with self._lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(line)


NOTHING_KEPT = Journal(None)
"""Keeps nothing."""


def digest(data: Any) -> str:
    """A short text that stands for JSON data.

    >>> digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})
    True
    """
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
