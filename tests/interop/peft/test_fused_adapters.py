"""Adapters of layers that other programs store as one, joined from those of the parts."""

import numpy as np
import pytest

from goat_jax.errors import UserError
from goat_jax.interop.low_rank import LowRank
from goat_jax.interop.peft.fused_adapters import join_adapters
from goat_jax.models.fused import Fused
from kinds import present

FUSED = (Fused("a.qkv", ("a.q", "a.k", "a.v"), lambda config: (4, 2, 2)),)
RNG = np.random.default_rng(0)


def adapter(outputs, rank, magnitude=False):
    a, b, m = (RNG.normal(size=shape) for shape in ((3, rank), (rank, outputs), outputs))
    return LowRank(a, b, 0.5, m if magnitude else None, False)


def test_the_change_of_the_whole_is_the_changes_of_its_parts_side_by_side():
    parts = {"0.a.q": adapter(4, 1), "0.a.v": adapter(2, 2), "0.mlp": adapter(5, 1)}
    joined = join_adapters(parts, FUSED, None)
    assert set(joined) == {"0.a.qkv", "0.mlp"} and joined["0.mlp"] is parts["0.mlp"]
    change = lambda own: own.scale * own.a @ own.b  # noqa: E731
    q, v = change(parts["0.a.q"]), change(parts["0.a.v"])
    np.testing.assert_allclose(
        change(joined["0.a.qkv"]), np.concatenate([q, np.zeros((3, 2)), v], axis=1), rtol=1e-6
    )


def test_dora_of_one_part_is_refused():
    parts = {
        f"0.a.{part}": adapter(size, 1, True) for part, size in zip("qkv", (4, 2, 2), strict=True)
    }
    expected = np.concatenate([present(own.magnitude) for own in parts.values()])
    np.testing.assert_array_equal(join_adapters(parts, FUSED, None)["0.a.qkv"].magnitude, expected)
    with pytest.raises(UserError, match=r"0\.a\.qkv is one layer in transformers, and DoRA scales"):
        join_adapters(parts | {"0.a.v": adapter(2, 1)}, FUSED, None)
