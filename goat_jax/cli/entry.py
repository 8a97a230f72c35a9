"""Error handling of every program: an error prints one line and sets the exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from goat_jax.cli.log_level import apply_log_level, shows_notices, shows_tracebacks
from goat_jax.errors import Notice, RunFailed, UserError


def in_one_line(program: str, run: Callable[[], int]) -> int:
    """Runs a program; returns its exit code, or after an error 1 (failed) or 2 (bad input).

    Args:
        program: the program's name, printed in front of the message.
        run: does the program's work and returns its exit code.
    """
    _hush_failed_writes()
    apply_log_level()
    try:
        with _notices_in_one_line(program):
            try:
                return run()
            finally:
                sys.stdout.flush()  # here, where its errors are caught
    except UserError as error:
        return _say(program, error, 2)
    except RunFailed as error:
        return _say(program, error, 1)
    except BrokenPipeError:
        # `goat-jax methods | head`: whoever reads has seen enough. The rest goes nowhere.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 1
    except OSError as error:
        # A full disk or a missing permission. No file is half-written: it is renamed when complete.
        return _say(program, f"{error.strerror or error}: {error.filename or 'while writing'}", 1)


def _hush_failed_writes() -> None:
    """Silences Orbax's pending writes after a failed one, so that only our error is printed.

    Each of them reports to an event loop that is already closed, from a thread of tensorstore where
    no caller can catch the error. Such a report has split our error line in two.
    """
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable


def _unraisable(report: sys.UnraisableHookArgs) -> None:
    error = report.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
        sys.__unraisablehook__(report)


@contextlib.contextmanager
def _notices_in_one_line(program: str) -> Iterator[None]:
    """Prints each `Notice` as one line, without the source location that other warnings show."""
    show = warnings.showwarning

    def show_notice(
        message: Warning | str, category: type[Warning], *rest: Any, **options: Any
    ) -> None:
        if issubclass(category, Notice):
            if shows_notices():
                print(f"{program}: {message}", file=sys.stderr)
        else:
            show(message, category, *rest, **options)

    with warnings.catch_warnings():
        warnings.showwarning = show_notice
        yield


def _say(program: str, error: object, code: int) -> int:
    if shows_tracebacks():
        traceback.print_exc()
    print(f"{program}: error: {error}", file=sys.stderr)
    return code


class Parser(argparse.ArgumentParser):
    """Argument parser that reports an error in one line, as the verbs do.

    It accepts no abbreviated options, since these would capture fields of a config.
    """

    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split())
        value = re.match(r"argument (\S+): (.* is not valid.*)", text)
        if value:
            raise UserError(" ".join(value.groups()))
        raise UserError(f"{text} ({self.prog} --help lists the arguments)")
