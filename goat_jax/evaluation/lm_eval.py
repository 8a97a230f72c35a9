"""`goat_jax` as a model of EleutherAI's lm-evaluation-harness; importing this module registers it.

Texts are tokenized, cut and batched as lm-eval's own `hf` model does, so both give the same numbers
for the same weights.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.core.cross_entropy import chunked_cross_entropy
from goat_jax.data.pipeline.batching import choose_buckets, evaluation_plan
from goat_jax.data.pipeline.dataset import FILLER
from goat_jax.errors import RunFailed, UserError
from goat_jax.evaluation.generate_and_loglikelihood import answer_all
from goat_jax.evaluation.model import MULTIPLE, load_eval_model
from goat_jax.evaluation.sampler import Generator, Sampling
from goat_jax.extras import import_extra
from goat_jax.models.decoder.model import Decoder
from goat_jax.models.seq2seq.config import Seq2SeqConfig
from goat_jax.nn.dense import merge_model
from goat_jax.sharding.config import MeshConfig
from goat_jax.typing import Array, PyTree

_PURPOSE = "a task of lm-evaluation-harness"
_model = import_extra("lm_eval.api.model", _PURPOSE)
_registry = import_extra("lm_eval.api.registry", _PURPOSE)
_utils = import_extra("lm_eval.utils", _PURPOSE)
_model_utils = import_extra("lm_eval.models.utils", _PURPOSE)

NEUTRAL = {"top_k": (None, 0), "num_beams": (None, 1), "repetition_penalty": (None, 1.0)}
"""Option of generation -> the values with which it changes nothing; all others are refused."""


class Continuation(NamedTuple):
    """Tokens whose log-likelihood is asked for.

    Attributes:
        row: the tokens that the model reads: the context and the continuation, without the last.
        tokens: the tokens of the continuation.
    """

    row: tuple[int, ...]
    tokens: list[int]


@_registry.register_model("goat_jax")
class GoatLM(_model.TemplateLM):
    """A run or a pretrained language model, with its adapter active.

    Args:
        pretrained: a run's folder, or the name or path of a pretrained model.
        step: the run's checkpoint; None: the best one.
        dtype: the dtype of a pretrained model's weights.
        tensor: the number of devices that every layer is partitioned over.
        batch_size: the number of rows in a batch.
        max_length: the number of tokens that the model reads at once; None: its context.
        seed: the random seed of sampled answers.
        device: not used: jax chooses the device; the harness passes it to every model.
        max_batch_size: not used, for the same reason.

    Raises:
        UserError: `pretrained` is neither a run nor a decoder.
    """

    def __init__(
        self,
        pretrained: str,
        step: int | None = None,
        dtype: str = "float32",
        tensor: int = 1,
        batch_size: int | str = 16,
        max_length: int | None = None,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        del device, max_batch_size
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size {batch_size!r}: give a number of rows")
        model = load_eval_model(str(pretrained), step, dtype, MeshConfig(tensor=tensor))
        if isinstance(model.config, Seq2SeqConfig):
            raise UserError(f"{pretrained} is an encoder-decoder: lm-eval's tasks need a decoder")
        self.name, self.step = model.name, model.step
        self.tokenizer: Any = model.tokenizer
        self.batch_size, self.seed = int(batch_size), seed
        self.max_length = max_length or model.config.context
        self._eval_model = model
        self._score = jax.jit(functools.partial(_score_rows, model.graph))

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: that which begins a text, or else ends one."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def max_gen_toks(self) -> int:
        """The number of new tokens of a task that does not say it, as in lm-eval's own models."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer, for the harness's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns a conversation's text, to be continued by an answer or in its last message."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Tokenizes a text; a start token that it already has, from a template, is not doubled."""
        del options
        if add_special_tokens is None:
            first = self.tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
            add_special_tokens = not string.startswith(first)
        return self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        del disable_tqdm, options
        asked = []
        for pair, context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens, {(pair or ('', ''))[1][:40]!r}:"
                    f" it needs 1 to {self.max_length}, the length that the model reads"
                )
            row = (*context, *continuation)[-self.max_length - 1 : -1]
            asked.append(Continuation(row, continuation))
        results = self.log_likelihoods(asked)
        for (pair, _, _), result in zip(requests, results, strict=True):
            if pair is not None:  # the windows of a longer text have none
                self.cache_hook.add_partial("loglikelihood", pair, result)
        return results

    def log_likelihoods(self, asked: Sequence[Continuation]) -> list[tuple[float, bool]]:
        """Returns each continuation's log-likelihood, and whether it is the greedy one.

        Options that differ in their last token only are scored by one row.

        Raises:
            RunFailed: a log-likelihood is not finite.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, one in enumerate(asked):
            groups.setdefault(one.row, []).append(place)
        rows = list(groups)
        if not rows:
            return []
        lengths = np.array([len(row) for row in rows], np.int32)
        buckets = choose_buckets(lengths, self.batch_size, self.max_length)
        plan = evaluation_plan(lengths, self.batch_size, buckets)
        results: dict[int, tuple[float, bool]] = {}
        for numbers, width in zip(plan.rows, plan.lengths, strict=True):
            batch = [rows[max(number, 0)] for number in numbers]
            ids = np.array([row + (0,) * (int(width) - len(row)) for row in batch], np.int32)
            last = np.array([len(row) - 1 for row in batch])
            arrays = self._score(self._eval_model.trainable, self._eval_model.base, ids, last)
            for number, *scored in zip(numbers, *map(np.asarray, arrays), strict=True):
                places = groups[rows[number]] if number != FILLER else []
                results |= {place: _result(asked[place], *scored) for place in places}
        return [results[place] for place in range(len(asked))]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns each text's log-likelihood; a long text is read in windows."""
        windows = [
            [
                (None, *_utils.make_disjoint_window(window))
                for window in _utils.get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        scored = iter(self._loglikelihood_tokens([each for text in windows for each in text]))
        totals = [sum(next(scored)[0] for _ in text) for text in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    @functools.cached_property
    def _generator(self) -> _AnswersAlone:
        model = self._eval_model
        merged = merge_model(model.graph, model.trainable, model.base)
        return _AnswersAlone(merged, self.tokenizer, MULTIPLE)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers prompts up to a stop text or the task's number of tokens."""
        del disable_tqdm
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        texts = {}
        for options, places in groups.items():
            sampling = self._sampling(json.loads(options))
            room = self.max_length - (sampling.max_new_tokens or 0)
            prompts = [self.tok_encode(requests[place].args[0])[-room:] for place in places]
            answers = answer_all(self._generator, prompts, sampling, self.batch_size)
            for place, answer in zip(places, answers, strict=True):
                texts[place] = answer.text
                self.cache_hook.add_partial("generate_until", requests[place].args, answer.text)
        return [texts[place] for place in range(len(requests))]

    def _sampling(self, options: Mapping[str, Any]) -> Sampling:
        """Returns the settings of a task's options of generation."""
        kept = _model_utils.normalize_gen_kwargs(dict(options), self.max_gen_toks)
        stop = _model_utils.handle_stop_sequences(kept.pop("until", None), eos=None)
        new, sampled = kept.pop("max_gen_toks"), kept.pop("do_sample")
        temperature, top_p = kept.pop("temperature", 1.0), kept.pop("top_p", None)
        others = [name for name, value in kept.items() if value not in NEUTRAL.get(name, ())]
        if others:
            raise UserError(f"generation with {', '.join(others)} is not possible here")
        if new >= self.max_length:
            raise UserError(f"{new} new tokens need a context longer than {self.max_length}")
        return Sampling(
            temperature=temperature if sampled else 0.0,
            top_p=top_p or 1.0,
            max_new_tokens=new,
            stop=tuple(text for text in stop if text),
            seed=self.seed,
        )

    def digest(self) -> str:
        """Returns a short hash of the model, which names its cache of answers."""
        return self._eval_model.digest()

    def get_model_info(self) -> dict[str, Any]:
        """Returns what the results say of the model."""
        return {"model_name": self.name, "model_step": self.step, "model_sha": self.digest()}


class _AnswersAlone(Generator):
    """Decodes an answer without the end of its prompt, as lm-eval does."""

    def answer_text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        del prompt
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def _score_rows(
    graph: nnx.GraphDef[Decoder],
    trainable: dict[str, PyTree],
    base: PyTree,
    ids: Array,
    last: Array,
) -> tuple[Array, Array, Array]:
    """Scores each token of rows (B, T) that are padded on the right, and all that could follow.

    Returns:
        The loss of each position's next token (B, T), whether that token is the most likely one
        (B, T), and the log-probabilities (B, V) of the token after each row's last.
    """
    model = merge_model(graph, trainable, base)
    hidden = model.hidden(ids)
    output = model.vocabulary_output(hidden)
    flat = output._replace(inputs=tuple(x.reshape(-1, x.shape[-1]) for x in output.inputs))
    following = jnp.roll(ids, -1, axis=1).reshape(-1)
    losses, greedy = chunked_cross_entropy(flat, following, soft_cap=model.config.logit_cap)
    after = model.logits(hidden[jnp.arange(len(ids)), last])
    return losses.reshape(ids.shape), greedy.reshape(ids.shape), jax.nn.log_softmax(after)


def _result(
    asked: Continuation, losses: np.ndarray, greedy: np.ndarray, after: np.ndarray
) -> tuple[float, bool]:
    """Returns one continuation's log-likelihood and whether it is greedy, from those of its row."""
    *_, final = asked.tokens
    within = slice(len(asked.row) - len(asked.tokens), len(asked.row) - 1)
    total = float(after[final]) - float(losses[within].sum())
    if not np.isfinite(total):
        raise RunFailed("a log-likelihood is not finite: the weights or their dtype overflow")
    return total, bool(greedy[within].all() and after.argmax() == final)
