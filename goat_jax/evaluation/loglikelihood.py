"""Log-likelihoods of given continuations of prompts, in batches, with one compile per length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from flax import nnx

from goat_jax.data.pipeline.batching import choose_buckets, evaluation_plan
from goat_jax.data.pipeline.dataset import FILLER
from goat_jax.data.pipeline.encoding import Piece, encode_pair, encode_pieces
from goat_jax.data.pipeline.packing import Texts
from goat_jax.data.pipeline.token_ids import check_ids, table_sizes
from goat_jax.errors import RunFailed, UserError
from goat_jax.models.decoder.config import DecoderConfig
from goat_jax.models.decoder.model import Decoder
from goat_jax.training.losses import LANGUAGE
from goat_jax.training.step import EvalStep, make_eval_step
from goat_jax.typing import PyTree, Tokenizer


class Likelihoods(NamedTuple):
    """Log-likelihoods of N continuations.

    Attributes:
        sums: [N] float64, the log-probability of each continuation given its prompt, in nats.
        tokens: [N] int64, the number of tokens of each continuation.
        cut: the number of texts that lost the beginning of their prompt because the context is too
            short.
    """

    sums: np.ndarray
    tokens: np.ndarray
    cut: int

    @property
    def means(self) -> np.ndarray:
        """Log-probabilities per token, [N]."""
        return self.sums / self.tokens


class Scorer:
    """Scores continuations with a decoder whose adapters are active.

    Args:
        graph: the model's graph (`goat_jax.nn.dense.split_model`).
        trainable: the model's trainable pytree.
        base: the model's frozen pytree.
        config: the decoder's config.
        tokenizer: the checkpoint's tokenizer; prompt and continuation are tokenized as in training.
    """

    def __init__(
        self,
        graph: nnx.GraphDef[Decoder],
        trainable: dict[str, PyTree],
        base: PyTree,
        config: DecoderConfig,
        tokenizer: Tokenizer,
    ):
        self.config, self.tokenizer = config, tokenizer
        self._step: EvalStep = make_eval_step(graph, LANGUAGE)
        self._arrays = trainable, base

    def __call__(
        self,
        pairs: Sequence[tuple[str, str]],
        batch_size: int = 16,
        num_buckets: int = 5,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Likelihoods:
        """Computes the log-probabilities of (prompt, continuation) pairs.

        Args:
            pairs: the (prompt, continuation) texts.
            batch_size: the number of pairs per batch.
            num_buckets: the largest number of padded lengths, each compiled once.
            progress: a function that is called with the number of finished pairs.

        Raises:
            UserError: a continuation has no tokens, or the context has no room for both it and a
                token of the prompt.
            RunFailed: a log-probability is not finite, so any comparison with it is meaningless.
        """
        texts = self._texts(pairs)
        sums = self._sums(texts, [text for _, text in pairs], batch_size, num_buckets, progress)
        tokens = np.array([loss_mask.sum() for loss_mask in texts.loss_masks])
        return Likelihoods(sums, tokens, texts.truncated)

    def mean_loss(
        self, texts: Sequence[str], max_length: int, batch_size: int = 16, num_buckets: int = 5
    ) -> float:
        """Returns the mean negative log-probability of the tokens of texts, in nats.

        A text's first token has none, and a text without others does not count.

        Args:
            texts: the texts, tokenized with the tokenizer's special tokens at the beginning.
            max_length: the number of tokens that each text is cut to.
            batch_size: the number of texts per batch.
            num_buckets: the largest number of padded lengths, each compiled once.

        Raises:
            UserError: no text has two tokens.
            RunFailed: a log-probability is not finite.
        """
        encoded = [np.array(self.tokenizer(text)["input_ids"][:max_length]) for text in texts]
        encoded = [ids for ids in encoded if len(ids) > 1]
        if not encoded:
            raise UserError(f"none of {len(texts)} texts has two tokens: its loss is not defined")
        check_ids({"vocab_size": encoded}, table_sizes(self.config))
        made = Texts(
            input_ids=encoded,
            loss_masks=[np.arange(len(ids)) > 0 for ids in encoded],
            members=[[number] for number in range(len(encoded))],
            lengths=np.array([len(ids) for ids in encoded], np.int32),
            packed=False,
        )
        sums = self._sums(made, texts, batch_size, num_buckets)
        return float(-sums.sum() / (made.lengths - 1).sum())

    def _sums(
        self,
        texts: Texts,
        names: Sequence[str],
        batch_size: int,
        num_buckets: int,
        progress: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """Returns the log-probability of the masked tokens of every text, [N] float64."""
        length = int(texts.lengths.max())
        buckets = choose_buckets(texts.lengths, batch_size, length, max_buckets=num_buckets)
        plan = evaluation_plan(texts.lengths, batch_size, buckets)
        sums = np.zeros(len(texts))
        done = 0
        for rows, width in zip(plan.rows, plan.lengths, strict=True):
            _, losses = self._step(*self._arrays, texts.gather(rows, int(width)))
            real = rows != FILLER
            sums[rows[real]] = -np.asarray(losses, np.float64)[real]
            done += int(real.sum())
            progress(done)
        if not np.isfinite(sums).all():
            name = names[int(np.argmin(np.isfinite(sums)))]
            raise RunFailed(
                f"the log-probability of {name[:40]!r} is not finite: the weights or their "
                "dtype overflow; try --dtype float32"
            )
        return sums

    def _texts(self, pairs: Sequence[tuple[str, str]]) -> Texts:
        context = self.config.context
        between = getattr(self.config, "before_answer", ())
        all_ids, all_masks, prompts, cut = [], [], [], 0
        for prompt, continuation in pairs:
            pieces = [Piece(prompt, False), Piece(continuation, True)]
            if between:
                ids, loss_mask, first = encode_pair(self.tokenizer, pieces, between, end=False)
                prompts.append(first)
            else:
                ids, loss_mask = encode_pieces(self.tokenizer, pieces, end=False)
            cut += len(ids) > context
            ids, loss_mask = ids[-context:], loss_mask[-context:]
            if not loss_mask.any() or loss_mask[0]:
                raise UserError(
                    f"the likelihood of {continuation[:40]!r} needs one or more of its tokens after"
                    f" a token of the prompt, all within the context of {context}"
                )
            all_ids.append(ids)
            all_masks.append(loss_mask)
        check_ids({"vocab_size": all_ids}, table_sizes(self.config))
        return Texts(
            input_ids=all_ids,
            loss_masks=all_masks,
            members=[[number] for number in range(len(pairs))],
            lengths=np.array([len(ids) for ids in all_ids], np.int32),
            truncated=cut,
            prompts=prompts,
            packed=False,
        )
