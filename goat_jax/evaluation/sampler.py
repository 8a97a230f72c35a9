"""Text generation with a language model: one jitted prefill and one jitted step per token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.data.pipeline.encoding import encode_prompt
from goat_jax.data.pipeline.token_ids import check_ids, table_sizes
from goat_jax.errors import UserError
from goat_jax.evaluation.beams import BeamSearch, best_continuations, take_rows
from goat_jax.models.decoder.config import DecoderConfig
from goat_jax.models.decoder.model import Cache, Decoder
from goat_jax.nn.dense import merge_model, split_model
from goat_jax.nn.named_modules import find_stacks
from goat_jax.typing import Array, Key, PyTree, Tokenizer
from goat_jax.validation.fields import Count, NonNegative, Range, Seed, check_fields

DEFAULT_NEW_TOKENS = 128
"""Largest number of new tokens if `Sampling.max_new_tokens` is None."""

Prompt = str | Sequence[int]
"""Text or token ids."""

CONTEXT = 4
"""Number of the prompt's last tokens that are decoded together with an answer."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling settings: how the next token is chosen.

    Attributes:
        temperature: the divisor of the logits; 0 takes the most likely token.
        top_p: the probability mass of the most likely tokens that are sampled from.
        max_new_tokens: the largest number of new tokens per prompt; None: as many as the context
            has room for, up to `DEFAULT_NEW_TOKENS`.
        stop: texts that end the answer; they are not part of it.
        seed: the random seed of the draws.
        beams: the number of beams of a beam search, which takes the likeliest answer; 1 chooses
            token by token.

    Raises:
        UserError: a number is out of its range, or a temperature for a beam search.
    """

    temperature: NonNegative = 0.0
    top_p: Annotated[float, Range(above=0, at_most=1)] = 1.0
    max_new_tokens: Count | None = None
    stop: tuple[str, ...] = ()
    seed: Seed = 0
    beams: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.beams > 1 and self.temperature > 0:
            raise UserError(
                f"temperature {self.temperature} with {self.beams} beams: a beam search draws "
                "nothing, so give temperature 0 or 1 beam"
            )


@dataclasses.dataclass(frozen=True)
class Answer:
    """A generated answer to a prompt.

    Attributes:
        text: the answer, without the stop text that ended it.
        cut: whether the new tokens ran out before the model ended the answer.
    """

    text: str
    cut: bool = False


def choose(logits: Array, key: Key, temperature: float, top_p: float) -> Array:
    """Chooses the next tokens (B,) int32 from logits (B, V) float32.

    >>> choose(jnp.array([[0.0, 2.0, 1.0]]), jax.random.key(0), 0.0, 1.0)
    Array([1], dtype=int32)
    """
    if temperature == 0.0:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / temperature
    if top_p < 1.0:
        logits = jnp.where(_among_likely(logits, top_p), logits, -jnp.inf)
    return jax.random.categorical(key, logits).astype(jnp.int32)


def _among_likely(logits: Array, top_p: float) -> Array:
    """True for each token if the more likely tokens have a total probability below top_p."""
    order = jnp.argsort(-logits, axis=-1)
    ordered = jnp.take_along_axis(jax.nn.softmax(logits), order, axis=-1)
    before = jnp.cumsum(ordered, axis=-1) - ordered
    return jnp.take_along_axis(before < top_p, jnp.argsort(order, axis=-1), axis=-1)


class Generator:
    """Answers prompts with a decoder whose adapters are active.

    The arrays of the model are arguments of the jitted steps, so new weights need no new compile.

    Args:
        model: a `Decoder`, with or without adapters.
        tokenizer: the checkpoint's tokenizer.
        multiple: the number of tokens that prompts are padded to a multiple of, if the context has
            room, so that prompts of many lengths need few compiles.
        apart: whether the layers are unrolled instead of scanned. In a scan, a CPU copies each
            kernel out of its stack for every token; unrolled layers generate faster but take longer
            to compile. While the model is unrolled, its kernels are in memory twice.

    Attributes:
        end_ids: the ids of the tokens that end an answer.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, multiple: int = 1, *, apart: bool = False
    ):
        model = unrolled(model) if apart else model
        graph, self._trainable, self._base = split_model(model)
        self.config, self.tokenizer, self.multiple = model.config, tokenizer, multiple
        self.end_ids = end_ids(model.config, tokenizer)
        check_ids({"vocab_size": [self.end_ids]}, table_sizes(model.config))
        self._between: tuple[int, ...] = getattr(model.config, "before_answer", ())
        self._empty = model.empty_cache
        self._extend = jax.jit(partial(_extend, graph), donate_argnums=4)
        self._choose = jax.jit(choose, static_argnums=(2, 3))

    def tokens(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Iterator[np.ndarray]:
        """Yields the next token (B,) of all prompts, one array per step.

        A row that has ended its answer repeats an end token. The iteration stops when all rows have
        ended.

        Args:
            prompts: the token ids of the prompts, of any lengths.
            sampling: the sampling settings.

        Raises:
            UserError: a prompt is empty, or exceeds the context together with its new tokens.
        """
        longest, steps = self._lengths(prompts, sampling)
        change = self.config.rotation_changes_after
        # The keys in the cache are rotated for a short text: beyond it, transformers computes them
        # anew.
        anew = None if change is None else change + 1 - longest
        longest = self._padded(longest, steps)
        ids, mask = pad_left(prompts, 0, longest)
        cache = self._empty(len(prompts), longest + steps)
        before = [(ids, mask)]
        key = jax.random.key(sampling.seed)
        ended = np.zeros(len(prompts), bool)
        for step in range(steps):
            logits, cache = self._extend(self._trainable, self._base, ids, mask, cache)
            step_key = jax.random.fold_in(key, step)
            chosen = self._choose(logits, step_key, sampling.temperature, sampling.top_p)
            tokens = np.array(chosen)
            if self.end_ids:
                tokens[ended] = self.end_ids[0]
                ended |= np.isin(tokens, self.end_ids)
            yield tokens
            if ended.all():
                return
            ids, mask = jnp.asarray(tokens)[:, None], jnp.ones((len(prompts), 1), jnp.int32)
            before.append((ids, mask))
            if step + 1 == anew:
                ids, mask = (jnp.concatenate(each, axis=1) for each in zip(*before, strict=True))
                cache = self._empty(len(prompts), longest + steps)

    def _lengths(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> tuple[int, int]:
        """Returns the length of the longest prompt and the largest number of new tokens."""
        longest = max(map(len, prompts))
        steps = sampling.max_new_tokens
        if steps is None:
            steps = max(1, min(DEFAULT_NEW_TOKENS, self.config.context - longest))
        self._check(prompts, longest + steps)
        return longest, steps

    def search(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
        """Returns the tokens of the likeliest answer to every prompt that a beam search finds.

        Args:
            prompts: the token ids of the prompts, of any lengths.
            sampling: the sampling settings; `beams` is the number of beams.

        Raises:
            UserError: a prompt is empty, or exceeds the context together with its new tokens; or a
                model whose keys in the cache change at a length in between.
        """
        longest, steps = self._lengths(prompts, sampling)
        change = self.config.rotation_changes_after
        if change is not None and longest <= change < longest + steps:
            raise UserError(
                f"beam search across {change} tokens, where this model's rotation changes: "
                "ask for fewer new tokens or 1 beam"
            )
        longest, beams = self._padded(longest, steps), sampling.beams
        ids, mask = pad_left([each for each in prompts for _ in range(beams)], 0, longest)
        cache = self._empty(len(ids), longest + steps)
        searches = [BeamSearch(beams, self.end_ids, steps) for _ in prompts]
        offsets = beams * np.arange(len(prompts))[:, None]
        while True:
            logits, cache = self._extend(self._trainable, self._base, ids, mask, cache)
            scores = jnp.asarray([each.scores for each in searches], jnp.float32)
            best = best_continuations(logits.astype(jnp.float32), scores, searches[0].width)
            rows = zip(*(np.asarray(part).tolist() for part in best), strict=True)
            ahead = [each.advance(*row) for each, row in zip(searches, rows, strict=True)]
            if not any(each.open for each in searches):
                return [each.answer for each in searches]
            parents, tokens = (np.array(part) for part in zip(*ahead, strict=True))
            cache = take_rows(cache, jnp.asarray((parents + offsets).ravel()))
            ids, mask = jnp.asarray(tokens.reshape(-1, 1)), jnp.ones((len(ids), 1), jnp.int32)

    def _padded(self, longest: int, steps: int) -> int:
        """Returns the padded length of prompts of up to `longest` tokens.

        The length is rounded up to the multiple if the context has room for it.
        """
        length = -(-longest // self.multiple) * self.multiple
        return length if length + steps <= self.config.context else longest

    def _check(self, prompts: Sequence[Sequence[int]], tokens: int) -> None:
        if not all(prompts):
            raise UserError("an empty prompt: give it at least one token")
        check_ids({"vocab_size": prompts}, table_sizes(self.config))
        if tokens > self.config.context and not self.config.unbounded:
            raise UserError(
                f"a prompt and its answer may need {tokens} tokens, more than the model's context "
                f"of {self.config.context}: shorten the prompt or ask for fewer new tokens"
            )

    def encode(self, prompt: Prompt) -> list[int]:
        """Encodes a prompt to the token ids that it would have in training, before the answer."""
        text = isinstance(prompt, str)
        ids = encode_prompt(self.tokenizer, prompt) if text else list(prompt)
        ended = bool(self._between) and ids[-1:] == [self._between[0]]
        return [*ids, *self._between[ended:]] if ids else ids

    def answers(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        stream: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Returns the texts of the answers of `complete`."""
        return [answer.text for answer in self.complete(prompts, sampling, stream)]

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        stream: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """Generates the answers to prompts.

        Args:
            prompts: texts of any lengths, or the token ids of conversations.
            sampling: the sampling settings.
            stream: a function that is called with each new piece of the first answer.

        Raises:
            UserError: a prompt is empty, or exceeds the context together with its new tokens.
        """
        encoded = [self.encode(prompt) for prompt in prompts]
        if sampling.beams > 1:
            return self._searched(encoded, sampling, stream)
        generated: list[list[int]] = [[] for _ in prompts]
        done = [False] * len(prompts)
        shown = ""
        for tokens in self.tokens(encoded, sampling):
            for row, token in enumerate(tokens.tolist()):
                if done[row]:
                    continue
                done[row] = token in self.end_ids
                if not done[row]:
                    generated[row].append(token)
                    text = self.answer_text(encoded[row], generated[row])
                    done[row] = _cut(text, sampling.stop)[1]
            if stream is not None:
                text = self.answer_text(encoded[0], generated[0])
                text = _cut(text, sampling.stop)[0] if done[0] else _settled(text, sampling.stop)
                stream(text[len(shown) :])
                shown = text
            if all(done):
                break
        texts = map(self.answer_text, encoded, generated)
        return [
            Answer(_cut(text, sampling.stop)[0], cut=not ended)
            for text, ended in zip(texts, done, strict=True)
        ]

    def _searched(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        stream: Callable[[str], None] | None,
    ) -> list[Answer]:
        answers = []
        for prompt, tokens in zip(prompts, self.search(prompts, sampling), strict=True):
            ended = tokens[-1] in self.end_ids
            text = self.answer_text(prompt, tokens[:-1] if ended else tokens)
            text, stopped = _cut(text, sampling.stop)
            answers.append(Answer(text, cut=not (ended or stopped)))
        if stream is not None:
            stream(answers[0].text)
        return answers

    def answer_text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """Decodes an answer's tokens after the end of their prompt.

        Decoded alone, they would lose their first space with some tokenizers. An answer with tokens
        between it and the prompt is a text of its own, which begins without a space.
        """
        before = [] if self._between else list(prompt[-CONTEXT:])
        start = len(self.tokenizer.decode(before, skip_special_tokens=True))
        return self.tokenizer.decode([*before, *ids], skip_special_tokens=True)[start:]


def end_ids(config: DecoderConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the ids of the tokens that end an answer.

    The first is the tokenizer's end token, with which training ends texts. The others are those of
    the checkpoint's config.json and generation_config.json.

    Args:
        config: a `DecoderConfig`.
        tokenizer: the checkpoint's tokenizer.
    """
    tokenizer_ids = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    return tuple(dict.fromkeys((*tokenizer_ids, *config.eos_ids)))


def unrolled(model: Decoder) -> Decoder:
    """Returns a copy of the model whose stacks of layers are split into single layers."""
    model = nnx.clone(model)
    for stack in find_stacks(model):
        stack.cut(range(1, sum(stack.sizes)))
    return model


def _extend(
    graph: nnx.GraphDef[Decoder],
    trainable: dict[str, PyTree],
    base: PyTree,
    ids: Array,
    mask: Array,
    cache: Cache,
) -> tuple[Array, Cache]:
    """Returns the logits (B, V) after the last of these tokens, and the updated cache."""
    model = merge_model(graph, trainable, base)
    hidden, cache = model.extend(ids, mask, cache)
    return model.logits(hidden[:, -1]), cache


def pad_left(
    prompts: Sequence[Sequence[int]], pad: int, length: int | None = None
) -> tuple[Array, Array]:
    """Pads prompts on the left to token ids and a mask, both (B, T) int32.

    Args:
        prompts: the token ids of the prompts.
        pad: the token id to pad with.
        length: T; None: the length of the longest prompt.

    >>> ids, mask = pad_left([[5], [6, 7]], 0)
    >>> ids.tolist(), mask.tolist()
    ([[0, 5], [6, 7]], [[0, 1], [1, 1]])
    """
    longest = length or max(map(len, prompts))
    ids = np.full((len(prompts), longest), pad, np.int32)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return jnp.asarray(ids), jnp.asarray(mask)


def _cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Returns the text before the first stop text, and whether there was one."""
    places = [place for ending in stop if (place := text.find(ending)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _settled(text: str, stop: Sequence[str]) -> str:
    """Returns the part of an unfinished text that can no longer change.

    The end of the text may be half a character, or the beginning of a stop text.
    """
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    held = max((_overlap(text, ending) for ending in stop), default=0)
    return text[: len(text) - held]


def _overlap(text: str, ending: str) -> int:
    """Returns the number of characters at the end of a text that could begin an ending."""
    return next(
        (n for n in range(min(len(text), len(ending)), 0, -1) if text.endswith(ending[:n])), 0
    )
