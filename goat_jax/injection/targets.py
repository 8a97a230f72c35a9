"""Matches module names with targets: a regular expression, names or suffixes, or all linear."""

import re
from collections.abc import Callable, Sequence

from goat_jax.errors import UserError, nearest

ALL_LINEAR = "all-linear"

TASK_HEAD = "task-head"
"""Stands for the modules of a model's task head (`Model.head_modules`) among those to train."""

EVERYTHING = ".*"
"""A regular expression that every name matches."""

Targets = str | Sequence[str]
"""A regular expression over full names, a list of names or suffixes (PEFT), or "all-linear"."""


def matches(name: str, targets: Targets) -> bool:
    """True if a full module name is among the targets.

    >>> matches("bert.encoder.layer.0.output.dense", ["dense"])
    True
    >>> matches("bert.encoder.layer.0.output.dense", r".*layer\\.[12]\\..*")
    False
    """
    if targets == ALL_LINEAR:
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith("." + target) for target in targets)


def trains(name: str, modules: Targets) -> bool:
    """True if a module is to be trained in full: its name or that of a parent is in `modules`.

    >>> trains("classifier.out_proj", ["classifier"])
    True
    """
    parts = name.split(".")
    return any(matches(".".join(parts[: i + 1]), modules) for i in range(len(parts)))


def check_all_match(
    names: Sequence[str],
    kind: str,
    targets: Targets,
    match: Callable[[str, Targets], bool] = matches,
    what: str = "linear layer",
) -> None:
    """Raises `UserError` with a suggestion if one of the targets matches none of the names.

    >>> check_all_match(["layer.0.query", "layer.0.key"], "target", ["quary"])
    Traceback (most recent call last):
    goat_jax.errors.UserError: target 'quary' matches no linear layer (did you mean 'query'?): \
their names end in key, query
    """
    if isinstance(targets, str):
        check_regex(kind, targets)
    for one in [targets] if isinstance(targets, str) else [[target] for target in targets]:
        if not any(match(name, one) for name in names):
            shown = one if isinstance(one, str) else one[0]
            suffixes = sorted({name.rsplit(".", 1)[-1] for name in names})
            hint = nearest(shown, suffixes)
            if shown in suffixes:
                hint = f" as a regular expression over full names (did you mean '[\"{shown}\"]'?)"
            known = ", ".join(suffixes)
            raise UserError(f"{kind} {shown!r} matches no {what}{hint}: their names end in {known}")


def check_regex(kind: str, pattern: str) -> None:
    """Raises `UserError` unless the pattern is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{kind} {pattern!r} is not a regular expression: {error}") from None
