"""Routed experts as a model of transformers with its own code, which the folder holds.

The code is `goat_jax/torch/modeling_goat.py`, copied, and a class for each of the model's classes
in transformers. What the start of the experts takes off the pretrained kernels is taken off the
weights in the folder, and the experts' scales are in their second factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.errors import UserError
from goat_jax.interop.hf_config import HfForm
from goat_jax.interop.modules import AdaptedModule
from goat_jax.interop.peft.routed import mixture_fields, mixture_tensors
from goat_jax.pretrained.quiet_transformers import import_transformers

CODE = "modeling_goat"
"""Name of the module with the model's code."""

_CLASSES = '''

from transformers import {imported}


class Goat{config}({config}):
    """Config of a model whose layers have experts, described by ``goat``."""

    model_type = "{model_type}"
'''

_CLASS = '''

class Goat{name}(WithExperts, {name}):
    """{name} of transformers with experts in its linear layers."""

    config_class = Goat{config}
'''


def routed_weights(
    tensors: Iterable[tuple[str, np.ndarray]],
    modules: Mapping[str, AdaptedModule],
    blocks: Mapping[str, str],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a model's tensors with those of its experts.

    Args:
        tensors: (name, tensor) of the frozen model.
        modules: module -> its trained adapter.
        blocks: name of a part of a layer in checkpoints -> its name in transformers.
    """
    for name, tensor in tensors:
        for stored, today in blocks.items():
            name = name.replace(f".{stored}.", f".{today}.")
        module, _, parameter = name.rpartition(".")
        yield (f"{module}.base_layer.{parameter}" if module in modules else name), tensor
    for name, module in modules.items():
        own = mixture_tensors(name, module)
        scale = module.scale.repeat(own["expert_b.weight"].shape[1] // len(module.scale))
        own["expert_b.weight"] = own["expert_b.weight"] * scale
        yield from ((f"{name}.{key}", tensor) for key, tensor in own.items())


def groups_of(modules: Mapping[str, AdaptedModule]) -> list[dict[str, Any]]:
    """Returns the modules in groups of equal settings, as config.json has them."""
    groups: list[dict[str, Any]] = []
    for name, module in modules.items():
        settings = mixture_fields(module)
        group = next((g for g in groups if {**g, "modules": 0} == {**settings, "modules": 0}), None)
        if group is None:
            group = {"modules": [], **settings}
            groups.append(group)
        group["modules"].append(name)
    return groups


def with_experts(
    config: Mapping[str, Any], form: HfForm, modules: Mapping[str, AdaptedModule]
) -> dict[str, Any]:
    """Returns the config.json of a model with experts.

    The model's type is one of its own, so that nothing loads the folder without its code.

    Args:
        config: the config.json of the model without experts.
        form: the model's form in transformers.
        modules: module -> its trained adapter.
    """
    config_class, body, whole = _classes(config)
    return {
        **config,
        "model_type": f"goat_{config['model_type']}",
        "architectures": [f"Goat{whole}"],
        "auto_map": {
            "AutoConfig": f"{CODE}.Goat{config_class}",
            "AutoModel": f"{CODE}.Goat{body}",
            form.auto: f"{CODE}.Goat{whole}",
        },
        "goat": groups_of(modules),
    }


def write_code(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes the model's code.

    Args:
        folder: the folder to write to.
        config: the config.json of the model without experts.
    """
    config_class, body, whole = _classes(config)
    classes = dict.fromkeys((body, whole))
    text = files("goat_jax.torch").joinpath(f"{CODE}.py").read_text(encoding="utf-8")
    text += _CLASSES.format(
        imported=", ".join(sorted((config_class, *classes))),
        config=config_class,
        model_type=f"goat_{config['model_type']}",
    )
    text += "".join(_CLASS.format(name=name, config=config_class) for name in classes)
    (folder / f"{CODE}.py").write_text(text, encoding="utf-8")


def _classes(config: Mapping[str, Any]) -> tuple[str, str, str]:
    """Returns transformers' classes of a model: its config, without its head, and with it."""
    auto = import_transformers().models.auto
    model_type = config["model_type"]
    body = auto.modeling_auto.MODEL_MAPPING_NAMES.get(model_type)
    if not isinstance(body, str):
        raise UserError(f"transformers has no single class for {model_type}: use --to peft")
    config_class = auto.configuration_auto.CONFIG_MAPPING[model_type]
    return config_class.__name__, body, config["architectures"][0]
