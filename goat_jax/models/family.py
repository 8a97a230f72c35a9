"""`Family`: the facts about a family of models that the three kinds of networks share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from goat_jax.errors import UserError
from goat_jax.models.config_keys import Keys


def as_it_is(hf: Mapping[str, Any], ending: str) -> dict[str, Any]:
    """Returns a config.json unchanged, for any class that it is exported to."""
    return dict(hf)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Facts about one model_type of config.json; each kind of network adds its own.

    Attributes:
        class_name: the beginning of its class names in transformers.
        config_keys: the treatment of its config.json's keys.
        ignored: regular expression of names in a checkpoint that the model does not need.
        exported: function from a checkpoint's config.json and the end of a class name to the
            config.json that this class of transformers reads.
        other_classes: ending of a class's name -> the name of its class if it begins differently,
            or None if transformers has no such class.
    """

    class_name: str
    config_keys: Keys
    ignored: str
    exported: Callable[[Mapping[str, Any], str], dict[str, Any]] = as_it_is
    other_classes: Mapping[str, str | None] = dataclasses.field(default_factory=dict)

    def class_with(self, ending: str) -> str | None:
        """Returns the name of its class with an ending; None if transformers has no such class."""
        return self.other_classes.get(ending, self.class_name + ending)

    def check_head(self, head: str, known: Collection[str]) -> None:
        """Raises `UserError` if `head` is not among the heads that the family has."""
        if head not in known:
            raise UserError(
                f"{self.class_name} has no head {head!r}, only {', '.join(known)}: make the labels "
                "answers (--task.format template --task.prompt '{text} ' --task.completion "
                "'{label}', with your columns' names), or take another model"
            )


def label_count(hf: Mapping[str, Any]) -> int:
    """Returns the number of label names, or else `num_labels`, as transformers does; default 2.

    >>> label_count({"id2label": {"0": "cat", "1": "dog", "2": "eel"}, "num_labels": 2})
    3
    """
    names = hf.get("id2label")
    return len(names) if names is not None else hf.get("num_labels", 2)
