"""MXFP4 tensors of checkpoints (gpt-oss as published), dequantized one tensor or expert at a time.

A tensor is stored as 4-bit floats, two in a byte, with a power of two for every 32 of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from goat_jax.errors import UserError
from goat_jax.pretrained.safetensors import StoredTensor, Weights

METHOD = "mxfp4"
"""``quant_method`` of the ``quantization_config`` of such checkpoints."""

BLOCKS, SCALES = "_blocks", "_scales"
"""Ends of the names of a tensor's two parts."""

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_MAGNITUDES, *(-each for each in _MAGNITUDES)], np.float32)
_SCALE_BIAS = 127


def mxfp4_only(key: str, value: Any) -> None:
    """Checks the quantization_config of a config.json."""
    method = value.get("quant_method") if isinstance(value, Mapping) else value
    if method != METHOD:
        raise UserError(
            f"config.json: {key} is {method!r}, and only {METHOD} is read: use the checkpoint "
            "before it was quantized"
        )


def dequantize(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Returns the values (..., I, O) of blocks (..., O, G, 16) and scales (..., O, G), bfloat16.

    >>> blocks, scales = np.array([[[0x21] + 15 * [0]]], np.uint8), np.array([[128]], np.uint8)
    >>> dequantize(blocks, scales)[:3, 0].tolist()
    [1.0, 2.0, 0.0]
    """
    pairs = np.stack([_VALUES[blocks & 15], _VALUES[blocks >> 4]], axis=-1)
    scaled = np.ldexp(pairs, (scales.astype(np.int32) - _SCALE_BIAS)[..., None, None])
    values = scaled.astype(ml_dtypes.bfloat16).reshape(*scales.shape[:-1], -1)
    return values.swapaxes(-1, -2)


@dataclasses.dataclass(frozen=True)
class Mxfp4Weights(Weights):
    """Tensors of a checkpoint of which some are MXFP4.

    Attributes:
        folder: the folder with the files, for messages.
        entries: tensor name -> `StoredTensor`, of the dequantized tensor.
        stored: the checkpoint's tensors.
    """

    stored: Weights

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.stored:
            return self.stored[name]
        return dequantize(self.stored[name + BLOCKS], self.stored[name + SCALES])

    def item(self, name: str, index: int) -> np.ndarray:
        if name in self.stored:
            return self.stored.item(name, index)
        parts = (self.stored.item(name + end, index) for end in (BLOCKS, SCALES))
        return dequantize(*parts)


def dequantized(hf: Mapping[str, Any], weights: Weights) -> Weights:
    """Returns the tensors of a checkpoint by the names that they have unquantized.

    Args:
        hf: the checkpoint's config.json.
        weights: the checkpoint's tensors.

    Raises:
        UserError: blocks without scales, or of another shape.
    """
    settings = hf.get("quantization_config")
    if not isinstance(settings, Mapping) or settings.get("quant_method") != METHOD:
        return weights
    entries: dict[str, StoredTensor] = {}
    for name, entry in weights.entries.items():
        if name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS in weights.entries:
            continue
        if not name.endswith(BLOCKS):
            entries[name] = entry
            continue
        whole = name.removesuffix(BLOCKS)
        scales = weights.entries.get(whole + SCALES)
        if scales is None or entry.shape != (*scales.shape, 16):
            raise UserError(
                f"{entry.file}: {whole}{SCALES} does not fit {name}: fetch the checkpoint again"
            )
        *rows, groups = scales.shape
        shape = (*rows[:-1], 32 * groups, rows[-1])
        entries[whole] = StoredTensor(entry.file, "BF16", shape)
    return Mxfp4Weights(weights.folder, entries, weights, left_out=weights.left_out)
