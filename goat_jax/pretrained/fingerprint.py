"""Fingerprint of a set of weights: equal strings mean bitwise equal weights."""

import hashlib
import json

import numpy as np

from goat_jax.pretrained.safetensors import Weights


def fingerprint(weights: Weights) -> str:
    """Computes SHA-256 (64 hex digits) over all tensors' names, stored dtypes, shapes and bytes.

    Tensors are taken in the order of their names, one in memory at a time. The result does not
    depend on how they are distributed over files.

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
