"""Jax's persistent compilation cache, for the verbs that compile and for `goat_jax.load`."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

from goat_jax.files import cache_folder, report_unusable_cache

SHORTEST = 1.0
"""Shortest compilation, in seconds, whose result jax keeps by default."""


def keep_compiled() -> None:
    """Turns on jax's persistent compilation cache, so that a later start compiles less.

    The user's settings win: a cache folder set for jax is kept, and
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
    """
    import jax

    settings: Any = jax.config
    if settings.jax_compilation_cache_dir is not None:
        return
    folder = cache_folder("compiled")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        report_unusable_cache(folder, error)
        if not folder.is_dir():  # a read-only cache still helps
            return
    # jax compiles an entry that it cannot read, with a warning of two lines each time.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    settings.update("jax_compilation_cache_dir", str(folder))
    if settings.jax_persistent_cache_min_compile_time_secs == SHORTEST:
        # A start has many programs that take less.
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.0)
