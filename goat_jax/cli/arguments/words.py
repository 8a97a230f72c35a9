"""Words of a command line that name fields and options; errors about unknown ones name the flag."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence

from goat_jax.errors import UnknownField, UserError, nearest_name
from goat_jax.validation.other_names import OTHER_NAMES, OTHER_VERBS, meant_by, takes_same_values
from goat_jax.validation.renamed import check_present


def flag_of(name: str) -> str:
    """Returns the flag of a field or argument.

    >>> flag_of("max_new_tokens")
    '--max-new-tokens'
    """
    return f"--{name.replace('_', '-')}"


def split_fields(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields the name of every field with the words that follow it."""
    place = 0
    while place < len(words):
        start, equals, value = words[place].partition("=")
        if not start.startswith("--") or not start.strip("-"):
            raise UserError(f"{words[place]!r} is not a field: give fields as --NAME VALUE")
        place, first = place + 1, place + 1
        while place < len(words) and not words[place].startswith("--"):
            place += 1
        field_words = [*([value] if equals else []), *words[first:place]]
        yield start[2:].replace("-", "_"), field_words


def check_verb(words: Sequence[str], verbs: Sequence[str]) -> None:
    """Raises `UserError` if the first word is not a verb; the error suggests the nearest verb."""
    name = words[0] if words else "-"
    if name.startswith("-") or name in verbs:
        return
    meant = OTHER_VERBS.get(name) or nearest_name(name, verbs)
    hint = f" (did you mean 'goat-jax {meant}'?)" if meant else ""
    raise UserError(f"there is no verb {name!r}{hint}: goat-jax --help lists them")


def check_all_known(parser: argparse.ArgumentParser, rest: Sequence[str]) -> None:
    """Raises `UserError` if a verb that takes no fields has words left over."""
    if not rest:
        return
    for word in rest:
        check_present(_name(word))
    flag = next((word for word in rest if word.startswith("--")), "")
    meant = meant_by(_name(flag), _options(parser)) if flag else None
    hint = f" (did you mean {_typed(meant, _values(flag, rest))}?)" if meant else ""
    raise UserError(
        f"unrecognized arguments: {' '.join(rest)}{hint}; {parser.prog} --help lists the arguments"
    )


def as_flag(
    error: UnknownField, parser: argparse.ArgumentParser, rest: Sequence[str], has_config: bool
) -> UserError:
    """Returns the error about an unknown field with the flag to type, and the value if it fits.

    Args:
        error: the error.
        parser: the verb's parser.
        rest: the words that name fields.
        has_config: whether a config file is given: options that replace one are then not meant.
    """
    flag = next((word for word in rest if _name(word) == error.name), "")
    if not flag:
        return error
    options = [] if has_config else _options(parser)
    named = next((one for one in OTHER_NAMES.get(error.name, ()) if one in options), None)
    if error.name not in OTHER_NAMES:
        field = (error.meant or "").rpartition(".")[2]
        nearest = nearest_name(error.name, [field, *_options(parser)])
        named = None if nearest == field else nearest
    lists = "goat-jax train --config FILE --help-fields lists them"
    start, values = flag.partition("=")[0], _values(flag, rest)
    if named is None and error.meant is not None:
        from goat_jax.cli.arguments.field_help import describe_values  # imports jax

        if not takes_same_values(error.name, error.meant):
            values = []
        type_note = describe_values(error.config, error.meant, values)
        typed = _typed(error.meant, [] if type_note else values)
        return UserError(f"{start} is not a field (did you mean {typed}?{type_note}): {lists}")
    hint = f" (did you mean {_typed(named, values)}?)" if named else ""
    return UserError(f"{start} is not a field{hint}: {lists}")


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Returns the names of a parser's options, without dashes in front and with underscores."""
    flags = (flag for action in parser._actions for flag in action.option_strings)
    return [_name(flag) for flag in flags if flag.startswith("--")]


def _name(word: str) -> str:
    return word.partition("=")[0].removeprefix("--").replace("-", "_")


def _values(flag: str, rest: Sequence[str]) -> list[str]:
    """Returns the words that belong to a flag."""
    values = [flag.partition("=")[2]] if "=" in flag else []
    for word in rest[rest.index(flag) + 1 :]:
        if word.startswith("--"):
            break
        values.append(word)
    return values


def _typed(name: str, values: Sequence[str]) -> str:
    return " ".join([flag_of(name), *map(shlex.quote, values)])
