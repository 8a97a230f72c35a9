"""GGUF weights under Hugging Face's names, dequantized one tensor at a time."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.errors import UserError
from goat_jax.pretrained.gguf.architectures import GgufArchitecture
from goat_jax.pretrained.gguf.config import (
    LONG_FACTORS,
    ROPE_FACTORS,
    SHORT_FACTORS,
    architecture_of,
    hf_config,
)
from goat_jax.pretrained.gguf.file import GgufFile, import_gguf, read_gguf
from goat_jax.pretrained.safetensors import StoredTensor, Weights

OUTER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
"""llama.cpp's names of the modules outside the layers -> Hugging Face's."""

HEADS_OF = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
"""Modules whose rows llama.cpp reorders -> the config key of their number of heads."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor as it is stored in the file.

    Attributes:
        tensor: the package's tensor, mapped from disk.
        heads: number of heads whose rows have to be reordered; 0 if the rows are in order.
        less: number to subtract from the values.
        expert: the index on a leading axis before them; None without such an axis.
    """

    tensor: Any
    heads: int = 0
    less: float = 0.0
    expert: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values, in torch's order of axes."""
        shape = tuple(int(size) for size in reversed(self.tensor.shape))
        return shape if self.expert is None else shape[1:]


@dataclasses.dataclass(frozen=True)
class GgufWeights(Weights):
    """Hugging Face tensor name -> float32 array, dequantized at each access.

    Attributes:
        folder: the .gguf file, for messages.
        entries: tensor name -> `StoredTensor`; the dtype is F32, as reading returns it.
        stored: tensor name -> `Stored`.
    """

    stored: Mapping[str, Stored]

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self.stored[name]
        values = _dequantise(stored.tensor, self.folder, stored.expert)
        values = values.reshape(stored.shape) - np.float32(stored.less)
        return undo_permutation(values, stored.heads) if stored.heads else values


def open_gguf(path: str | Path) -> tuple[dict[str, Any], GgufWeights]:
    """Opens a GGUF file as a config.json's content and weights with Hugging Face names.

    Returns:
        The config, and the weights, which are read on access, in torch's layout (out, in).

    Raises:
        UserError: not a GGUF file, a damaged one, an unsupported architecture, tensor, setting or
            quantization, or the package gguf is not installed.

    >>> open_gguf("nowhere.gguf")
    Traceback (most recent call last):
    goat_jax.errors.UserError: nowhere.gguf: no such file
    """
    file = read_gguf(path)
    config = hf_config(file)
    row = architecture_of(file)
    stored: dict[str, Stored] = {}
    for name, tensor in file.tensors.items():
        if name in (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS):
            continue
        found, part = _hf_name(name, file, row), _rotated(name)
        less = 1.0 if row.norms_from_1 and name.endswith("norm.weight") else 0.0
        if "{}" in found:
            for expert in range(int(tensor.shape[-1])):
                stored[found.format(expert)] = Stored(tensor, expert=expert)
        else:
            heads = config[HEADS_OF[part]] if row.permuted and part else 0
            stored[found] = Stored(tensor, heads, less)
    _check_quantisation(file)
    entries = {name: StoredTensor(file.path, "F32", each.shape) for name, each in stored.items()}
    return config, GgufWeights(file.path, entries, stored)


def undo_permutation(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of q's or k's weight or bias to Hugging Face's order.

    llama.cpp's converter interleaves the two halves of every head, so that the members of a rotated
    pair are adjacent; this separates the halves again.

    Args:
        rows: (heads * head size, ...).
        heads: number of heads.

    >>> undo_permutation(np.array([0, 2, 1, 3]), heads=1).tolist()
    [0, 1, 2, 3]
    """
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _rotated(name: str) -> str:
    """Returns the key of `HEADS_OF` for a tensor's name, or an empty string."""
    part = name.split(".")[-2] if name.startswith("blk.") else ""
    return part if part in HEADS_OF else ""


def _hf_name(name: str, file: GgufFile, row: GgufArchitecture) -> str:
    module, _, parameter = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    if layer and (found := row.module(layer[2])) is not None:
        return f"model.layers.{layer[1]}.{found}.{parameter}"
    if module in OUTER_NAMES:
        return f"{OUTER_NAMES[module]}.{parameter}"
    raise UserError(
        f"{file.path}: unknown tensor {name}: the model's architecture is not supported"
    )


def _check_quantisation(file: GgufFile) -> None:
    """Dequantizes one row of every type, so that an unsupported one fails before reading."""
    for tensor in {tensor.tensor_type: tensor for tensor in file.tensors.values()}.values():
        _dequantise(tensor, file.path, rows=1)


def _dequantise(
    tensor: Any, path: Path, item: int | None = None, rows: int | None = None
) -> np.ndarray:
    """Returns float32 values: of an item of the first axis, or of some rows, or all."""
    data = tensor.data if item is None else tensor.data[item]
    data = data if rows is None else data.reshape(-1, data.shape[-1])[:rows]
    try:
        values = import_gguf(path).dequantize(data, tensor.tensor_type)
    except RuntimeError:  # raised by the package for a type that it cannot dequantize
        kind = tensor.tensor_type.name
        raise UserError(
            f"{path}: {tensor.name} is quantised as {kind}, which gguf cannot dequantise:"
            " use another quantisation of the model"
        ) from None
    # A copy, since the file may be closed or change; callers get a plain array.
    return np.array(values, np.float32)
