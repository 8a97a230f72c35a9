"""Logical axes of every array of a model, by the module it belongs to."""

from __future__ import annotations

from flax import nnx

from goat_jax.nn.dense import Dense
from goat_jax.nn.mixture import Router
from goat_jax.nn.modules import (
    Embedding,
    JoinedProjection,
    LayerNorm,
    LearnedArray,
    PatchEmbedding,
    Projection,
    RMSNorm,
    TokenConvolution,
)
from goat_jax.nn.named_modules import ModuleRef
from goat_jax.nn.vocabulary import TokenTable, VocabularyOutput

Axes = tuple[str | None, ...]

INWARD = {"query", "key", "value", "position_query", "position_key", "gate", "up"}
"""Parts of a block that map the residual stream to its heads or its feed-forward."""

OUTWARD = {"attention_out", "down"}
"""Parts of a block that map back to the residual stream."""

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
"""Array of an adapter -> the side of the kernel that each of its last axes follows. Cores and all
other arrays are replicated."""

WHOLE_IF_SMALL = {"router"}
"""Arrays that are sharded only where a stack of them is large: with its two moments, a replicated
router (I, E) of eight experts is a tenth of what each of 16 devices holds of a 7B model."""

PARAMETERS: dict[type[nnx.Module], dict[str, Axes]] = {
    Dense: {"kernel": ("in", "out"), "bias": ("out",)},
    VocabularyOutput: {"kernel": ("in", "out")},
    Projection: {"kernel": ("embed", "vocab"), "bias": ("vocab",)},
    JoinedProjection: {"kernel": ("embed", None), "bias": (None,)},
    PatchEmbedding: {"kernel": (None, None, None, "embed"), "bias": (None,)},
    TokenConvolution: {"kernel": (None, None, None), "bias": (None,)},
    Embedding: {"table": ("vocab", "embed")},
    TokenTable: {"table": ("in", "out")},
    LayerNorm: {"scale": (None,), "bias": (None,)},
    RMSNorm: {"scale": (None,)},
    LearnedArray: {"value": ()},
    Router: {"kernel": (None, None), "bias": (None,)},
}
"""Module -> parameter -> logical names of its last axes; `sides` resolves "in" and "out"."""


OF_VOCABULARY: dict[type[nnx.Module], dict[str, str | None]] = {
    TokenTable: {"in": "vocab", "out": "embed"},
    VocabularyOutput: {"in": "embed", "out": "vocab"},
}
"""Module with a side that is the vocabulary -> the logical axes of its sides."""


def sides(ref: ModuleRef) -> dict[str, str | None]:
    """Returns the logical axes of the input and output side of a module with a matrix.

    >>> from goat_jax.models.encoder.model import Encoder, tiny_config
    >>> from goat_jax.nn.named_modules import find_modules
    >>> refs = find_modules(Encoder(tiny_config(), rngs=nnx.Rngs(0)))
    >>> sides(next(ref for ref in refs if ref.path[-1] == "down"))
    {'in': 'inner', 'out': 'embed'}
    """
    if type(ref.module) in OF_VOCABULARY:
        return OF_VOCABULARY[type(ref.module)]
    part = ref.path[-1] if ref.path else ""
    if part in OUTWARD:
        return {"in": "inner", "out": "embed"}
    return {"in": "embed", "out": "inner" if part in INWARD else None}


def parameter_axes(ref: ModuleRef, name: str, rank: int) -> Axes:
    """Returns a parameter's logical axes; leading axes (layers) beyond the named ones have none."""
    facing = sides(ref)
    named = [facing.get(str(axis), axis) for axis in PARAMETERS[type(ref.module)][name]]
    if name == "bias":  # added to the residual stream, whose features are not sharded
        named = [None if axis == "embed" else axis for axis in named]
    return (*(None,) * (rank - len(named)), *named)


def adapter_axes(ref: ModuleRef, name: str, rank: int) -> Axes:
    """Returns the logical axes of an array of a module's adapter."""
    facing = sides(ref)
    named = [None if side is None else facing[side] for side in ADAPTER.get(name, ())]
    return (*(None,) * (rank - len(named)), *named)
