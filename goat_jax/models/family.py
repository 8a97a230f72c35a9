"""`Family`: the facts about a family of models that the three kinds of networks share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

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
    """

    class_name: str
    config_keys: Keys
    ignored: str
    exported: Callable[[Mapping[str, Any], str], dict[str, Any]] = as_it_is
