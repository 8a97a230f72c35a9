"""Reads PEFT folders: LoRA in its variants, and PEANuT."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.errors import UserError, nearest
from goat_jax.exchange.folders import ADAPTER_CONFIG, open_adapter, read_about
from goat_jax.exchange.imported import Imported
from goat_jax.exchange.peft_write import ACTIVATIONS, PREFIX
from goat_jax.models.safetensors import read_json

_PLAIN = {"method": "lora"}
STARTS: dict[Any, dict[str, Any]] = {
    **dict.fromkeys((True, False, "gaussian", "orthogonal", "eva", None), _PLAIN),
    "pissa": {"method": "pissa", "rho": 1.0},
}
"""init_lora_weights -> the method whose frozen kernel is the one the adapter was trained on."""

NOT_READ = (
    *("layer_replication", "alora_invocation_tokens", "kasa_config", "arrow_config"),
    *("use_qalora", "use_bdlora", "lora_bias", "target_parameters", "trainable_token_indices"),
    *("megatron_config", "monteclora_config", "velora_config", "fan_in_fan_out"),
)
"""Settings of PEFT's LoRA that change what it computes and have no form here."""

DEFAULTS = {"r": 8, "lora_alpha": 8}
"""PEFT's own, of what a config leaves out."""

Options = dict[str, Any]


def read_peft(folder: Path, config: Mapping[str, Any]) -> Imported:
    """The adapter of a PEFT folder.

    Args:
        config: its adapter_config.json.

    Raises:
        UserError: a type or a setting that cannot be read, tensors of unknown names or shapes.
    """
    kind = str(config.get("peft_type"))
    if kind not in READERS:
        raise UserError(
            f"{folder} is a PEFT adapter of type {kind}{nearest(kind, READERS)}: "
            f"{', '.join(READERS)} can be read"
        )
    tensors = {name.removeprefix(PREFIX): value for name, value in open_adapter(folder).items()}
    modules, head = _by_module(folder, tensors, NAMES[kind])
    options, overrides = READERS[kind](folder, config, modules)
    options["targets"] = tuple(modules)
    found = Imported(
        source=str(folder),
        base=config.get("base_model_name_or_path") or None,
        base_sha256=read_about(folder).get("base_sha256"),
        options=options,
        settles_all=True,
        overrides=overrides,
        modules=modules,
        head=head,
    )
    options["train"] = found.head_modules
    return found


NAMES: dict[str, dict[str, str]] = {
    "LORA": {
        r"lora_A\.weight": "a",
        r"lora_B\.weight": "b",
        r"lora_magnitude_vector(\.weight)?": "magnitude",
    },
    "PEANUT": {
        r"peanut_A\.weight": "a",
        r"peanut_B\.weight": "b",
        r"peanut_encoders\.\d+\.weight": "encoders",
        r"peanut_decoders\.\d+\.weight": "decoders",
    },
}
"""PEFT's type -> endings of its tensors -> our factor."""


def _by_module(
    folder: Path, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Factors by module, in our layout, and the tensors of heads."""
    listed: dict[str, dict[str, list[np.ndarray]]] = {}
    head = {}
    for name in sorted(tensors, key=lambda n: re.sub(r"\d+", lambda m: m[0].zfill(6), n)):
        for ending, key in names.items():
            if match := re.fullmatch(rf"(.+)\.{ending}", name):
                listed.setdefault(match[1], {}).setdefault(key, []).append(tensors[name])
                break
        else:
            if re.search(r"\.(lora|peanut)_\w+", name):
                raise UserError(f"{folder} has {name!r}, which no adapter here has a place for")
            head[name] = tensors[name]
    if not listed:
        raise UserError(f"{folder} has no factors of its type: it is not whole")
    modules = {}
    for module, own in listed.items():
        for key in ("a", "b"):
            if key not in own:
                raise UserError(f"{folder} has no factor {key} of {module}: it is not whole")
        matrices = {key: np.stack([t.T for t in each]) for key, each in own.items()}
        if "magnitude" in matrices:
            matrices["magnitude"] = matrices["magnitude"].reshape(-1)
        modules[module] = {k: v.astype(np.float32) for k, v in matrices.items()}
    return modules, head


Overrides = tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...]


def _read_lora(
    folder: Path, config: Mapping[str, Any], modules: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[Options, Overrides]:
    start = config.get("init_lora_weights", True)
    if start not in STARTS:
        raise UserError(
            f"{folder}: init_lora_weights {start!r} changes the base model in a way that cannot be "
            "repeated here: save it with path_initial_model_for_weight_conversion"
        )
    unread = [name for name in NOT_READ if config.get(name)]
    if config.get("bias", "none") != "none":
        unread.append("bias")
    if unread:
        raise UserError(f"{folder} uses {', '.join(unread)}, which no adapter here has")
    if config.get("use_dora") and STARTS[start] is not _PLAIN:
        raise UserError(f"{folder} joins use_dora and {start}, which no adapter here does")
    options: Options = {
        **STARTS[start],
        "total_rank": config.get("r", DEFAULTS["r"]),
        "alpha": float(config.get("lora_alpha", DEFAULTS["lora_alpha"])),
        "dropout": float(config.get("lora_dropout", 0.0)),
        "options": {},
    }
    if config.get("use_dora"):
        options["method"] = "dora"
    if config.get("use_rslora"):
        options["scale"] = "alpha_over_root_rank"
    groups: dict[tuple[int, float], list[str]] = {}
    for name, arrays in modules.items():
        alpha = float(_by_pattern(name, config.get("alpha_pattern"), options["alpha"]))
        groups.setdefault((arrays["a"].shape[-1], alpha), []).append(name)
    usual = (options["total_rank"], options["alpha"])
    return options, tuple(
        (tuple(names), {"total_rank": rank, "alpha": alpha})
        for (rank, alpha), names in groups.items()
        if (rank, alpha) != usual
    )


def _by_pattern(name: str, patterns: Mapping[str, Any] | None, usual: Any) -> Any:
    """The value of the first pattern that matches the end of a name, as PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return usual


def _read_network(
    folder: Path, config: Mapping[str, Any], modules: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[Options, Overrides]:
    ours = {theirs: own for own, theirs in ACTIVATIONS.items()}
    activation = config.get("act_fn", "relu")
    if activation not in ours:
        raise UserError(f"{folder}: act_fn {activation!r} is not one of {', '.join(ours)}")
    settled = {
        "depth": config.get("depth", 0),
        "activation": ours[activation],
        "value": float(config.get("scaling", 1.0)),
    }
    return {"method": "neat", "total_rank": config.get("r", 32), "options": settled}, ()


READERS: dict[str, Callable[..., tuple[Options, Overrides]]] = {
    "LORA": _read_lora,
    "PEANUT": _read_network,
}
"""PEFT's type -> what its config means here."""


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder; empty if there is none."""
    path = Path(folder) / ADAPTER_CONFIG
    return read_json(path, "an adapter") if path.is_file() else {}
