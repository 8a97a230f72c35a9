"""One short string that says whether two sets of weights are the same, bit by bit."""

import hashlib
import json

import numpy as np

from goat_jax.pretrained.safetensors import Weights


def fingerprint(weights: Weights) -> str:
    """SHA-256 (64 hex digits) over name, stored dtype, shape and bytes of every tensor, by name.

    It does not depend on how the tensors are spread over files, only on what they are. One tensor
    is in memory at a time.

    >>> from pathlib import Path
    >>> from goat_jax.pretrained.safetensors import WeightFiles
    >>> fingerprint(WeightFiles(Path("."), {}))[:8]
    'e3b0c442'
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        entry = weights.entries[name]
        # A line of JSON before each tensor's bytes: no two different sets give the same stream.
        digest.update(json.dumps([name, entry.dtype, entry.shape]).encode() + b"\n")
        digest.update(np.ascontiguousarray(weights[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
