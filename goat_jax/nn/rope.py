"""Rotary position embeddings (RoPE), with every scaling that Llama-like checkpoints use.

Sources: Su et al., "RoFormer" (arXiv 2104.09864); linear: Chen et al. (arXiv 2306.15595); yarn:
Peng et al. (arXiv 2309.00071); longrope: Ding et al. (arXiv 2402.13753); llama3: as published with
Llama 3.1. A config may spell them in two ways: `rope_theta` beside `rope_scaling`, or all of it in
`rope_parameters`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from goat_jax.errors import UserError, nearest
from goat_jax.nn.rotation import Rotation
from goat_jax.typing import Array
from goat_jax.validation.checks import check_number


@dataclasses.dataclass(frozen=True)
class Rope:
    """Settings of rotary position embeddings.

    Except for those that say otherwise, the names are those of Hugging Face configs.

    Attributes:
        kind: ``rope_type``, a key of `SCALINGS`.
        theta: base of the wavelengths.
        context: ``max_position_embeddings``, the number of tokens the model was trained for;
            "dynamic" rescales beyond it.
        fraction: ``partial_rotary_factor``, the part of a head's features that is rotated.
        interleaved: whether neighboring features form a pair; else feature i of the first half of
            those rotated and feature i of the second. No key of a config: families differ.
        factor: factor by which the context is extended; None is 1, in longrope `context` over
            `original_context`.
        original_context: ``original_max_position_embeddings``, the context before the extension;
            None is `context`.
        low_freq_factor: llama3: waves with fewer turns than this in the context are slowed fully.
        high_freq_factor: llama3: waves with more turns than this in the context are kept.
        beta_fast: yarn: turns in the context at which the ramp begins.
        beta_slow: yarn: turns in the context at which the ramp ends.
        attention_factor: yarn: scale of sines and cosines; None computes it from `factor`.
        mscale: yarn: numerator weight of that scale, used together with `mscale_all_dim`.
        mscale_all_dim: yarn: denominator weight of that scale.
        truncate: yarn: whether the ramp's ends are rounded to whole features.
        short_factor: longrope: divisor of each frequency up to the original context.
        long_factor: longrope: divisor of each frequency beyond it.
        llama_4_scaling_beta: growth of the queries, by the factor 1 + beta log(1 + n), with every
            whole number n of original contexts before them; None for no growth.

    >>> Rope(theta=100.0).frequencies(4)
    (array([1. , 0.1], dtype=float32), 1.0)
    """

    kind: str = "default"
    theta: float = 10000.0
    context: int = 2048
    fraction: float = 1.0
    interleaved: bool = False
    factor: float | None = None
    original_context: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    llama_4_scaling_beta: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in SCALINGS:
            hint = nearest(str(self.kind), SCALINGS)
            raise UserError(
                f"rope scaling {self.kind!r} is not supported{hint}: one of {', '.join(SCALINGS)}"
            )
        if self.extension <= 0 or self.theta <= 0:
            raise UserError(f"rope factor {self.factor} and theta {self.theta} must be above 0")
        if not 0 < self.fraction <= 1:
            raise UserError(f"partial_rotary_factor {self.fraction} must be above 0 and at most 1")

    @property
    def extension(self) -> float:
        """The factor by which the context is extended, 1 if there is none."""
        return 1.0 if self.factor is None else self.factor

    @property
    def first_context(self) -> int:
        """The number of tokens that the model was trained for before its context was extended."""
        return self.original_context or self.context

    def rotated(self, size: int) -> int:
        """Returns the number of rotated features of a head of `size`, at its beginning."""
        return int(size * self.fraction)

    @classmethod
    def from_hf(
        cls,
        hf: Mapping[str, Any],
        *,
        theta: float,
        context: int,
        fraction: float | None = None,
        interleaved: bool = False,
        renamed: Mapping[str, str] | None = None,
    ) -> Rope:
        """Reads the RoPE settings of a config.json in either spelling.

        Args:
            hf: config.json as a dict.
            theta: base of the wavelengths if the config has none.
            context: number of tokens the model was trained for.
            fraction: rotated part of a head if the config has none; None for a network that rotates
                all of it.
            interleaved: whether neighboring features form a pair.
            renamed: the family's other names of scalings -> ours.

        Raises:
            UserError: a scaling that is not supported, or one that lacks a number it needs.
        """
        section = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
        values = {name: value for name, value in section.items() if value is not None}
        kind = values.get("rope_type", values.get("type", "default"))
        kind = (renamed or {}).get(str(kind), kind)
        for name, value in values.items():
            if isinstance(value, Mapping):
                raise UserError(
                    f"rope_parameters has an object {name!r}: only one scaling for all layers is "
                    "supported"
                )
            if name in _LIMITS:
                check_number(f"rope scaling's {name}", value, **_LIMITS[name])
            if name in _LISTS:
                values[name] = _numbers(name, value)
        partial = values.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
        if fraction is None and partial not in (None, 1.0):
            raise UserError(f"partial_rotary_factor {partial} is not supported: only 1.0 is")
        if partial is not None:
            check_number("partial_rotary_factor", partial, above=0)
        for name in NEEDED.get(str(kind), ()):
            if name not in values:
                raise UserError(f"rope scaling {kind!r} has no {name!r}: add it to config.json")
        original = hf.get("original_max_position_embeddings")
        original = original or values.get("original_max_position_embeddings") or context
        own = {"kind", "theta", "context", "fraction", "interleaved", "original_context"}
        known = {field.name for field in dataclasses.fields(cls)} - own
        numbers: dict[str, Any] = {name: values[name] for name in known & set(values)}
        return cls(
            kind=str(kind),
            theta=float(values.get("rope_theta", hf.get("rope_theta") or theta)),
            context=context,
            fraction=float(partial or fraction or 1.0),
            interleaved=interleaved,
            original_context=int(original),
            **numbers,
        )

    def frequencies(self, size: int) -> tuple[np.ndarray, float]:
        """Returns radians per position (size / 2,) float32, and the scale of sines and cosines."""
        base = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        return SCALINGS[self.kind](self, np.float32(1.0) / np.float32(self.theta) ** base, size)

    def rotation(self, positions: Array, size: int) -> Rotation:
        """Computes the rotation of tokens.

        Args:
            positions: (B, T).
            size: head size H.
        """
        size = self.rotated(size)
        plain, scale = self.frequencies(size)
        frequencies = jnp.asarray(plain)
        if self.kind in BY_LENGTH:
            frequencies = BY_LENGTH[self.kind](self, jnp.max(positions) + 1, size, frequencies)
        places = positions.astype(jnp.float32)[..., None, None]
        angles = places * frequencies[None, None, None]
        growth = None
        if self.llama_4_scaling_beta is not None:
            turns = jnp.floor(places / self.first_context)
            growth = 1.0 + self.llama_4_scaling_beta * jnp.log1p(turns)
        return Rotation(jnp.cos(angles) * scale, jnp.sin(angles) * scale, growth, self.interleaved)


Frequencies = tuple[np.ndarray, float]


def _plain(rope: Rope, frequencies: np.ndarray, size: int) -> Frequencies:
    del rope, size
    return frequencies, 1.0


def _linear(rope: Rope, frequencies: np.ndarray, size: int) -> Frequencies:
    del size
    return frequencies / np.float32(rope.extension), 1.0


def _stretched(rope: Rope, length: Array, size: int, plain: Array) -> Array:
    """Computes dynamic scaling: the base grows once the text is longer than the context."""
    del plain
    length = jnp.maximum(length, rope.context).astype(jnp.float32)
    stretch = rope.extension * length / rope.context - (rope.extension - 1)
    base = rope.theta * stretch ** (size / (size - 2))
    return 1.0 / base ** (jnp.arange(0, size, 2, dtype=jnp.float32) / size)


def _llama3(rope: Rope, frequencies: np.ndarray, size: int) -> Frequencies:
    """Slows long waves by the factor, keeps short ones, and interpolates in between."""
    del size
    turns = np.float32(rope.first_context) * frequencies / (2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0).astype(np.float32)
    slow = frequencies / np.float32(rope.extension)
    return ((1 - kept) * slow + kept * frequencies).astype(np.float32), 1.0


def _yarn(rope: Rope, frequencies: np.ndarray, size: int) -> Frequencies:
    """Interpolates as llama3, with a ramp over features; the output scale grows with log factor."""
    context = rope.first_context
    low, high = (
        size * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
        for turns in (rope.beta_fast, rope.beta_slow)
    )
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    # Keeps the ramp from dividing by zero.
    high += 0.001 if low == high else 0.0
    slowed = np.clip((np.arange(size // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    mixed = frequencies / rope.extension * slowed + frequencies * (1 - slowed)
    return mixed.astype(np.float32), _yarn_scale(rope)


def _yarn_scale(rope: Rope) -> float:
    def grown(weight: float) -> float:
        return 1.0 if rope.extension <= 1 else 0.1 * weight * math.log(rope.extension) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return grown(rope.mscale) / grown(rope.mscale_all_dim)
    return grown(1.0)


def _longrope(rope: Rope, frequencies: np.ndarray, size: int) -> Frequencies:
    """Divides every frequency by its own factor; the output scale grows with log extension."""
    for name in _LISTS:
        count = len(getattr(rope, name))
        if count != size // 2:
            raise UserError(f"{name} has {count} numbers, and {size // 2} frequencies are rotated")
    first = rope.first_context
    extension = rope.context / first if rope.factor is None else rope.factor
    grown = 1.0 if extension <= 1 else math.sqrt(1 + math.log(extension) / math.log(first))
    scale = grown if rope.attention_factor is None else rope.attention_factor
    return frequencies / np.asarray(rope.short_factor, np.float32), scale


def _long_beyond(rope: Rope, length: Array, size: int, plain: Array) -> Array:
    """Computes longrope's frequencies of a text longer than the original context."""
    base = np.float32(rope.theta) ** (np.arange(0, size, 2, dtype=np.float32) / size)
    beyond = 1.0 / (np.asarray(rope.long_factor, np.float32) * base)
    return jnp.where(length > rope.first_context, beyond, plain)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"rope scaling's {name} is {value!r}: it must be a list of numbers")
    for number in value:
        check_number(f"rope scaling's {name}", number, above=0)
    return tuple(map(float, value))


_LISTS = ("short_factor", "long_factor")

_LIMITS: dict[str, dict[str, Any]] = {
    **{name: {"above": 0} for name in ("factor", "rope_theta", "low_freq_factor", "beta_fast")},
    **{name: {"above": 0} for name in ("high_freq_factor", "beta_slow", "attention_factor")},
    **{name: {"at_least": 0} for name in ("mscale", "mscale_all_dim", "llama_4_scaling_beta")},
    "original_max_position_embeddings": {"at_least": 1, "whole": True},
}
"""Name of a number in the config -> its valid range."""

SCALINGS: dict[str, Callable[[Rope, np.ndarray, int], Frequencies]] = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _plain,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
"""Name of a scaling -> the function for its frequencies and the scale of sines and cosines."""

BY_LENGTH: dict[str, Callable[[Rope, Array, int, Array], Array]] = {
    "dynamic": _stretched,
    "longrope": _long_beyond,
}
"""Name of a scaling whose frequencies depend on the text's length -> (settings, length, rotated
features, frequencies of a short text) -> frequencies."""

NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
"""Name of a scaling -> the numbers it needs that have no default."""
