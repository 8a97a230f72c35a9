"""Decompositions kept on disk by their content: a second start, a sweep, a sibling run find them.

A file's name is the hash of the kernel's bytes and of what was computed from it; so nothing has to
be invalidated, and two processes that write one file write the same. Files are written whole, carry
a checksum, and are computed again if it does not hold. A folder that cannot be read or written
costs a warning, never a run.
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
from typing import Annotated, Any

import jax
import numpy as np
from jax.core import Tracer
from threadpoolctl import threadpool_limits

from goat_jax.core.svd import Svd, svd_by_gram, svd_of_kernel
from goat_jax.files import report_unusable_cache, user_path, whole_file
from goat_jax.validation.fields import OneOf, check_fields

AUTO = "auto"
NONE = "none"


def _lapack(kernel: np.ndarray) -> Svd:
    return Svd(*map(np.asarray, _jitted(kernel)))  # type: ignore[arg-type]


_jitted = jax.jit(svd_of_kernel)

ROUTES: dict[str, Callable[[np.ndarray], Svd]] = {"lapack": _lapack, "gram": svd_by_gram}
"""How a kernel is decomposed: by LAPACK in float32, or by the eigenvectors of its smaller Gram
matrix in float64 (`core.svd.svd_by_gram` states its error)."""

KEEP = ("segments", "full")

WORK_BYTES = 4 * 2**30
"""Memory for what decompositions of several kernels at once compute with."""

COPIES = 7
"""How many float64 arrays of its kernel's size one decomposition holds: measured, 3 to 5.3 by the
Gram matrix, up to 7 where a square kernel then goes to LAPACK."""


@dataclasses.dataclass(frozen=True)
class SvdConfig:
    """How starts from an SVD are computed and kept.

    Attributes:
        folder: where; "none" keeps nothing; "auto" is the user's cache folder on the command line
            and "none" elsewhere.
        keep: "segments" keeps the triplets that the experts start from, 4 r (I + O) bytes a kernel,
            which serve any rho, eta, scale and alpha; "full" keeps all of them,
            4 H (I + O + 1) bytes with H the smaller side (one and a half to two times the kernel in
            float32), which serve any rank, number of experts and choice of segments as well.
        route: a key of `ROUTES`. "gram" is the faster one, and the more exact.

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
        """What `inject` uses."""
        folder = None if self.folder in (AUTO, NONE) else user_path(self.folder)
        return SvdStore(folder, self.keep, self.route)


@dataclasses.dataclass
class SvdStore:
    """Decompositions by content.

    Attributes:
        folder: where they are kept; None only computes.
        keep: see `SvdConfig`.
        route: see `SvdConfig`.
        found, computed: how many were read and how many were not there (or damaged).

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
    ) -> Svd:
        """u (I, n), s (n,), vt (n, O), float32, of the triplets with these numbers (n,).

        Args:
            kernel: (I, O), any float dtype.
            turn: entered to decompose it, not to look it up.
        """
        whole = self.keep == "full"
        path = self._path(kernel, None if whole else index)
        # One that is being decomposed by another thread is waited for, and read.
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

    def of_layers(self, kernel: jax.Array, indices: Sequence[np.ndarray]) -> list[Svd]:
        """`triplets` of every layer of a stack (L, I, O), or of one kernel (I, O); as many are
        decomposed at a time as there are cores, and room for in `WORK_BYTES`.

        Of a kernel that is spread over several processes each of them looks up or computes every
        so manyth layer, has one whole at a time, and tells the others; all have to call it.
        """
        if kernel.is_fully_addressable:
            whole = np.asarray(kernel).reshape(-1, *kernel.shape[-2:])
            cores = os.cpu_count() or 1
            room = max(1, WORK_BYTES // (COPIES * 8 * whole[0].size))
            at_once = min(cores, room, len(whole))
            look = partial(self.triplets, turn=Semaphore(at_once))
            # One thread for each of several kernels does more than several for one.
            with threadpool_limits(cores // at_once, "blas"), ThreadPoolExecutor(cores) as pool:
                return list(pool.map(look, whole, indices))
        layers = [kernel] if kernel.ndim == 2 else kernel
        count = jax.process_count()
        found = []
        for first in range(0, len(indices), count):
            found += self._together(layers, indices, range(first, min(first + count, len(indices))))
        return found

    def _together(self, layers: Any, indices: Sequence[np.ndarray], group: range) -> list[Svd]:
        """The triplets of as many layers as there are processes, one worked on by each."""
        from jax.experimental import multihost_utils

        mine, own = group.start + jax.process_index(), None
        for number in group:
            whole = multihost_utils.process_allgather(layers[number], tiled=True)
            if number == mine:
                own = self.triplets(whole, indices[number])
            shape = whole.shape
        told = []
        for number in group:
            n = len(indices[number])
            blank = (np.zeros(size, np.float32) for size in ((shape[0], n), n, (n, shape[1])))
            svd = own if number == mine else Svd(*blank)  # type: ignore[arg-type]
            sent = multihost_utils.broadcast_one_to_all(svd, is_source=number == mine)
            told.append(jax.tree.map(np.asarray, sent))
        return told

    def _write(self, path: Path, svd: Svd) -> None:
        """Keeps a decomposition if the folder takes it; after a failure nothing more is tried."""
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


def is_known(kernel: Any) -> bool:
    """Whether a kernel has numbers: under `jax.eval_shape` it has none."""
    return not isinstance(kernel, Tracer)


def _take(svd: Svd, index: np.ndarray) -> Svd:
    parts = svd.u[:, index], svd.s[index], svd.vt[index]
    return Svd(*(np.ascontiguousarray(part) for part in parts))  # type: ignore[arg-type]


def _bytes(array: Any) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _checksum(svd: Svd) -> str:
    total = hashlib.sha256()
    for part in svd:
        total.update(_bytes(part))
    return total.hexdigest()


def _read(path: Path, shape: tuple[int, ...], n: int) -> Svd | None:
    """The decomposition in a file; None if there is none or it is damaged.

    Args:
        shape: of the kernel.
        n: how many triplets it must have.
    """
    from safetensors import safe_open

    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="numpy") as file:
            svd = Svd(*(file.get_tensor(name) for name in Svd._fields))
            expected = (file.metadata() or {}).get("sha256")
    except Exception:  # whatever is wrong with the file or its folder, the kernel is here
        return None
    # The checksum is of the numbers alone; a damaged header can give them another shape or type.
    shapes = [(shape[0], n), (n,), (n, shape[1])]
    fits = all(a.shape == b and a.dtype == np.float32 for a, b in zip(svd, shapes, strict=True))
    return svd if fits and expected == _checksum(svd) else None


def _write(path: Path, svd: Svd) -> None:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(part) for name, part in svd._asdict().items()}
    with whole_file(path) as aside:
        save_file(tensors, aside, metadata={"sha256": _checksum(svd)})
