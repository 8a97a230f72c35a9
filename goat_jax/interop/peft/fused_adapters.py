"""Adapters of linear layers that other programs have as one and the model has as several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from goat_jax.errors import UserError
from goat_jax.interop.import_adapter import Imported
from goat_jax.interop.low_rank import LowRank
from goat_jax.models.fused import Fused


def stored_name(name: str, fused: Sequence[Fused]) -> str:
    """Returns the name of the stored layer that a module is a part of, or else its own name."""
    return next((whole for each in fused if (whole := each.whole_name(name))), name)


def join_adapters(
    modules: Mapping[str, LowRank], fused: Sequence[Fused], config: Any
) -> dict[str, LowRank]:
    """Returns the adapters of the stored layers, whose changes are the parts' side by side.

    The ranks add up: the first factors stand side by side, the second ones in blocks.

    Args:
        modules: module -> its adapter.
        fused: the stored layers.
        config: the model's config.

    Raises:
        UserError: a part has DoRA's magnitudes and another one of its layer has none.
    """
    joined: dict[str, LowRank] = {}
    for name, own in modules.items():
        each = next((each for each in fused if each.whole_name(name)), None)
        whole = stored_name(name, fused)
        if each is None or whole in joined:
            joined.setdefault(whole, own)
            continue
        parts = [modules.get(part) for part in each.part_names(whole) or ()]
        joined[whole] = _joined(whole, parts, each.sizes(config))
    return joined


def _joined(name: str, parts: Sequence[LowRank | None], sizes: Sequence[int]) -> LowRank:
    a = np.concatenate([part.a for part in parts if part is not None], axis=1)
    b = np.zeros((a.shape[1], sum(sizes)), np.float32)
    magnitudes, row, column = [], 0, 0
    for part, size in zip(parts, sizes, strict=True):
        if part is not None:
            rows = slice(row, row + part.b.shape[0])
            b[rows, column : column + size] = part.scale * part.b
            row = rows.stop
        magnitudes.append(None if part is None else part.magnitude)
        column += size
    given = [magnitude for magnitude in magnitudes if magnitude is not None]
    if given and len(given) < len(parts):
        raise UserError(
            f"{name} is one layer in transformers, and DoRA scales only some of its parts: train "
            "all of them, or use --to merged"
        )
    return LowRank(a, b, 1.0, np.concatenate(given) if given else None, False)


def split_adapter(adapter: Imported, fused: Sequence[Fused], config: Any) -> Imported:
    """Returns an adapter with those of stored layers as adapters of the model's modules.

    Args:
        adapter: the adapter as read.
        fused: the stored layers.
        config: the model's config.

    Raises:
        UserError: the adapter is not low-rank, so it has no parts.
    """
    parts: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for name, arrays in adapter.modules.items():
        for each in fused:
            names = each.part_names(f".{name}")
            if names is None:
                continue
            if extra := set(arrays) - {"a", "b", "magnitude"}:
                raise UserError(
                    f"{adapter.source}: {name} has {', '.join(sorted(extra))}, and the model has "
                    "this layer in parts: only LoRA and DoRA can be read"
                )
            parts[name] = {
                part.removeprefix("."): {
                    key: value if key == "a" else value[..., outputs]
                    for key, value in arrays.items()
                }
                for part, outputs in zip(names, each.ranges(config), strict=True)
            }
    if not parts:
        return adapter
    whole = {name: {name: arrays} for name, arrays in adapter.modules.items()}
    return dataclasses.replace(
        adapter,
        modules={k: v for own in (whole | parts).values() for k, v in own.items()},
        overrides=tuple(
            (tuple(part for name in group for part in parts.get(name, {name: None})), values)
            for group, values in adapter.overrides
        ),
    )
