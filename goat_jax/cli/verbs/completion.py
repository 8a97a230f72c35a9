"""``goat-jax completion``: prints a script with which a shell completes verbs, options, fields, and
the names of configs, methods and parts."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from goat_jax.adapters.methods import METHODS
from goat_jax.cli.arguments import common as arguments
from goat_jax.cli.arguments.field_help import attribute_help
from goat_jax.config.fields import field_kinds, method_options
from goat_jax.config.run import ModelConfig, RunConfig
from goat_jax.config.shipped import shipped_configs
from goat_jax.data.tasks.registry import KINDS, reviews
from goat_jax.registry import REGISTRY
from goat_jax.validation.fields import OneOf, field_types

BY_METAVAR: Mapping[str, Callable[[], Sequence[str]]] = types.MappingProxyType(
    {arguments.CONFIG: lambda: list(shipped_configs()), arguments.METHOD: lambda: list(METHODS)}
)
"""Metavar of an argument -> its values, which may be followed by others, such as files."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """An option of a verb, or a field.

    Attributes:
        name: the name without dashes in front.
        values: the values to propose; none if any text is valid, such as a file.
        takes_value: whether a value follows.
        help: one line.
    """

    name: str
    values: tuple[str, ...] = ()
    takes_value: bool = True
    help: str = ""


@dataclasses.dataclass(frozen=True)
class VerbCompletions:
    """Completions of a verb: its options, and the values that they take.

    Attributes:
        name: the verb.
        help: one line.
        first: the values of its first word, if there are only some.
        flags: its options.
        takes_fields: whether it takes every field too.
    """

    name: str
    help: str
    first: tuple[str, ...]
    flags: tuple[Flag, ...]
    takes_fields: bool


def completion(shell: str, parser: argparse.ArgumentParser) -> int:
    """Prints the script of a shell, a key of `SCRIPTS`; returns the exit code 0."""
    print(SCRIPTS[shell](list(verbs_of(parser)), list(fields())))
    return 0


def verbs_of(parser: argparse.ArgumentParser) -> Iterator[VerbCompletions]:
    """Yields the verbs of a parser."""
    (group,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    for name, verb in group.choices.items():
        actions = verb._actions
        first = next((_values(one) for one in actions if not one.option_strings), ())
        flags = tuple(
            Flag(word.removeprefix("--"), _values(one), one.nargs != 0, _line(one.help))
            for one in actions
            for word in one.option_strings
            if word.startswith("--")
        )
        takes_fields = bool(verb.get_default("takes_fields"))
        yield VerbCompletions(name, _line(verb.description), first, flags, takes_fields)


def _values(action: argparse.Action) -> tuple[str, ...]:
    if action.choices is not None:
        return tuple(action.choices)
    find = BY_METAVAR.get(action.metavar) if isinstance(action.metavar, str) else None
    return tuple(find()) if find else ()


def fields() -> Iterator[Flag]:
    """Yields every field of a config, those of all kinds of tasks, and every method option."""
    config = RunConfig(ModelConfig("m"), reviews())
    kinds = dict(field_kinds(config))
    for task in KINDS.values():
        kinds |= {f"task.{name}": kind for name, kind in field_types(task).items()}
    kinds |= {f"adapter.{name}": Any for name in method_options() if f"adapter.{name}" not in kinds}
    texts = attribute_help(RunConfig)
    for group in dataclasses.fields(config):
        value = getattr(config, group.name)
        if dataclasses.is_dataclass(value):
            attributes = attribute_help(type(value))
            texts |= {f"{group.name}.{name}": text for name, text in attributes.items()}
    for name, kind in kinds.items():
        values = tuple(_words(kind))
        last = name.removeprefix("adapter.")
        if name == "adapter.method":
            values = tuple(METHODS)
        elif name != last and last in REGISTRY:
            values = tuple(REGISTRY[last])
        yield Flag(name.replace("_", "-"), values, help=_line(texts.get(name)))


def _words(kind: Any) -> Iterator[str]:
    """Yields the valid words of a field's type, if it has only some."""
    if typing.get_origin(kind) is typing.Annotated:
        yield from (
            word for one in kind.__metadata__ if isinstance(one, OneOf) for word in one.known
        )
    elif typing.get_origin(kind) in (typing.Union, types.UnionType):
        yield from (word for one in typing.get_args(kind) for word in _words(one))
    elif kind is bool:
        yield from ("true", "false")


def _line(text: str | None) -> str:
    return " ".join((text or "").split()).partition(". ")[0].rstrip(".")


def bash(verbs: Sequence[VerbCompletions], fields: Sequence[Flag]) -> str:
    """Returns the script of bash."""
    flags = [f'    {verb.name}) words="{_flags(verb.flags)}" ;;' for verb in verbs]
    first = [f'    {verb.name}) words="{" ".join(verb.first)}" ;;' for verb in verbs if verb.first]
    values = [
        f'    "{verb.name} --{flag.name}") words="{" ".join(flag.values)}" ;;'
        for verb in verbs
        for flag in verb.flags
        if flag.values
    ]
    values += [
        f'    *" --{flag.name}") words="{" ".join(flag.values)}" ;;'
        for flag in fields
        if flag.values
    ]
    with_fields = "|".join(verb.name for verb in verbs if verb.takes_fields)
    return "\n".join(
        [
            "# Completion of goat-jax for bash, made by: goat-jax completion bash",
            "_goat_jax() {",
            '  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"',
            '  local verb="${COMP_WORDS[1]}" words=""',
            "  if [[ $COMP_CWORD == 1 ]]; then",
            f'    words="--help --version {" ".join(verb.name for verb in verbs)}"',
            '  elif [[ "$current" == -* ]]; then',
            '    case "$verb" in',
            *flags,
            "    esac",
            f'    case "$verb" in {with_fields}) words="$words {_flags(fields)}" ;; esac',
            "  elif [[ $COMP_CWORD == 2 ]]; then",
            '    case "$verb" in',
            *first,
            "    esac",
            "  else",
            '    case "$verb $before" in',
            *values,
            "    esac",
            "  fi",
            '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "}",
            "complete -o default -F _goat_jax goat-jax",
        ]
    )


def zsh(verbs: Sequence[VerbCompletions], fields: Sequence[Flag]) -> str:
    """Returns the script of zsh, which can run that of bash."""
    script = bash(verbs, fields).partition("\n")[2]
    return (
        "#compdef goat-jax\n"
        "# Completion of goat-jax for zsh, made by: goat-jax completion zsh\n"
        f"autoload -U +X bashcompinit && bashcompinit\n{script}"
    )


def fish(verbs: Sequence[VerbCompletions], fields: Sequence[Flag]) -> str:
    """Returns the script of fish."""
    lines = ["# Completion of goat-jax for fish, made by: goat-jax completion fish"]
    for verb in verbs:
        lines.append(_fish("__fish_use_subcommand", f"-f -a {verb.name}", verb.help))
        of_verb = f"__fish_seen_subcommand_from {verb.name}"
        if verb.first:
            lines.append(_fish(of_verb, f"-f -a {shlex.quote(' '.join(verb.first))}"))
        lines += [_fish(of_verb, _fish_flag(flag), flag.help) for flag in verb.flags]
    takers = " ".join(verb.name for verb in verbs if verb.takes_fields)
    with_fields = f"__fish_seen_subcommand_from {takers}"
    lines += [_fish(with_fields, _fish_flag(flag), flag.help) for flag in fields]
    return "\n".join(lines)


def _fish(condition: str, what: str, text: str = "") -> str:
    about = f" -d {shlex.quote(text)}" if text else ""
    return f"complete -c goat-jax -n {shlex.quote(condition)} {what}{about}"


def _fish_flag(flag: Flag) -> str:
    values = f" -a {shlex.quote(' '.join(flag.values))}" if flag.values else ""
    return f"-l {flag.name}{' -r' if flag.takes_value else ''}{values}"


def _flags(flags: Sequence[Flag]) -> str:
    return " ".join(f"--{flag.name}" for flag in flags)


SCRIPTS: Mapping[str, Callable[[Sequence[VerbCompletions], Sequence[Flag]], str]] = (
    types.MappingProxyType({"bash": bash, "zsh": zsh, "fish": fish})
)
"""Name of a shell -> the function that writes its script."""
