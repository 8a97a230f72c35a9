"""Disk cache of kernels' SVDs, keyed by content, so that restarts and sweeps compute them once.

A file's name is the hash of the kernel's bytes and of the parameters of the decomposition. So
entries never need invalidating, and two processes that write the same file write the same content.
Files are written atomically and carry a checksum; one whose checksum is wrong is computed again. A
folder that cannot be read or written costs a warning and never stops a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Annotated, Any

import jax
import numpy as np
from jax.core import Tracer
from threadpoolctl import threadpool_limits

from goat_jax.core.gram_svd import triplets_by_gram
from goat_jax.core.svd import Svd, svd_by_gram, svd_of_kernel
from goat_jax.files import report_unusable_cache, user_path, whole_file
from goat_jax.validation.fields import OneOf, check_fields

AUTO = "auto"
NONE = "none"


def _lapack(kernel: np.ndarray, index: np.ndarray | None) -> Svd[np.ndarray]:
    return _take(Svd(*map(np.asarray, _lapack_jitted(kernel))), index)


def _gram(kernel: np.ndarray, index: np.ndarray | None) -> Svd[np.ndarray]:
    return _take(svd_by_gram(kernel), index)


class InexactError(Exception):
    """Raised by the route "device" for triplets whose error is above `DEVICE_ERROR`.

    Attributes:
        error: the error; may be NaN.
    """

    def __init__(self, error: float) -> None:
        super().__init__(f"the device's triplets have an error of {error:.1e}")
        self.error = error


def _device(kernel: np.ndarray, index: np.ndarray | None) -> Svd[np.ndarray]:
    svd, error = _device_jitted(kernel, index)
    if not float(error) <= DEVICE_ERROR:  # True for NaN
        raise InexactError(float(error))
    return Svd(*map(np.asarray, svd))


_lapack_jitted = jax.jit(svd_of_kernel)
_device_jitted = jax.jit(triplets_by_gram)

DEVICE_ERROR = 1e-5
"""Largest error of `core.gram_svd.triplets_by_gram` that is accepted."""

ROUTES: dict[str, Callable[[np.ndarray, np.ndarray | None], Svd[np.ndarray]]] = {
    "lapack": _lapack,
    "gram": _gram,
    "device": _device,
}
"""Name -> function that returns a kernel's triplets, of an index or all. LAPACK works in float32,
"gram" by the eigenvectors of the smaller Gram matrix in float64 on the host (`core.svd.svd_by_gram`
states its error), "device" by those in float32 on the device, which raises `InexactError` for a
kernel for which that is not as exact as `DEVICE_ERROR` asks."""

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
        route: a key of `ROUTES`: "gram" is the fastest and the most accurate one on a CPU, "device"
            is for GPUs; "auto" chooses by that. A TPU's host decomposes by "gram", since the
            TPU's compiler takes minutes for the eigenvectors of each size of kernel.

    Raises:
        UserError: an unknown choice.
    """

    folder: str = AUTO
    keep: Annotated[str, OneOf(KEEP)] = "segments"
    route: Annotated[str, OneOf((AUTO, *ROUTES))] = AUTO

    def __post_init__(self) -> None:
        check_fields(self, "svd.")

    @property
    def store(self) -> SvdStore:
        """The store that `inject` uses."""
        folder = None if self.folder in (AUTO, NONE) else user_path(self.folder)
        best = "device" if jax.default_backend() == "gpu" else "gram"
        return SvdStore(folder, self.keep, best if self.route == AUTO else self.route)


@dataclasses.dataclass
class SvdStore:
    """Cache of decompositions by content.

    Attributes:
        folder: the cache folder; None computes without caching.
        keep: see `SvdConfig`.
        route: see `SvdConfig`.
        found: number of decompositions read from the cache.
        computed: number of decompositions computed, because they were missing or damaged there.
        inexact: errors of the route "device" for the kernels that were then decomposed by "gram".

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
    inexact: list[float] = dataclasses.field(default_factory=list)
    _writable: bool = dataclasses.field(default=True, repr=False, compare=False)
    _counting: Lock = dataclasses.field(default_factory=Lock, repr=False, compare=False)
    _making: dict[Path, Lock] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def triplets(
        self,
        kernel: np.ndarray,
        index: np.ndarray,
        turn: Callable[[], AbstractContextManager] = nullcontext,
    ) -> Svd[np.ndarray]:
        """Returns u (I, n), s (n,), vt (n, O), float32, of the triplets with these indices (n,).

        Args:
            kernel: (I, O), any float dtype.
            index: indices of the triplets, (n,).
            turn: makes the context manager that is entered to decompose the kernel, but not to
                look it up.
        """
        whole = self.keep == "full"
        path = self._path(kernel, None if whole else index)
        # If another thread is decomposing the same kernel, wait for it, then read its result.
        with nullcontext() if path is None else self._making.setdefault(path, Lock()):
            n = min(kernel.shape) if whole else len(index)
            kept = None if path is None else _read(path, kernel.shape, n)
            found = kept is not None
            if kept is None:
                with turn():
                    kept = self._decompose(np.asarray(kernel), None if whole else index)
                if path is not None:
                    self._write(path, kept)
        with self._counting:
            self.found += found
            self.computed += not found
        return _take(kept, index) if whole else kept

    def _decompose(self, kernel: np.ndarray, index: np.ndarray | None) -> Svd[np.ndarray]:
        """Computes a kernel's triplets by the route, or by "gram" if they are too inexact."""
        try:
            return ROUTES[self.route](kernel, index)
        except InexactError as found:
            with self._counting:
                self.inexact.append(found.error)
            return _gram(kernel, index)

    def note(self) -> str | None:
        """Returns the line on kernels that were left to the host; None if there are none.

        It counts those of all processes, which all have to call it.
        """
        found = np.array([len(self.inexact), np.max(self.inexact, initial=0.0)], np.float32)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            found = multihost_utils.process_allgather(found)
        counts, errors = found.reshape(-1, 2).T
        if not counts.any():
            return None
        return (
            f"kernels decomposed on the host: {counts.sum():.0f}, because the device's error was "
            f"up to {errors.max():.1e}, above {DEVICE_ERROR:.0e}"
        )

    def of_layers(self, kernel: jax.Array, indices: Sequence[np.ndarray]) -> list[Svd[np.ndarray]]:
        """Returns `triplets` of every layer of a stack (L, I, O), or of one kernel (I, O).

        Several kernels are decomposed at a time: one on each device of the process, or on the host
        as many as there are cores and `WORK_BYTES` allows. Each is copied to the host by itself.
        If the kernel is sharded over several processes, the layers are dealt out among them: each
        process gathers one complete layer at a time (by the route "device" one for each of its
        devices), looks them up or decomposes them, and broadcasts the results. All processes have
        to call it.

        Args:
            kernel: (L, I, O) or (I, O).
            indices: the triplets' indices of every layer.
        """
        layers = [kernel] if kernel.ndim == 2 else kernel
        if kernel.is_fully_addressable:
            return self._each(layers, indices)
        count = jax.process_count() * len(self._places(kernel.shape[-2:], 1))
        triplets = []
        for first in range(0, len(indices), count):
            triplets += self._together(
                layers, indices, range(first, min(first + count, len(indices)))
            )
        return triplets

    def _each(
        self, layers: Sequence[Any] | jax.Array, indices: Sequence[np.ndarray]
    ) -> list[Svd[np.ndarray]]:
        """Returns the triplets of layers that this process can read, several at a time."""
        if not indices:
            return []
        cores, places = os.cpu_count() or 1, SimpleQueue[Any]()
        at_once = self._places(layers[0].shape, len(indices))
        for place in at_once:
            places.put(place)

        def look(number: int) -> Svd[np.ndarray]:
            turn = partial(_taken, places)
            return self.triplets(np.asarray(layers[number]), indices[number], turn)

        # One thread for each of several kernels is faster than several threads for one.
        with (
            threadpool_limits(max(1, cores // len(at_once)), "blas"),
            ThreadPoolExecutor(cores) as pool,
        ):
            return list(pool.map(look, range(len(indices))))

    def _places(self, shape: tuple[int, ...], kernels: int) -> list[Any]:
        """Returns the places that decompose a kernel each: devices, or None for the host."""
        if self.route == "device":
            return list(jax.local_devices())
        room = max(1, WORK_BYTES // (COPIES * 8 * math.prod(shape)))
        return [None] * min(os.cpu_count() or 1, room, kernels)

    def _together(
        self, layers: Sequence[jax.Array] | jax.Array, indices: Sequence[np.ndarray], group: range
    ) -> list[Svd[np.ndarray]]:
        """Returns the triplets of a group of layers, each decomposed by one of the processes."""
        from jax.experimental import multihost_utils

        local, inputs, outputs = {}, 0, 0
        for number in group:
            whole = multihost_utils.process_allgather(layers[number], tiled=True)
            inputs, outputs = whole.shape
            if number in group[jax.process_index() :: jax.process_count()]:
                local[number] = whole
        found = self._each(list(local.values()), [indices[number] for number in local])
        found, triplets = dict(zip(local, found, strict=True)), []
        for number in group:
            n = len(indices[number])
            blank = (np.zeros(size, np.float32) for size in ((inputs, n), n, (n, outputs)))
            svd = found[number] if number in found else Svd(*blank)
            sent = multihost_utils.broadcast_one_to_all(svd, is_source=number in found)
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


@contextmanager
def _taken(places: SimpleQueue[Any]) -> Iterator[None]:
    """Waits for a place and computes there."""
    place = places.get()
    try:
        with jax.default_device(place):
            yield
    finally:
        places.put(place)


def _take(svd: Svd[np.ndarray], index: np.ndarray | None) -> Svd[np.ndarray]:
    if index is None:
        return svd
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
