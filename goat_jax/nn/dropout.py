"""The pretrained model's dropout (training only, off by default); adapter dropout is separate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from goat_jax.adapters.context import Context
from goat_jax.core.dropout import dropout
from goat_jax.errors import UserError
from goat_jax.nn.named_modules import name_number
from goat_jax.typing import Array

CHECKPOINT = "checkpoint"
"""Value of `model.dropout` that stands for the rates in the checkpoint's config.json."""

Rates = tuple[tuple[str, float], ...]
"""Pairs (place, dropout rate), which are hashable; a place that is not named has no dropout."""


class RateKeys(NamedTuple):
    """Keys of a config.json that may hold a dropout rate.

    Attributes:
        keys: the keys to try; the first that is set gives the rate.
        default: the rate if none of the keys is set.
    """

    keys: tuple[str, ...]
    default: float = 0.1


def rates_of(
    places: Mapping[str, RateKeys], requested: float | str, hf: Mapping[str, Any]
) -> Rates:
    """Returns the dropout rate of every place where a model family applies dropout.

    Args:
        places: place -> the config.json keys of its rate.
        requested: one rate for all places, or `CHECKPOINT`.
        hf: config.json as a dict.

    Raises:
        UserError: a rate outside [0, 1).

    >>> places = {"down": RateKeys(("hidden_dropout_prob",)), "attention": RateKeys(("other",))}
    >>> rates_of(places, "checkpoint", {"hidden_dropout_prob": 0.2})
    (('down', 0.2), ('attention', 0.1))
    >>> rates_of(places, 0.0, {})
    ()
    """
    rates = []
    for place, (keys, default) in places.items():
        stored = (hf[key] for key in keys if hf.get(key) is not None)
        rates.append((place, next(stored, default) if requested == CHECKPOINT else requested))
    for _, rate in rates:
        check_rate(rate)
    return tuple((place, rate) for place, rate in rates if rate)


def check_rate(rate: float | str) -> None:
    """Raises `UserError` unless the rate is a number in [0, 1)."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0.0 <= rate < 1.0:
        raise UserError(
            f"model.dropout {rate!r} is not a rate: give a number in [0, 1), or {CHECKPOINT!r} for "
            "the rates in config.json"
        )


def dropper(place: str, rates: Rates, ctx: Context) -> Callable[[Array], Array] | None:
    """Returns the inverted dropout of a place; None in evaluation and where there is no rate.

    Every place has a separate key, derived from its name.

    >>> dropper("down", (("down", 0.5),), Context()) is None
    True
    """
    rate = dict(rates).get(place, 0.0)
    if not rate or ctx.key is None:
        return None
    key = ctx.fold(name_number(f"dropout of {place}")).key
    return lambda x: dropout(x, rate, key)


def drop(x: Array, place: str, rates: Rates, ctx: Context) -> Array:
    """Applies the dropout of a place to x; returns x itself if there is none.

    >>> import jax.numpy as jnp
    >>> drop(jnp.ones(2), "down", (("down", 0.5),), Context())
    Array([1., 1.], dtype=float32)
    """
    dropped = dropper(place, rates, ctx)
    return x if dropped is None else dropped(x)
