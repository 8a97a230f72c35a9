"""Saves answers and grades as they arrive, so that a killed evaluation can continue.

A journal is a file of JSON lines: the first holds a digest of the settings that the results depend
on, each further line is a result. It is only a cache and is removed when the evaluation is done: a
journal of other settings is ignored, and so is an incomplete line.
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
    """A cache of results, each stored under a digest of its inputs.

    Args:
        path: the journal's file; None saves nothing.
        settings: the settings that all results depend on, as JSON data.
    """

    def __init__(self, path: Path | None, settings: object = None):
        self.path = path
        self._results: dict[str, Any] = {}
        self._lock = threading.Lock()
        # Written with the first result: an evaluation that is refused leaves no file.
        self._unwritten: list[str] = []
        if path is not None:
            head = json.dumps({"settings": digest(settings)})
            self._unwritten = [head, *self._read(path, head)]

    def _read(self, path: Path, head: str) -> list[str]:
        """Loads the results of a file whose first line is `head`, and returns their lines."""
        try:
            first, *lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, ValueError):
            return []
        if first != head:
            return []
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = parse_json(line, str(path))
                self._results[entry["key"]] = entry["result"]
                kept.append(line)
        return kept

    def get(self, key: object) -> Any:
        """Returns the result stored for these inputs; None if there is none."""
        return self._results.get(digest(key))

    def put(self, key: object, result: object) -> None:
        """Appends a result to the file, as one complete line."""
        if self.path is None:
            return
        line = json.dumps({"key": digest(key), "result": result}) + "\n"
        with self._lock:
            if self._unwritten:
                # Rewriting the file drops an incomplete last line: what follows is a new line.
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self.path, "".join(f"{each}\n" for each in self._unwritten))
                self._unwritten = []
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)


NOTHING_KEPT = Journal(None)
"""A journal that saves nothing."""


def digest(data: object) -> str:
    """Returns a short hash of JSON data.

    >>> digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})
    True
    """
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
