"""Memory of the devices, and the rows of a micro-batch that it holds: a rough rule, stated."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import jax

SHARE = 0.5
"""Share of the memory that a step's activations may take; the rest is for weights and compiler."""

WIDTHS_PER_LAYER = 50
"""Hidden vectors that a block keeps per token for the backward pass. `goat-jax plan` gives 50 for
MiniLM with GOAT of rank 32 in float32, without the attention weights. A further row takes 0.88 of
what the rule says in RoBERTa-base's step compiled for CPUs (128 tokens, rank 32), 0.86 in CLIP
ViT-B/32's (rank 8), 0.80 in SmolLM2-135M's (256 tokens, rank 32, logits included)."""

LAYERS_WITH_REMAT = 2
"""Layers whose values are held at a time if the others are computed again."""


def device_memory() -> int:
    """Returns one device's memory in bytes; a CPU's is that of the host.

    >>> device_memory() > 2**20
    True
    """
    reported = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return int(reported) if reported else host_memory()


def host_memory() -> int:
    """Returns the host's memory in bytes, or the limit of this process's container if lower."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        file = Path("/sys/fs/cgroup", limit)
        text = file.read_text().strip() if file.is_file() else ""
        sizes += [int(text)] if text.isdigit() else []
    return min(sizes)


@dataclasses.dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model that decide its memory.

    Attributes:
        layers: the number of layers.
        width: the hidden size.
        heads: the number of attention heads.
        value_bytes: the bytes of one value.
        remat: whether activations are computed again in the backward pass.
    """

    layers: int
    width: int
    heads: int
    value_bytes: int
    remat: bool

    @property
    def weight_bytes(self) -> int:
        """About the bytes of the blocks' kernels."""
        return 12 * self.layers * self.width**2 * self.value_bytes

    def row_bytes(self, length: int) -> int:
        """About the bytes that a row of `length` tokens keeps for the backward pass.

        In each layer a token keeps `WIDTHS_PER_LAYER` hidden vectors, and its attention weights
        twice; with rematerialization `LAYERS_WITH_REMAT` layers do, and the others one vector.
        """
        token = WIDTHS_PER_LAYER * self.width + 2 * self.heads * length
        layers = LAYERS_WITH_REMAT if self.remat else self.layers
        return length * self.value_bytes * (layers * token + self.layers * self.width)


def rows_that_fit(memory: int, sizes: ModelSizes, length: int) -> int:
    """Returns the largest power of two of rows whose activations fit; 1 if not even one does.

    They may take `SHARE` of the memory that the weights leave.

    Args:
        memory: the device's memory in bytes.
        sizes: the model's sizes.
        length: the number of tokens of a row.

    >>> rows_that_fit(16 * 2**30, ModelSizes(6, 384, 12, 4, False), length=256)
    32
    """
    rows = int(SHARE * (memory - sizes.weight_bytes) / sizes.row_bytes(length))
    return 1 << max(0, rows.bit_length() - 1) if rows > 0 else 1
