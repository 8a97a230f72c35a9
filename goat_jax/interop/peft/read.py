"""Reads PEFT folders: LoRA and its variants, AdaLoRA, and PEANuT."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.errors import UserError, nearest
from goat_jax.interop.folders import ADAPTER_CONFIG, read_about, read_tensors
from goat_jax.interop.import_adapter import Imported
from goat_jax.interop.modules import ROWS
from goat_jax.interop.peft.patterns import by_pattern
from goat_jax.interop.peft.write import ACTIVATIONS, PREFIX
from goat_jax.pretrained.safetensors import read_json
from goat_jax.validation.checks import check_choice, check_number

_PLAIN = {"method": "lora"}
STARTS: dict[Any, dict[str, Any]] = {
    **dict.fromkeys((True, False, "gaussian", "orthogonal", "eva", None), _PLAIN),
    "pissa": {"method": "pissa", "rho": 1.0},
}
"""init_lora_weights -> options of the method that makes the same frozen kernel."""

NOT_READ = (
    *("layer_replication", "alora_invocation_tokens", "kasa_config", "arrow_config"),
    *("use_qalora", "use_bdlora", "lora_bias"),
    *("megatron_config", "monteclora_config", "velora_config", "fan_in_fan_out"),
)
"""Settings of PEFT's LoRA that change its computation and are not supported here."""

DEFAULTS = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "depth": 0, "scaling": 1.0}
"""PEFT's defaults of the settings that a config omits."""

COPY = r"\.(original_module|modules_to_save)(?=\.(weight|bias)$)"
"""Parts of names of what PEFT saves of a resized vocabulary beside the trained table itself."""

FROZEN = r"(.+?)(?:\.token_adapter)?\.base_layer\.(weight|bias)"
"""PEFT's names of frozen parameters, which it saves of adapted or resized vocabularies."""

Options = dict[str, Any]


def read_peft(folder: Path, config: Mapping[str, Any]) -> Imported:
    """Reads the adapter of a PEFT folder.

    Args:
        folder: the folder.
        config: the folder's adapter_config.json.

    Raises:
        UserError: the type or a setting is not supported, or tensors are missing or have unknown
            names or shapes.
    """
    kind = str(config.get("peft_type"))
    if kind not in READERS:
        raise UserError(
            f"{folder} is a PEFT adapter of type {kind}{nearest(kind, READERS)}: "
            f"{', '.join(READERS)} can be read"
        )
    stored = {name.removeprefix(PREFIX): value for name, value in read_tensors(folder).items()}
    copies = {name for name in stored if re.sub(COPY, "", name) in stored.keys() - {name}}
    tensors = {name: value for name, value in stored.items() if name not in copies}
    rows = {
        name.removesuffix(f".{ROWS}"): tensors.pop(name).astype(np.float32)
        for name in list(tensors)
        if name.endswith(f".{ROWS}")
    }
    wrapped = {name: match for name in tensors if (match := re.fullmatch(FROZEN, name))}
    frozen = {f"{match[1]}.{match[2]}": tensors.pop(name) for name, match in wrapped.items()}
    modules, head = _by_module(folder, tensors, NAMES[kind])
    options, overrides = READERS[kind](folder, config, modules)
    options["target_modules"] = tuple(modules)
    imported = Imported(
        source=str(folder),
        base=_name(config.get("base_model_name_or_path")),
        base_sha256=read_about(folder).get("base_sha256"),
        options=options,
        settles_all=True,
        overrides=overrides,
        modules=modules,
        head=head,
        revision=_name(config.get("revision")),
        rows=rows,
        frozen=frozen,
        parameters=tuple(config.get("target_parameters") or ()),
        config=config,
        tokenizer=folder if (folder / "tokenizer_config.json").is_file() else None,
    )
    if rows:
        options["trainable_token_indices"] = _token_indices(folder, config, rows)
    options["modules_to_save"] = imported.head_modules
    return imported


def _token_indices(
    folder: Path, config: Mapping[str, Any], rows: Mapping[str, np.ndarray]
) -> tuple[int, ...]:
    """Returns the tokens whose vectors a folder holds, in the vectors' order.

    Raises:
        UserError: they are not numbers of tokens, or differ by module.
    """
    given: Any = config.get("trainable_token_indices")
    lists: list[Any] = list(given.values()) if isinstance(given, Mapping) else [given]
    for each in lists:
        whole = isinstance(each, list) and all(type(n) is int and n >= 0 for n in each)
        if not whole or each != lists[0] or any(len(each) != len(r) for r in rows.values()):
            raise UserError(
                f"{folder / ADAPTER_CONFIG}: trainable_token_indices {given!r} does not give all "
                "modules the same tokens, as many as there are vectors"
            )
    return tuple(lists[0])


def _name(value: object) -> str | None:
    return value if value and isinstance(value, str) else None


NAMES: dict[str, dict[str, str]] = {
    "LORA": {
        r"lora_A\.weight": "a",
        r"lora_B\.weight": "b",
        r"lora_embedding_A": "a",
        r"lora_embedding_B": "b",
        r"lora_magnitude_vector(\.weight)?": "magnitude",
    },
    "ADALORA": {r"lora_A": "a", r"lora_B": "b", r"lora_E": "core"},
    "PEANUT": {
        r"peanut_A\.weight": "a",
        r"peanut_B\.weight": "b",
        r"peanut_encoders\.\d+\.weight": "encoders",
        r"peanut_decoders\.\d+\.weight": "decoders",
    },
}
"""PEFT's type -> ending of a tensor's name -> our name of the factor."""


def _by_module(
    folder: Path, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Groups the factors by module, in our layout, and returns the tensors of heads apart."""
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
        raise UserError(f"{folder} has no factors of its type: it is incomplete")
    modules = {}
    for module, factors in listed.items():
        for key in sorted({"a", "b", "core"} & set(names.values())):
            if key not in factors:
                raise UserError(f"{folder} has no factor {key} of {module}: it is incomplete")
        matrices = {key: np.stack([t.T for t in each]) for key, each in factors.items()}
        if "magnitude" in matrices:
            matrices["magnitude"] = matrices["magnitude"].reshape(-1)
        if "core" in matrices:
            matrices["core"] = matrices["core"].reshape(1, -1)
        modules[module] = {k: v.astype(np.float32) for k, v in matrices.items()}
    return modules, head


Overrides = tuple[tuple[tuple[str, ...], Mapping[str, Any]], ...]


def _read_lora(
    folder: Path, config: Mapping[str, Any], modules: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[Options, Overrides]:
    start = config.get("init_lora_weights", True)
    if not isinstance(start, str | bool | None) or start not in STARTS:
        raise UserError(
            f"{folder}: init_lora_weights {start!r} changes the base model in a way that cannot be "
            "repeated here: save it with path_initial_model_for_weight_conversion"
        )
    _refuse_unread(folder, config)
    if config.get("use_dora") and STARTS[start] is not _PLAIN:
        raise UserError(f"{folder} combines use_dora and {start}, which no adapter here supports")
    rank = _number(folder, config, "r", at_least=1, whole=True)
    options: Options = {**STARTS[start], "total_rank": rank, **_alpha_and_dropout(folder, config)}
    if config.get("use_dora"):
        options["method"] = "dora"
    if config.get("use_rslora"):
        options["scale"] = "alpha_over_root_rank"
    alphas = _pattern(folder, config, "alpha_pattern", above=0)
    _pattern(folder, config, "rank_pattern", at_least=1, whole=True)
    groups: dict[tuple[int, float], list[str]] = {}
    for name, arrays in modules.items():
        alpha = float(by_pattern(name, alphas, options["alpha"]))
        groups.setdefault((arrays["a"].shape[-1], alpha), []).append(name)
    usual = (options["total_rank"], options["alpha"])
    return options, tuple(
        (tuple(names), {"total_rank": rank, "alpha": alpha})
        for (rank, alpha), names in groups.items()
        if (rank, alpha) != usual
    )


def _refuse_unread(folder: Path, config: Mapping[str, Any]) -> None:
    unread = [name for name in NOT_READ if config.get(name)]
    if config.get("bias", "none") != "none":
        unread.append("bias")
    if unread:
        raise UserError(f"{folder} uses {', '.join(unread)}, which no adapter here supports")


def _number(folder: Path, config: Mapping[str, Any], name: str, **limits: Any) -> Any:
    """Reads a number of adapter_config.json, or else PEFT's default, and checks its range."""
    value = config.get(name)
    value = DEFAULTS[name] if value is None else value
    check_number(f"{Path(folder) / ADAPTER_CONFIG}: {name}", value, **limits)
    return value


def _alpha_and_dropout(folder: Path, config: Mapping[str, Any]) -> Options:
    return {
        "alpha": float(_number(folder, config, "lora_alpha", above=0)),
        "dropout": float(_number(folder, config, "lora_dropout", at_least=0, below=1)),
        "options": {},
    }


def _pattern(
    folder: Path, config: Mapping[str, Any], name: str, **limits: Any
) -> Mapping[str, Any]:
    """Reads a table of numbers by pattern in adapter_config.json and checks their range."""
    table = config.get(name) or {}
    where = f"{Path(folder) / ADAPTER_CONFIG}: {name}"
    if not isinstance(table, Mapping):
        raise UserError(f"{where} is a {type(table).__name__}, not a table of numbers")
    for pattern, value in table.items():
        check_number(f"{where}[{pattern!r}]", value, **limits)
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{where}: {pattern!r} is not a valid pattern ({error})") from None
    return table


def _read_network(
    folder: Path, config: Mapping[str, Any], modules: Mapping[str, Mapping[str, np.ndarray]]
) -> tuple[Options, Overrides]:
    ours = {theirs: name for name, theirs in ACTIVATIONS.items()}
    activation = config.get("act_fn", "relu")
    check_choice(f"{Path(folder) / ADAPTER_CONFIG}: act_fn", activation, ours)
    settled = {
        "depth": _number(folder, config, "depth", at_least=0, whole=True),
        "activation": ours[activation],
        "value": float(_number(folder, config, "scaling")),
    }
    rank = config.get("r", 32)
    check_number(f"{Path(folder) / ADAPTER_CONFIG}: r", rank, at_least=1, whole=True)
    return {"method": "neat", "total_rank": rank, "options": settled}, ()


def _read_adalora(
    folder: Path, config: Mapping[str, Any], modules: Mapping[str, dict[str, np.ndarray]]
) -> tuple[Options, Overrides]:
    """Reads AdaLoRA. Its file omits pruned ranks, which are restored here as zeros.

    Its scale depends on the initial rank, not on the rank that is left after pruning.
    """
    _refuse_unread(folder, config)
    rank = config.get("init_r", 12)
    check_number(f"{Path(folder) / ADAPTER_CONFIG}: init_r", rank, at_least=1, whole=True)
    kept = config.get("rank_pattern") or {}
    for name, arrays in modules.items():
        left = arrays["a"].shape[-1]
        places = np.flatnonzero(np.asarray(kept.get(f"{name}.lora_E", [True] * left), bool))
        if len(places) != left or left > rank or (left and places[-1] >= rank):
            raise UserError(
                f"{folder}: {name} has {left} ranks, rank_pattern keeps {len(places)} of {rank}: "
                "it is incomplete"
            )
        for key, axis in (("a", -1), ("b", -2), ("core", -1)):
            array = np.moveaxis(arrays[key], axis, -1)
            whole = np.zeros((*array.shape[:-1], rank), np.float32)
            whole[..., places] = array
            arrays[key] = np.moveaxis(whole, -1, axis)
    target = config.get("target_r", 8)
    check_number(f"{Path(folder) / ADAPTER_CONFIG}: target_r", target, at_least=1, whole=True)
    options: Options = {
        **_alpha_and_dropout(folder, config),
        "method": "adalora",
        "total_rank": rank,
        # The target of further training; the forward pass does not depend on it.
        "options": {"target_rank": max(1, min(target, rank - 1))},
    }
    return options, ()


READERS: dict[str, Callable[..., tuple[Options, Overrides]]] = {
    "LORA": _read_lora,
    "PEANUT": _read_network,
    "ADALORA": _read_adalora,
}
"""PEFT's type -> the function that translates its config to our options."""


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a folder's adapter_config.json; empty if there is none."""
    path = Path(folder) / ADAPTER_CONFIG
    return read_json(path, "an adapter") if path.is_file() else {}
