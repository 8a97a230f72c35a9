"""``goat-jax``: the command line. Finds the verb, parses its arguments and runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from goat_jax.cli.arguments.words import as_flag, check_all_known, check_verb
from goat_jax.cli.entry import in_one_line
from goat_jax.cli.log_level import apply_log_level, shows_details
from goat_jax.cli.parser import VERBS, make_parser
from goat_jax.errors import UnknownField


def main(words: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code: 0, 1 (failed or out of tolerance) or 2 (bad input)."""
    return in_one_line("goat-jax", lambda: _run(words))


def _run(words: Sequence[str] | None) -> int:
    arguments = sys.argv[1:] if words is None else words
    check_verb(arguments, list(VERBS))
    known, rest = make_parser().parse_known_args(arguments)
    apply_log_level(known.log_level)
    quiet_compiler()
    if not known.takes_fields:
        check_all_known(known.parser, rest)
    try:
        return known.run(known, rest)
    except UnknownField as error:
        has_config = getattr(known, "config", None) is not None
        raise as_flag(error, known.parser, rest, has_config) from None


def quiet_compiler() -> None:
    """Silences XLA's own log, before jax is imported; what it raises is still printed.

    Its remarks, such as "Very slow compile? If you want to file a bug", are for its developers.
    """
    if not shows_details():
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


if __name__ == "__main__":
    sys.exit(main())
