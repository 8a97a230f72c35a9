"""Former names of config fields: `RENAMED` maps each one to its present name.

A former name that a person gives is an error that names the present one. Files that an earlier
version of this library wrote are read with `present_names`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from goat_jax.errors import UserError
from goat_jax.validation.other_names import other_name_hint

RENAMED = {
    "adapter.targets": "adapter.target_modules",
    "adapter.train": "adapter.modules_to_save",
    "adapter.choice": "adapter.segments",
    "adapter.published": "adapter.reference_code",
    "adapter.base_edit": "adapter.kernel_edit",
    "adapter.course": "adapter.phases",
    "adapter.switch_after": "adapter.change_step",
    "optimizer.clip": "optimizer.max_grad_norm",
    "train.accumulate": "train.grad_accum_steps",
    "train.shapes": "train.num_buckets",
    "train.patience": "train.early_stopping_patience",
    "task.exam": "task.eval",
    "task.learn": "task.loss_on",
    "task.way": "task.scoring",
    "watch": "logging",
    "at_once": "runs_per_step",
    "how": "scoring",
}
"""Former dotted name of a field, of a group of fields or of an option of the command line -> its
present name. Options of methods are fields of ``adapter``."""

_VALUES = {("task.kind", "exam"): "eval"}
"""(Field, former value in run.json) -> the present value."""


def present_name(name: str) -> str:
    """Returns the present name of a field; a name that has not changed is returned as it is.

    >>> present_name("train.patience"), present_name("watch.profile"), present_name("out")
    ('train.early_stopping_patience', 'logging.profile', 'out')
    """
    group, dot, rest = name.partition(".")
    return RENAMED.get(name) or RENAMED.get(group, group) + dot + rest


def check_present(name: str) -> None:
    """Raises `UserError` if a field's dotted name is a former one.

    >>> check_present("optimizer.clip")
    Traceback (most recent call last):
    goat_jax.errors.UserError: optimizer.clip is now called optimizer.max_grad_norm
    """
    if present_name(name) != name:
        raise UserError(f"{name} is now called {present_name(name)}")


def renamed_hint(name: str) -> str:
    """Returns a remark for the error about an unknown name without its group; "" if it is no
    former name.

    >>> renamed_hint("clip"), renamed_hint("colour")
    (' (clip is now called max_grad_norm)', '')
    """
    for former, present in RENAMED.items():
        if name == former.rpartition(".")[2]:
            return f" ({name} is now called {present.rpartition('.')[2]})"
    return ""


def hint_in_error(text: str) -> str:
    """Returns the remark for Python's error about an unknown argument or attribute, or "".

    >>> hint_in_error("AdapterConfig.__init__() got an unexpected keyword argument 'targets'")
    ' (targets is now called target_modules)'
    >>> hint_in_error("OptimizerConfig.__init__() got an unexpected keyword argument 'lr'")
    ' (lr is optimizer.learning_rate here)'
    """
    match = re.search(r"(?:unexpected keyword argument|has no attribute) '(\w+)'", text)
    return renamed_hint(match[1]) or other_name_hint(match[1]) if match else ""


def present_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a config that any version has written, by their present names.

    Args:
        values: JSON values by dotted names (`goat_jax.config.fields.flatten`).

    >>> present_names({"watch.wandb": None, "adapter.options": {"choice": "minor"}})
    {'logging.wandb': None, 'adapter.options': {'segments': 'minor'}}
    """
    fields = {}
    for name, value in values.items():
        if name.startswith("adapter."):
            value = present_options(value)
        elif isinstance(value, str):
            value = _VALUES.get((name, value), value)
        fields[present_name(name)] = value
    return fields


def present_options(value: Any) -> Any:
    """Returns a JSON value with the present names of the adapter's options anywhere in it.

    >>> present_options([{"modules": "up", "options": {"choice": "minor"}}])
    [{'modules': 'up', 'options': {'segments': 'minor'}}]
    """
    if isinstance(value, Mapping):
        names = {name: present_name(f"adapter.{name}").removeprefix("adapter.") for name in value}
        return {names[name]: present_options(each) for name, each in value.items()}
    return [present_options(each) for each in value] if isinstance(value, list) else value
