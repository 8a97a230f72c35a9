"""Digest of all rows of a split, to detect a data set that changed since a run began."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from goat_jax.data.pipeline.dataset import Rows


def fingerprint(rows: Rows) -> str:
    """Returns the SHA-256 of the rows' contents in their order.

    >>> from goat_jax.data.pipeline.tokenize import Encoded
    >>> ids, lengths = [np.array([4, 5])], np.array([2])
    >>> one, other = (Encoded(ids, None, lengths, np.array([label])) for label in (0, 1))
    >>> fingerprint(one) == fingerprint(one), fingerprint(one) == fingerprint(other)
    (True, False)
    """
    digest = hashlib.sha256()
    _add(digest, rows.contents)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, value: object) -> None:
    # Types and lengths are hashed too, so that no bytes can move from one value to the next.
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        _add(digest, [part for item in sorted(value.items()) for part in item])
    elif isinstance(value, list | tuple):
        digest.update(f"{len(value)}:".encode())
        for part in value:
            _add(digest, part)
    else:
        digest.update(repr(value).encode())
