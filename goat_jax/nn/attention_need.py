"""`Need`: what a model asks of attention, known before any array is."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Need:
    """Shape and conditions of an attention, by which a way to compute it is chosen.

    Attributes:
        queries: the number T of queries in a row.
        keys: the number S of keys in a row.
        size: the head size H.
        dtype: the name of the dtype of queries, keys and values.
        causal: whether keys after a query are excluded.
        windows: the window of each layer; None for all tokens.
        soft_cap: whether scores are capped.
        bias: whether a bias is added to the scores.
        sinks: whether there is a further key per head that has a score alone.
        dropout: whether probabilities are dropped out.
        cached: whether the queries continue a cache of keys, as in generation.
        heads: the number N of heads.
        groups: the number G of key heads.
    """

    queries: int
    keys: int
    size: int
    dtype: str
    causal: bool
    windows: tuple[int | None, ...] = (None,)
    soft_cap: bool = False
    bias: bool = False
    sinks: bool = False
    dropout: bool = False
    cached: bool = False
    heads: int = 1
    groups: int = 1

    @property
    def whole(self) -> bool:
        """True if queries and keys are the same tokens, which the kernels are made for."""
        return not self.cached and self.queries == self.keys
