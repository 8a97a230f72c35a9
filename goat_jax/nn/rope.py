"""Rotary position embeddings (RoPE), with every scaling that Llama-like checkpoints use.

Sources: Su et al., "RoFormer" (arXiv 2104.09864); linear: Chen et al. (arXiv 2306.15595); yarn:
Peng et al. (arXiv 2309.00071); llama3: as published with Llama 3.1. A config may spell them in two
ways: `rope_theta` beside `rope_scaling`, or all of it in `rope_parameters`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from goat_jax.errors import UserError, nearest
from goat_jax.typing import Array
from goat_jax.validation.checks import check_number


@dataclasses.dataclass(frozen=True)
class Rope:
    """Settings of rotary position embeddings.

    Except for `kind`, `context` and `original_context`, the names are those of Hugging Face
    configs.

    Attributes:
        kind: a key of `SCALINGS`.
        theta: base of the wavelengths.
        context: number of tokens the model was trained for; "dynamic" rescales beyond it.
        factor: factor by which the context is extended.
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

    >>> Rope(theta=100.0).frequencies(4)
    (array([1. , 0.1], dtype=float32), 1.0)
    """

    kind: str = "default"
    theta: float = 10000.0
    context: int = 2048
    factor: float = 1.0
    original_context: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in SCALINGS:
            hint = nearest(str(self.kind), SCALINGS)
            raise UserError(
                f"rope scaling {self.kind!r} is not supported{hint}: one of {', '.join(SCALINGS)}"
            )
        if self.factor <= 0 or self.theta <= 0:
            raise UserError(f"rope factor {self.factor} and theta {self.theta} must be above 0")

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], theta: float, context: int) -> Rope:
        """Reads the RoPE settings of a config.json in either spelling.

        Args:
            hf: config.json as a dict.
            theta: base of the wavelengths if the config has none.
            context: number of tokens the model was trained for.

        Raises:
            UserError: a scaling that is not supported, or one that lacks a number it needs.
        """
        section = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
        values = {name: value for name, value in section.items() if value is not None}
        kind = values.get("rope_type", values.get("type", "default"))
        for name, value in values.items():
            if isinstance(value, Mapping):
                raise UserError(
                    f"rope_parameters has an object {name!r}: only one scaling for all layers is "
                    "supported"
                )
            if name in _LIMITS:
                check_number(f"rope scaling's {name}", value, **_LIMITS[name])
        partial = values.get("partial_rotary_factor", hf.get("partial_rotary_factor")) or 1.0
        if partial != 1.0:
            raise UserError(f"partial_rotary_factor {partial} is not supported: only 1.0 is")
        for name in NEEDED.get(str(kind), ()):
            if name not in values:
                raise UserError(f"rope scaling {kind!r} has no {name!r}: add it to config.json")
        original = hf.get("original_max_position_embeddings")
        original = original or values.get("original_max_position_embeddings") or context
        known = {field.name for field in dataclasses.fields(cls)} - {"kind", "theta", "context"}
        numbers: dict[str, Any] = {name: values[name] for name in known & set(values)}
        return cls(
            kind=str(kind),
            theta=float(values.get("rope_theta", hf.get("rope_theta") or theta)),
            context=context,
            original_context=int(original),
            **numbers,
        )

    def frequencies(self, size: int) -> tuple[np.ndarray, float]:
        """Returns radians per position (size / 2,) float32, and the scale of sines and cosines."""
        base = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        return SCALINGS[self.kind](self, np.float32(1.0) / np.float32(self.theta) ** base, size)

    def rotation(self, positions: Array, size: int) -> tuple[Array, Array]:
        """Computes cosines and sines (B, T, 1, size / 2), float32.

        Args:
            positions: (B, T).
            size: head size H.
        """
        plain, scale = self.frequencies(size)
        frequencies = jnp.asarray(plain)
        if self.kind == "dynamic":
            frequencies = _stretched(self, jnp.max(positions) + 1, size)
        angles = positions.astype(jnp.float32)[..., None, None] * frequencies[None, None, None]
        return jnp.cos(angles) * scale, jnp.sin(angles) * scale


def rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """Rotates heads x (B, T, N, H), pairing feature i of the first half with i of the second.

    >>> x = jnp.ones((1, 1, 1, 2))
    >>> rotate(x, Rope().rotation(jnp.zeros((1, 1)), 2)).ravel()
    Array([1., 1.], dtype=float32)
    """
    cos, sin = rotation
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.broadcast_to(cos, first.shape), jnp.broadcast_to(sin, first.shape)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


Frequencies = tuple[np.ndarray, float]


def _plain(rope: Rope, frequencies: np.ndarray, size: int) -> Frequencies:
    del rope, size
    return frequencies, 1.0


def _linear(rope: Rope, frequencies: np.ndarray, size: int) -> Frequencies:
    del size
    return frequencies / np.float32(rope.factor), 1.0


def _stretched(rope: Rope, length: Array, size: int) -> Array:
    """Computes dynamic scaling: the base grows once the text is longer than the context."""
    length = jnp.maximum(length, rope.context).astype(jnp.float32)
    stretch = rope.factor * length / rope.context - (rope.factor - 1)
    base = rope.theta * stretch ** (size / (size - 2))
    return 1.0 / base ** (jnp.arange(0, size, 2, dtype=jnp.float32) / size)


def _llama3(rope: Rope, frequencies: np.ndarray, size: int) -> Frequencies:
    """Slows long waves by the factor, keeps short ones, and interpolates in between."""
    del size
    turns = np.float32(rope.original_context or rope.context) * frequencies / (2 * math.pi)
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0).astype(np.float32)
    slow = frequencies / np.float32(rope.factor)
    return ((1 - kept) * slow + kept * frequencies).astype(np.float32), 1.0


def _yarn(rope: Rope, frequencies: np.ndarray, size: int) -> Frequencies:
    """Interpolates as llama3, with a ramp over features; the output scale grows with log factor."""
    context = rope.original_context or rope.context
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
    mixed = frequencies / rope.factor * slowed + frequencies * (1 - slowed)
    return mixed.astype(np.float32), _yarn_scale(rope)


def _yarn_scale(rope: Rope) -> float:
    def grown(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return grown(rope.mscale) / grown(rope.mscale_all_dim)
    return grown(1.0)


_LIMITS: dict[str, dict[str, Any]] = {
    **{name: {"above": 0} for name in ("factor", "rope_theta", "low_freq_factor", "beta_fast")},
    **{name: {"above": 0} for name in ("high_freq_factor", "beta_slow", "attention_factor")},
    **{name: {"at_least": 0} for name in ("mscale", "mscale_all_dim", "partial_rotary_factor")},
    "original_max_position_embeddings": {"at_least": 1, "whole": True},
}
"""Name of a number in the config -> its valid range."""

SCALINGS: dict[str, Callable[[Rope, np.ndarray, int], Frequencies]] = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _plain,  # plain up to the context; `Rope.rotation` rescales beyond it
    "llama3": _llama3,
    "yarn": _yarn,
}
"""Name of a scaling -> the function for its frequencies and the scale of sines and cosines."""

NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
"""Name of a scaling -> the numbers it needs that have no default."""
