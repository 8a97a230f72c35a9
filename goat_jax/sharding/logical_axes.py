"""The logical axes of every array of a model: which side of which kernel faces what."""

from __future__ import annotations

from flax import nnx

from goat_jax.nn.dense import Dense
from goat_jax.nn.modules import (
    Constant,
    Embedding,
    LayerNorm,
    PatchEmbedding,
    Projection,
    RMSNorm,
)
from goat_jax.nn.named_modules import Site

Axes = tuple[str | None, ...]

INWARD = {"query", "key", "value", "gate", "up"}
"""Parts of a block that lead from the residual stream into its heads or its feed-forward."""

OUTWARD = {"attention_out", "down"}
"""Parts of a block that lead back."""

ADAPTER = {
    "a": ("in", None),
    "b": (None, "out"),
    "kernels": ("in", "out"),
    "u": ("in", None),
    "vt": (None, "out"),
    "magnitude": ("out",),
    "gain": ("out",),
    "router": ("in", None),
}
"""Array of an adapter -> which side of the kernel its last axes follow. Cores and all else are
whole."""

WHOLE_IF_SMALL = {"router"}
"""Those that are cut only where a stack of them is large: with its two moments, a replicated router
(I, E) of eight experts is a tenth of what each of 16 devices holds of a 7B model."""

PARAMETERS: dict[type[nnx.Module], dict[str, Axes]] = {
    Dense: {"kernel": ("in", "out"), "bias": ("out",)},
    Projection: {"kernel": ("embed", "vocab"), "bias": ("vocab",)},
    PatchEmbedding: {"kernel": (None, None, None, "embed"), "bias": (None,)},
    Embedding: {"table": ("vocab", "embed")},
    LayerNorm: {"scale": (None,), "bias": (None,)},
    RMSNorm: {"scale": (None,)},
    Constant: {"value": ()},
}
"""Module -> parameter -> the logical names of its last axes; in and out depend on the place."""


def sides(site: Site) -> dict[str, str | None]:
    """What the input and the output of a linear module face.

    >>> from goat_jax.models.encoder.model import Encoder, tiny_config
    >>> from goat_jax.nn.named_modules import find_sites
    >>> sites = find_sites(Encoder(tiny_config(), rngs=nnx.Rngs(0)))
    >>> sides(next(site for site in sites if site.path[-1] == "down"))
    {'in': 'inner', 'out': 'embed'}
    """
    part = site.path[-1] if site.path else ""
    if part in OUTWARD:
        return {"in": "inner", "out": "embed"}
    return {"in": "embed", "out": "inner" if part in INWARD else None}


def parameter_axes(site: Site, name: str, rank: int) -> Axes:
    """The logical axes of a module's parameter of `rank` axes; leading ones (layers) have none."""
    facing = sides(site)
    named = [facing.get(str(axis), axis) for axis in PARAMETERS[type(site.module)][name]]
    if name == "bias":  # added to the residual stream, which is not cut by features
        named = [None if axis == "embed" else axis for axis in named]
    return (*(None,) * (rank - len(named)), *named)


def adapter_axes(site: Site, name: str, rank: int) -> Axes:
    """The logical axes of an array of the adapter at a site."""
    facing = sides(site)
    named = [None if side is None else facing[side] for side in ADAPTER.get(name, ())]
    return (*(None,) * (rank - len(named)), *named)
