"""Routing of single tokens: the strongest expert of each word or image patch, by layer."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from goat_jax.errors import UserError
from goat_jax.plots.save import save_figure
from goat_jax.plots.style import EXPERTS, new_figure, write_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_TOKENS = 64
_MOST_LAYERS = 4


def expert_colors(weights: np.ndarray) -> np.ndarray:
    """Returns colors (..., 3) for weights (..., E): the strongest expert's, paler for less weight.

    >>> expert_colors(np.array([[1.0, 0.0], [0.0, 0.0]])).round(2).tolist()
    [[0.0, 0.45, 0.7], [1.0, 1.0, 1.0]]
    """
    from matplotlib.colors import to_rgb

    table = np.array([to_rgb(color) for color in EXPERTS])
    full = table[weights.argmax(-1) % len(table)]
    strength = weights.max(-1, keepdims=True)
    total = np.maximum(weights.sum(-1, keepdims=True), 1e-9)
    return 1 - (1 - full) * np.clip(strength / total, 0, 1) * (strength > 0)


def plot_tokens(
    weights: Mapping[str, np.ndarray],
    tokens: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draws the strongest expert of each token (columns) and layer (rows), a panel per module kind.

    Args:
        weights: module -> weights (L, T, E) of the experts.
        tokens: the texts of the T tokens; the first 64 are drawn.
        path: a .png, .pdf or .svg file.
        title: the figure's title.

    Raises:
        UserError: no weights, or another file type.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "tokens.png")
    ...     plot_tokens({"query": np.ones((1, 2, 2)) / 2}, ["a", "b"], path, title="Experts")
    ...     path.is_file()
    True
    """
    if not weights:
        raise UserError("no weights to plot: give those of a run with several experts")
    tokens = [_printable(token) for token in tokens[:_MOST_TOKENS]]
    layers = max(len(table) for table in weights.values())
    experts = max(table.shape[-1] for table in weights.values())
    height = max(0.24 * layers, 0.45)
    size = (max(0.26 * len(tokens) + 2.2, 6.0), len(weights) * (height + 0.42) + 2.0)
    figure = new_figure(figsize=size)
    write_title(figure, title)
    axes = figure.subplots(len(weights), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, table) in zip(axes, weights.items(), strict=True):
        colors = expert_colors(table[:, : len(tokens)])
        ax.imshow(colors, aspect="auto", interpolation="nearest")
        ax.set_title(name, loc="left", fontsize=9)
        ax.set_yticks(range(0, layers, max(1, layers // 8)))
        ax.tick_params(labelsize=8, length=2)
    axes[-1].set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
    figure.supylabel("layer", fontsize=10)
    _expert_legend(figure, experts)
    save_figure(figure, path)


def plot_patches(
    weights: Mapping[str, np.ndarray],
    image: np.ndarray,
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draws the strongest expert of each patch of an image, for some layers and each module kind.

    Args:
        weights: module -> weights (L, T, E) of the experts. The patches are the largest square
            number of tokens at the end; tokens before them, such as a class token, are left out.
        image: the image (H, W, 3), in any range.
        path: a .png, .pdf or .svg file.
        title: the figure's title.

    Raises:
        UserError: no weights, or another file type.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path, image = pathlib.Path(folder, "patches.png"), np.zeros((8, 8, 3))
    ...     plot_patches({"query": np.ones((1, 5, 2)) / 2}, image, path, title="Experts")
    ...     path.is_file()
    True
    """
    square = {name: table for name, table in weights.items() if table.ndim == 3}
    if not square:
        raise UserError("no weights to plot: give those of a run with several experts")
    shown = _pixels(image)
    layers = max(len(table) for table in square.values())
    chosen = sorted({round(place) for place in np.linspace(0, layers - 1, _MOST_LAYERS)})
    columns = len(chosen) + 1
    size = (1.6 * columns + 1.4, 1.75 * len(square) + 0.9)
    figure = new_figure(figsize=size)
    write_title(figure, title)
    axes = figure.subplots(len(square), columns, squeeze=False)
    for row, (name, table) in zip(axes, square.items(), strict=True):
        row[0].imshow(shown)
        row[0].set_ylabel(name, fontsize=8)
        for ax, layer in zip(row[1:], chosen, strict=True):
            ax.imshow(shown.mean(-1), cmap="gray", extent=(0, 1, 0, 1))
            colors = _patch_colors(table[layer])
            ax.imshow(colors, alpha=0.75, extent=(0, 1, 0, 1), interpolation="nearest")
            ax.set_title(f"layer {layer}", fontsize=8)
    for ax in axes.ravel():
        ax.set_xticks([])
        ax.set_yticks([])
    _expert_legend(figure, max(table.shape[-1] for table in square.values()))
    save_figure(figure, path)


def _patch_colors(weights: np.ndarray) -> np.ndarray:
    side = math.isqrt(len(weights))
    return expert_colors(weights[len(weights) - side * side :]).reshape(side, side, 3)


def _pixels(image: np.ndarray) -> np.ndarray:
    low, high = float(image.min()), float(image.max())
    return (image - low) / (high - low) if high > low else np.zeros(image.shape)


def _printable(token: str) -> str:
    """Returns a token as it can be drawn: leading spaces visible, dollars escaped (they start a
    formula in matplotlib)."""
    text = token.replace("\u2581", "\u00b7").replace("\u0120", "\u00b7").replace("\u010a", "\\n")
    return text.replace("$", r"\$")[:14]


def _expert_legend(figure: Figure, experts: int) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=EXPERTS[e % len(EXPERTS)], label=str(e)) for e in range(experts)]
    figure.legend(handles=patches, title="expert", loc="outside right center", frameon=False)
