"""The tokens that a run adds to its model's vocabulary, or trains alone."""

from __future__ import annotations

import dataclasses

from goat_jax.adapters.spec import AdapterSpec
from goat_jax.config.run import RunConfig
from goat_jax.data.pipeline.tokenize import load_tokenizer
from goat_jax.errors import UserError
from goat_jax.injection.targets import trains
from goat_jax.nn.model import Model
from goat_jax.nn.vocabulary import Place, Tokens, add_tokens, train_rows
from goat_jax.pretrained.resolve import find_model


def tokens_of(config: RunConfig, rows: int | None) -> Tokens | None:
    """Returns the tokens of a run; None if it neither adds nor trains any.

    Args:
        config: the run's config.
        rows: the number of rows in the pretrained model's vocabulary; None if it has none.

    Raises:
        UserError: the model has no vocabulary, or no such token.
    """
    words, indices = config.model.add_tokens, config.adapter.trainable_token_indices
    if not words and not indices:
        return None
    if rows is None:
        raise UserError(f"{config.model.path} reads no tokens: leave model.add_tokens out")
    if not words:
        return _checked(Tokens(rows, (), tuple(sorted(set(indices)))))
    path = find_model(config.model.path)
    known, tokenizer = len(load_tokenizer(path)), load_tokenizer(path, words)
    ids = tokenizer.convert_tokens_to_ids(list(words))
    new = tuple(sorted(number for number in ids if number >= known))
    size = max(rows, len(tokenizer))
    return _checked(Tokens(size, new, tuple(sorted({*ids, *indices}))))


def abstract_tokens(config: RunConfig, rows: int | None) -> Tokens | None:
    """Returns `tokens_of` of a model without files: every token that is added gets a new row."""
    words, indices = config.model.add_tokens, config.adapter.trainable_token_indices
    if rows is None or not words:
        return tokens_of(config, rows)
    new = tuple(range(rows, rows + len(words)))
    return _checked(Tokens(rows + len(words), new, tuple(sorted({*new, *indices}))))


def _checked(tokens: Tokens) -> Tokens:
    if tokens.trained[-1] >= tokens.size:
        raise UserError(
            f"adapter.trainable_token_indices has {tokens.trained[-1]}, and the model has "
            f"{tokens.size} tokens: name new ones with model.add_tokens"
        )
    return tokens


def prepare_tokens(
    model: Model,
    config: RunConfig,
    spec: AdapterSpec,
    tokens: Tokens | None,
    place: Place | None = None,
) -> None:
    """Adds a run's tokens to the model and makes their vectors trained, in place.

    In a module that is trained in full they are trained with all others.

    Args:
        model: the pretrained model.
        config: the run's config.
        spec: the config's adapter spec.
        tokens: the run's tokens; None for none.
        place: gives the sharding of the vocabulary's matrices; None for one device.
    """
    if tokens is None:
        return
    in_full = config.adapter.modules_to_save
    add_tokens(model, tokens, place)
    model.config = dataclasses.replace(model.config, vocab_size=tokens.size)
    train_rows(model, tokens.trained, lambda name: not (spec.whole_model or trains(name, in_full)))


def tokens_note(config: RunConfig, tokens: Tokens | None) -> str | None:
    """Returns a line on the tokens of a run; None if it neither adds nor trains any."""
    if tokens is None:
        return None
    new = f" ({len(tokens.new)} new, which start at the mean of the others)" if tokens.new else ""
    return f"vectors of {len(tokens.trained)} of {tokens.size} tokens are trained{new}"
