"""Cost and error of the ways to decompose a kernel, by its size and by segment of the spectrum."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.bench.turns import take_turns
from goat_jax.core.gram_svd import gram_flops
from goat_jax.core.svd import Svd, block_heads, minor, principal, svd_flops
from goat_jax.injection.svd_cache import SvdStore

SIZES = ((1024, 1024), (1024, 2816))
EXPERTS = 8
PRODUCT = 1536
"""Side of the matrices of the plain product that routes are compared with."""

SEGMENTS = {"top": principal, "blocks": block_heads, "minor": minor}
"""Name of a segment -> the choice of 32 triplets in it."""


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """One kernel, decomposed by one route.

    Attributes:
        kernel: the kernel's size, as text.
        route: the key of `ROUTES`.
        flops: the FLOPs by count, in the precision of the route.
        seconds: the median seconds of a call: of the processor on a CPU, by the clock elsewhere.
        share: the FLOP/s over those of a plain product of float32 matrices in the same process.
        residuals: segment -> the largest length of ``kernel v - s u`` and ``kernel^T u - s v``
            over the largest singular value.
        products: segment -> the distance of ``u s v`` from that of the first route, over its norm.
        on_host: whether the device was too inexact, so that the figures are those of the host.
    """

    kernel: str
    route: str
    flops: int
    seconds: float
    share: float
    residuals: dict[str, float]
    products: dict[str, float]
    on_host: bool


def falling_kernel(rows: int, columns: int) -> np.ndarray:
    """Makes a random kernel whose singular values fall by a power, as those of trained ones.

    Args:
        rows: the kernel's inputs I.
        columns: the kernel's outputs O.
    """
    kernel = np.random.default_rng(0).standard_normal((rows, columns), np.float32)
    return kernel * np.arange(1, columns + 1, dtype=np.float32)[None] ** np.float32(-0.6)


def measure_decompositions(
    rows: int, columns: int, *, routes: Sequence[str], turns: int
) -> list[Decomposition]:
    """Decomposes a kernel by several routes, interleaved.

    Args:
        rows: the kernel's inputs I.
        columns: the kernel's outputs O.
        routes: keys of `ROUTES`; products are compared with the first one's.
        turns: the number of timed calls of each.
    """
    kernel, side = falling_kernel(rows, columns), min(rows, columns)
    rank, key = max(1, min(32, side) // EXPERTS), jax.random.key(0)
    indices = {
        name: np.asarray(choice(side, EXPERTS, rank, key)).reshape(-1)
        for name, choice in SEGMENTS.items()
    }
    index = np.concatenate(list(indices.values()))
    on_cpu = jax.default_backend() == "cpu"
    found: dict[str, Svd[np.ndarray]] = {}
    stores = {route: SvdStore(None, route=route) for route in routes}

    def call(route: str) -> None:
        found[route] = stores[route].triplets(kernel, index)

    square, product = jnp.ones((PRODUCT, PRODUCT)), jax.jit(jnp.matmul)
    calls: dict[str, Callable[[], Any]] = {
        route: lambda route=route: call(route) for route in routes
    }
    calls["product"] = lambda: product(square, square)
    timed = take_turns(calls, turns, time.process_time if on_cpu else time.perf_counter)
    places = np.split(np.arange(len(index)), np.cumsum([len(i) for i in indices.values()])[:-1])
    parts = dict(zip(indices, places, strict=True))
    first = found[routes[0]]
    product_rate = 2 * PRODUCT**3 / timed["product"].median
    return [
        Decomposition(
            f"{rows} x {columns}",
            route,
            _flops(route, rows, columns),
            timed[route].median,
            _flops(route, rows, columns) / timed[route].median / product_rate,
            {
                name: _residual(kernel, _part(found[route], at), first.s.max())
                for name, at in parts.items()
            },
            {name: _apart(_part(first, at), _part(found[route], at)) for name, at in parts.items()},
            bool(stores[route].inexact),
        )
        for route in routes
    ]


def _flops(route: str, rows: int, columns: int) -> int:
    """Returns the FLOPs of a route; those of LAPACK and of the first Gram matrix by convention."""
    side, wide = sorted((rows, columns))
    counts = {
        "lapack": 6 * side**2 * wide + 20 * side**3,
        "gram": svd_flops(rows, columns),
        "device": gram_flops(rows, columns),
    }
    return counts[route]


def _part(svd: Svd[np.ndarray], places: np.ndarray) -> Svd[np.ndarray]:
    u, s, vt = (np.asarray(part, np.float64) for part in svd)
    return Svd(u[:, places], s[places], vt[places])


def _residual(kernel: np.ndarray, svd: Svd[np.ndarray], largest: float) -> float:
    wide = kernel.astype(np.float64)
    forth = np.linalg.norm(wide @ svd.vt.T - svd.u * svd.s, axis=0).max()
    back = np.linalg.norm(wide.T @ svd.u - svd.vt.T * svd.s, axis=0).max()
    return float(max(forth, back) / largest)


def _apart(want: Svd[np.ndarray], got: Svd[np.ndarray]) -> float:
    wanted = (want.u * want.s) @ want.vt
    return float(np.linalg.norm((got.u * got.s) @ got.vt - wanted) / np.linalg.norm(wanted))
