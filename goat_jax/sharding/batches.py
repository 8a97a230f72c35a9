"""Batches on a mesh: every process reads its rows, and together they form one global array."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from goat_jax.errors import UserError
from goat_jax.sharding.rules import ShardingRules


def local_rows(rules: ShardingRules, rows: int) -> slice:
    """Returns the rows of a global batch that this process's devices hold.

    Raises:
        UserError: the rows are not contiguous.
    """
    indices = rules.batch.addressable_devices_indices_map((rows,)).values()
    parts = sorted({part[0].indices(rows)[:2] for part in indices if part is not None})
    if any(one[1] != other[0] for one, other in itertools.pairwise(parts)):
        raise UserError(
            "the rows of this process's devices are not contiguous: let mesh axes data and "
            "fsdp come first, in the order of the processes"
        )
    return slice(parts[0][0], parts[-1][1])


def share_of_rows(rules: ShardingRules, rows: int) -> tuple[int, int]:
    """Returns (index, count): this process reads shard `index` of `count` equal ones of a batch.

    Raises:
        UserError: the processes hold different numbers of rows.
    """
    local = local_rows(rules, rows)
    size = local.stop - local.start
    if rows % size or local.start % size:
        raise UserError(
            f"the processes hold unequal shares of {rows} rows: give every process the same "
            "number of devices"
        )
    return local.start // size, rows // size


def put_batch(batch: Mapping[str, Any], rules: ShardingRules, rows: int) -> dict[str, Any]:
    """Builds a global batch on the mesh from this process's rows.

    Args:
        batch: arrays whose first axis is this process's shard (`share_of_rows`).
        rules: gives the batch sharding.
        rows: number of rows of the global batch.
    """
    first = local_rows(rules, rows).start

    def put(array: ArrayLike) -> jax.Array:
        values = np.asarray(array)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            low, high, _ = (index[0] if index else slice(None)).indices(rows)
            return values[low - first : high - first]

        shape = (rows, *values.shape[1:])
        return jax.make_array_from_callback(shape, rules.batch, part)

    return {name: put(array) for name, array in batch.items()}


def put_whole_batch(batch: Mapping[str, Any], rules: ShardingRules) -> dict[str, Any]:
    """Puts a batch on the mesh where every process has all rows and keeps those of its devices."""

    def put(array: ArrayLike) -> jax.Array:
        values = np.asarray(array)
        return jax.make_array_from_callback(values.shape, rules.batch, lambda i: values[i or ()])

    return {name: put(array) for name, array in batch.items()}
