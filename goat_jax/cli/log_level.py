"""``--log-level``: how much the command line prints besides results."""

from __future__ import annotations

import logging

LEVELS = ("error", "warning", "info", "debug")
"""error: no notices; warning (the default): notices; info: also what the libraries below log;
debug: also more of that, and the traceback of an error."""

NOISY = ("absl", "asyncio")
"""Loggers that report once more, in many lines, what is also raised."""

_LOGGER = logging.getLogger("goat_jax")


def apply_log_level(level: str | None = None) -> None:
    """Sets the level of this process, one of `LEVELS`; None keeps one that was set before.

    Orbax logs the error that it also raises, and its pending writes report to an event loop that is
    already closed: below "info" neither is shown.
    """
    level = level or (logging.getLevelName(_LOGGER.level).lower() if _LOGGER.level else "warning")
    _LOGGER.setLevel(level.upper())
    detailed = level in ("info", "debug")
    if detailed:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger().setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(level.upper() if detailed else logging.CRITICAL)


def shows_details() -> bool:
    """True if what the libraries below log is printed."""
    return _LOGGER.isEnabledFor(logging.INFO)


def shows_notices() -> bool:
    """True if notices are printed."""
    return _LOGGER.isEnabledFor(logging.WARNING)


def shows_tracebacks() -> bool:
    """True if an error is printed with its traceback."""
    return _LOGGER.isEnabledFor(logging.DEBUG)
