"""Disk cache of kernels' SVDs, keyed by content, so that restarts and sweeps compute them once.

A file's name is the hash of the kernel's bytes and of the parameters of the decomposition. So
entries never need invalidating, and two processes that write the same file write the same content.
Files are written atomically and carry a checksum; one whose checksum is wrong is computed again. A
folder that cannot be read or written costs a warning and never stops a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from threading import Lock, Semaphore
from typing import Annotated

import jax
import numpy as np
from jax.core import Tracer
from threadpoolctl import threadpool_limits

from goat_jax.core.svd import Svd, svd_by_gram, svd_of_kernel
from goat_jax.files import report_unusable_cache, user_path, whole_file
from goat_jax.validation.fields import OneOf, check_fields

AUTO = "auto"
NONE = "none"


def _lapack(kernel: np.ndarray) -> Svd[np.ndarray]:
    return Svd(*map(np.asarray, _jitted(kernel)))


_jitted = jax.jit(svd_of_kernel)

ROUTES: dict[str, Callable[[np.ndarray], Svd[np.ndarray]]] = {
    "lapack": _lapack,
    "gram": svd_by_gram,
}
"""Name -> function that decomposes a kernel: LAPACK in float32, or the eigenvectors of the smaller
Gram matrix in float64 (`core.svd.svd_by_gram` states its error)."""

KEEP = ("segments", "full")

WORK_BYTES = 4 * 2**30
"""Working memory in bytes for decompositions that run at the same time."""

COPIES = 7
"""Number of float64 arrays of the kernel's size that one decomposition holds. Measured: 3 to 5.3
by the Gram matrix, up to 7 where a square kernel then falls back to LAPACK."""


@dataclasses.dataclass(frozen=True)
class SvdConfig:
    """Settings for computing and caching the SVDs that adapters are initialized from.

    Attributes:
        folder: the cache folder; "none" keeps nothing; "auto" is the user's cache folder on the
            command line and where a trained run is loaded, and "none" elsewhere.
        keep: "segments" keeps the triplets that the experts start from, 4 r (I + O) bytes a kernel,
            which serve any rho, eta, scale and alpha; "full" keeps all of them,
            4 H (I + O + 1) bytes with H the smaller side (one and a half to two times the kernel in
            float32), which serve any rank, number of experts and choice of segments as well.
        route: a key of `ROUTES`. "gram" is the faster and the more accurate one.

    Raises:
        UserError: an unknown choice.
    """

    folder: str = AUTO
    keep: Annotated[str, OneOf(KEEP)] = "segments"
    route: Annotated[str, OneOf(ROUTES)] = "gram"

    def __post_init__(self) -> None:
        check_fields(self, "svd.")

    @property
    def store(self) -> SvdStore:
        """The store that `inject` uses."""
        folder = None if self.folder in (AUTO, NONE) else user_path(self.folder)
        return SvdStore(folder, self.keep, self.route)


@dataclasses.dataclass
class SvdStore:
    """Cache of decompositions by content.

    Attributes:
        folder: the cache folder; None computes without caching.
        keep: see `SvdConfig`.
        route: see `SvdConfig`.
        found: number of decompositions read from the cache.
        computed: number of decompositions computed, because they were missing or damaged there.

    >>> import tempfile
    >>> kernel = np.diag(np.arange(4.0, 0.0, -1.0)).astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = SvdStore(Path(folder))
    ...     s = [store.triplets(kernel, np.array([0, 2])).s.tolist() for _ in range(2)]
    >>> s, store.computed, store.found
    ([[4.0, 2.0], [4.0, 2.0]], 1, 1)
    """

    folder: Path | None
    keep: str = "segments"
    route: str = "gram"
    found: int = 0
    computed: int = 0
    _writable: bool = dataclasses.field(default=True, repr=False, compare=False)
    _counting: Lock = dataclasses.field(default_factory=Lock, repr=False, compare=False)
    _making: dict[Path, Lock] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def triplets(
        self, kernel: np.ndarray, index: np.ndarray, turn: AbstractContextManager | None = None
    ) -> Svd[np.ndarray]:
        """Returns u (I, n), s (n,), vt (n, O), float32, of the triplets with these indices (n,).

        Args:
            kernel: (I, O), any float dtype.
            index: indices of the triplets, (n,).
            turn: context manager entered to decompose the kernel, but not to look it up.
        """
        whole = self.keep == "full"
        path = self._path(kernel, None if whole else index)
        # If another thread is decomposing the same kernel, wait for it, then read its result.
        with nullcontext() if path is None else self._making.setdefault(path, Lock()):
            n = min(kernel.shape) if whole else len(index)
            kept = None if path is None else _read(path, kernel.shape, n)
            found = kept is not None
            if kept is None:
                with turn or nullcontext():
                    kept = ROUTES[self.route](np.asarray(kernel))
                kept = kept if whole else _take(kept, index)
                if path is not None:
                    self._write(path, kept)
        with self._counting:
            self.found += found
            self.computed += not found
        return _take(kept, index) if whole else kept

    def of_layers(self, kernel: jax.Array, indices: Sequence[np.ndarray]) -> list[Svd[np.ndarray]]:
        """Returns `triplets` of every layer of a stack (L, I, O), or of one kernel (I, O).

        Several kernels are decomposed at a time, as many as there are cores and `WORK_BYTES`
        allows. If the kernel is sharded over several processes, the layers are dealt out among
        them: each process gathers one complete layer at a time, looks it up or decomposes it, and
        broadcasts the result. All processes have to call it.

        Args:
            kernel: (L, I, O) or (I, O).
            indices: the triplets' indices of every layer.
        """
        if kernel.is_fully_addressable:
            whole = np.asarray(kernel).reshape(-1, *kernel.shape[-2:])
            cores = os.cpu_count() or 1
            room = max(1, WORK_BYTES // (COPIES * 8 * whole[0].size))
            at_once = min(cores, room, len(whole))
            look = partial(self.triplets, turn=Semaphore(at_once))
            # One thread for each of several kernels is faster than several threads for one.
            with threadpool_limits(cores // at_once, "blas"), ThreadPoolExecutor(cores) as pool:
                return list(pool.map(look, whole, indices))
        layers = [kernel] if kernel.ndim == 2 else kernel
        count = jax.process_count()
        triplets = []
        for first in range(0, len(indices), count):
            triplets += self._together(
                layers, indices, range(first, min(first + count, len(indices)))
            )
        return triplets

    def _together(
        self, layers: Sequence[jax.Array] | jax.Array, indices: Sequence[np.ndarray], group: range
    ) -> list[Svd[np.ndarray]]:
        """Returns the triplets of a group of layers, at most one decomposed by each process."""
        from jax.experimental import multihost_utils

        local_number, local = group.start + jax.process_index(), None
        inputs = outputs = 0
        for number in group:
            whole = multihost_utils.process_allgather(layers[number], tiled=True)
            inputs, outputs = whole.shape
            if number == local_number:
                local = self.triplets(whole, indices[number])
        triplets = []
        for number in group:
            n = len(indices[number])
            blank = (np.zeros(size, np.float32) for size in ((inputs, n), n, (n, outputs)))
            svd = local if number == local_number else Svd(*blank)
            sent = multihost_utils.broadcast_one_to_all(svd, is_source=number == local_number)
            triplets.append(jax.tree.map(np.asarray, sent))
        return triplets

    def _write(self, path: Path, svd: Svd[np.ndarray]) -> None:
        """Writes a decomposition to the folder; after a failure nothing more is written."""
        if not self._writable:
            return
        try:
            _write(path, svd)
        except Exception as error:  # safetensors raises no OSError for a full disk
            self._writable = False
            report_unusable_cache(path.parent, error)

    def _path(self, kernel: np.ndarray, index: np.ndarray | None) -> Path | None:
        if self.folder is None:
            return None
        what = "full" if index is None else np.asarray(index, np.int64).tobytes().hex()
        head = f"1 {self.route} {kernel.dtype} {kernel.shape} {what}"
        name = hashlib.sha256(head.encode() + b"\0")
        name.update(_bytes(kernel))
        return self.folder / f"{name.hexdigest()}.safetensors"


def is_concrete(kernel: object) -> bool:
    """True if a kernel has concrete values; under `jax.eval_shape` it has none."""
    return not isinstance(kernel, Tracer)


def _take(svd: Svd[np.ndarray], index: np.ndarray) -> Svd[np.ndarray]:
    parts = svd.u[:, index], svd.s[index], svd.vt[index]
    return Svd(*(np.ascontiguousarray(part) for part in parts))


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _checksum(svd: Svd[np.ndarray]) -> str:
    total = hashlib.sha256()
    for part in svd:
        total.update(_bytes(part))
    return total.hexdigest()


def _read(path: Path, shape: tuple[int, ...], n: int) -> Svd[np.ndarray] | None:
    """Reads the decomposition in a file; None if there is none or it is damaged.

    Args:
        path: the file.
        shape: the kernel's shape.
        n: number of triplets it must have.
    """
    from safetensors import safe_open

    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="numpy") as file:
            svd = Svd(*(file.get_tensor(name) for name in Svd._fields))
            expected = (file.metadata() or {}).get("sha256")
    except Exception:  # whatever is wrong with the file, it can be computed from the kernel
        return None
    # The checksum covers the numbers alone; a damaged header can change their shape or dtype.
    shapes = [(shape[0], n), (n,), (n, shape[1])]
    fits = all(a.shape == b and a.dtype == np.float32 for a, b in zip(svd, shapes, strict=True))
    return svd if fits and expected == _checksum(svd) else None


def _write(path: Path, svd: Svd[np.ndarray]) -> None:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(part) for name, part in svd._asdict().items()}
    with whole_file(path) as aside:
        save_file(tensors, aside, metadata={"sha256": _checksum(svd)})
