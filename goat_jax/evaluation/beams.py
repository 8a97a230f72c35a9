"""Beam search: the likeliest answers, found by extending several beginnings at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.typing import Array, PyTree

NO_SCORE = -1e9


class BeamSearch:
    """The beams of one prompt, in the order of transformers' beam search.

    An answer's score is the mean log-probability of its tokens, the end token included
    (``length_penalty=1``). The search ends when the best beam is behind the worst of `beams`
    finished answers (``early_stopping=False``).

    Args:
        beams: the number of beginnings that are extended at a time.
        end_ids: the ids of the tokens that end an answer.
        longest: the largest number of tokens of an answer.

    Attributes:
        running: the tokens of the beginnings, the likeliest first.
        scores: the log-probability of each, (beams,).
        finished: the best finished answers with their scores, the best first.
        open: whether a better answer may still be found.
    """

    def __init__(self, beams: int, end_ids: Collection[int], longest: int):
        self.beams, self.end_ids, self.longest = beams, frozenset(end_ids), longest
        self.running: list[list[int]] = [[] for _ in range(beams)]
        # All beams begin with the same prompt: only one of them may be extended first.
        self.scores = np.array([0.0] + [NO_SCORE] * (beams - 1))
        self.finished: list[tuple[float, list[int]]] = []
        self.open = True

    @property
    def width(self) -> int:
        """Number of continuations that `advance` needs, so that some of them do not end."""
        return max(2, 1 + len(self.end_ids)) * self.beams

    @property
    def answer(self) -> list[int]:
        """Tokens of the best finished answer, with the end token if there is one."""
        return self.finished[0][1]

    def advance(
        self, scores: Sequence[float], parents: Sequence[int], tokens: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Extends the beams by the best continuations.

        Args:
            scores: the log-probabilities of the `width` best continuations, the best first.
            parents: the number of the beam that each extends.
            tokens: the token that each adds.

        Returns:
            The beams that go on, by their numbers before the call, and their new tokens.

        >>> search = BeamSearch(2, end_ids=[9], longest=5)
        >>> search.advance([-1.0, -2.0, -3.0, -4.0], [0, 0, 0, 0], [7, 9, 8, 6])
        ([0, 0], [7, 8])
        >>> search.finished, search.running
        ([(-2.0, [9])], [[7], [8]])
        """
        length = len(self.running[0]) + 1
        onward = []
        for place, (score, parent, token) in enumerate(zip(scores, parents, tokens, strict=True)):
            if token not in self.end_ids and length < self.longest:
                onward.append((score, parent, token))
            elif self.open and place < self.beams:
                self.finished.append((score / length, [*self.running[parent], token]))
        self.finished = sorted(self.finished, key=lambda each: -each[0])[: self.beams]
        onward = onward[: self.beams]
        full = len(self.finished) == self.beams
        if not onward or (full and onward[0][0] / length <= self.finished[-1][0]):
            self.open = False
        if onward:
            self.running = [[*self.running[parent], token] for _, parent, token in onward]
            self.scores = np.array([score for score, _, _ in onward])
        return [parent for _, parent, _ in onward], [token for _, _, token in onward]


@partial(jax.jit, static_argnums=2)
def best_continuations(logits: Array, scores: Array, width: int) -> tuple[Array, Array, Array]:
    """Finds the likeliest continuations of every prompt's beams.

    Args:
        logits: (N * beams, V) float32, of the next token.
        scores: (N, beams) float32, log-probabilities of the beams.
        width: the number of continuations, W.

    Returns:
        Log-probabilities (N, W), the likeliest first; beams (N, W) and tokens (N, W) int32.

    >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.5, 0.5]]))
    >>> best_continuations(logits, jnp.array([[0.0, -9.0]]), 2)[1:]
    (Array([[0, 0]], dtype=int32), Array([[0, 1]], dtype=int32))
    """
    prompts, vocabulary = scores.shape[0], logits.shape[-1]
    each = jax.nn.log_softmax(logits).reshape(*scores.shape, vocabulary)
    values, places = jax.lax.top_k((scores[..., None] + each).reshape(prompts, -1), width)
    return values, places // vocabulary, places % vocabulary


@partial(jax.jit, donate_argnums=0)
def take_rows(cache: PyTree, rows: Array) -> PyTree:
    """Gathers rows of a cache, whose arrays are (L, B, S, G, H) or (B, S)."""
    return jax.tree.map(
        lambda array: jnp.take(array, rows, axis=int(array.ndim > 2)) if array.ndim else array,
        cache,
    )
