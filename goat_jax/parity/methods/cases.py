"""Cases of other methods: maps each case to a row of METHODS, and its arrays to our layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.adapters.methods import method_spec
from goat_jax.adapters.parts.routers import TopK
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError, nearest
from goat_jax.parity.bundle import METHODS, Arrays, Record, read_object

Change = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A pair of conversions between PyTorch's layout of an array and ours.

    Attributes:
        read: PyTorch's layout -> ours.
        write: our layout -> PyTorch's.
    """

    read: Change
    write: Change


SAME = Conversion(lambda v: v, lambda v: v)
TRANSPOSED = Conversion(lambda v: v.T, lambda v: v.T)
ONE_PAIR = Conversion(lambda v: v.T[None], lambda v: v[0].T)
PAIRS = Conversion(lambda v: v.swapaxes(-1, -2), lambda v: v.swapaxes(-1, -2))
CORE = Conversion(lambda v: v.reshape(1, -1), lambda v: v.reshape(-1))
COLUMN = Conversion(lambda v: v.reshape(1, -1), lambda v: v.reshape(-1, 1))

Tensors = Mapping[str, tuple[str, Conversion]]
"""Name of an array in the file -> our name and its form."""

SINGLE: Tensors = {"A": ("a", ONE_PAIR), "B": ("b", ONE_PAIR)}
EXPERTS: Tensors = {"A": ("a", PAIRS), "B": ("b", PAIRS)}
ROUTED: Tensors = {**EXPERTS, "router": ("router", TRANSPOSED)}


@dataclasses.dataclass(frozen=True)
class MethodCase:
    """Our counterpart of a formula of methods.json.

    Attributes:
        spec: entry -> the layer's adapter spec.
        tensors: the trained arrays.
        tasks: field of `Context` -> name of its array in the file.
        optimizer: the entry's "optimizer" -> its settings under the names of AdamW.
    """

    spec: Callable[[Record], AdapterSpec]
    tensors: Tensors
    tasks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    optimizer: Callable[[Record], Record] = lambda record: record


def _row(name: str, **options: Callable[[Record], object]) -> Callable[[Record], AdapterSpec]:
    """Makes a function that reads rank, alpha and the options of a METHODS row from an entry."""

    def spec(record: Record) -> AdapterSpec:
        sizes: dict[str, Any] = {"total_rank": _total_rank(record), "num_experts": _experts(record)}
        if record.values.get("alpha") is not None:
            sizes["alpha"] = record.number("alpha")
        return method_spec(name, **sizes, **{key: read(record) for key, read in options.items()})

    return spec


def _experts(record: Record) -> int:
    return record.integer("num_experts") if "num_experts" in record.values else 1


def _total_rank(record: Record) -> int:
    """Returns the total rank of all experts; an entry gives it or the rank per expert."""
    if "rank_per_expert" in record.values:
        return record.integer("rank_per_expert") * _experts(record)
    return record.integer("rank")


def _cfg(key: str) -> Callable[[Record], float]:
    return lambda record: record.record("cfg").number(key)


def _neat(record: Record) -> AdapterSpec:
    return _row(
        "neat",
        depth=lambda r: r.record("cfg").integer("depth", least=0),
        activation=lambda r: r.text("activation"),
        value=lambda r: r.number("scale"),
    )(record)


def _molora(record: Record) -> AdapterSpec:
    spec = _row("molora_soft")(record)
    if record.values.get("top_k") is None:
        return spec
    return spec.replace(router=TopK(renormalise=False), top_k=record.integer("top_k"))


def _mole(record: Record) -> AdapterSpec:
    if record.values.get("threshold") is not None:
        raise UserError(f"{record.where}: no router has a fixed threshold: give a top_k")
    published = {"reference_code": lambda r: True, "count_padding": lambda r: True}
    return _row("molora", top_k=lambda r: r.integer("top_k"), **published)(record)


DIRECTIONS = {
    "ArB2r": "first_and_next",
    "A2rBr": "next_and_first",
    "ArBr": "odd_and_even",
    "random": "random",
}
SIZES = {"stable": "stable", "unit": "unit", "gd": "gradient", "weightS": "weight"}


def _lora_ga(record: Record) -> AdapterSpec:
    scale = "alpha_over_root_rank" if record.get("use_rslora") else "alpha_over_rank"
    return _row(
        "lora_ga",
        scale=lambda r: scale,
        gamma=lambda r: r.number("stable_gamma"),
        directions=lambda r: _known(r, "direction", DIRECTIONS),
        size=lambda r: _known(r, "init_scale", SIZES),
        norm_clip=lambda r: bool(r.get("norm_clip")),
    )(record)


def _known(record: Record, key: str, names: Mapping[str, str]) -> str:
    value = record.text(key)
    if value not in names:
        raise UserError(
            f"{record.where}: {key} {value!r} is not known{nearest(value, names)}: give one of "
            f"{', '.join(names)}"
        )
    return names[value]


def _kasa(reference_code: bool) -> Callable[[Record], AdapterSpec]:
    return _row(
        "kasa",
        beta=lambda r: r.number("beta"),
        gamma=lambda r: r.number("gamma"),
        reference_code=lambda r: reference_code,
    )


def _adalora(record: Record) -> AdapterSpec:
    return _row("adalora", target_rank=lambda r: 1)(record)


def _pissa(record: Record) -> AdapterSpec:
    rooted = bool(record.values.get("use_rslora"))
    scale = "alpha_over_root_rank" if rooted else "alpha_over_rank"
    return _row("pissa", scale=lambda r: scale)(record)


KASA_TENSORS: Tensors = {**SINGLE, "q": ("core", CORE)}
NEAT_TENSORS: Tensors = {
    **SINGLE,
    "encoders": ("encoders", PAIRS),
    "decoders": ("decoders", PAIRS),
}
THRESHOLD: Tensors = {
    "threshold_w": ("threshold", TRANSPOSED),
    "threshold_b": ("threshold_bias", SAME),
}
TASK_TENSORS: Tensors = {
    **EXPERTS,
    "task_embedding": ("task_embedding", SAME),
    "gate": ("task_gate", TRANSPOSED),
}

LATE = ("coef",)
"""Trained arrays that join after a phase change; they start at zero and are not in the file."""

CASES: dict[str, MethodCase] = {
    "lora": MethodCase(_row("lora"), SINGLE),
    "rslora": MethodCase(_row("rslora"), SINGLE),
    "dora": MethodCase(_row("dora"), {**SINGLE, "magnitude": ("magnitude", SAME)}),
    "pissa": MethodCase(_pissa, SINGLE),
    "kasa": MethodCase(_kasa(reference_code=False), KASA_TENSORS),
    "neat": MethodCase(_neat, NEAT_TENSORS),
    "adalora": MethodCase(_adalora, {**SINGLE, "lam": ("core", COLUMN)}),
    "lora_dash": MethodCase(
        _row("lora_dash", num_directions=lambda r: r.integer("K")),
        {**SINGLE, "coef": ("coefficients", SAME)},
    ),
    "lora_ga": MethodCase(_lora_ga, SINGLE),
    "multilora": MethodCase(_row("multilora"), {**EXPERTS, "c": ("gain", SAME)}),
    "mole": MethodCase(_mole, ROUTED),
    "molora": MethodCase(_molora, ROUTED),
    "adamole": MethodCase(
        _row("adamole", tau_max=_cfg("tau_max"), count_padding=lambda r: True),
        {**ROUTED, **THRESHOLD},
    ),
    "hydralora": MethodCase(_row("hydralora"), {**ROUTED, "A": ("a", ONE_PAIR)}),
    "loramoe": MethodCase(
        _row("loramoe", delta=_cfg("delta"), count_padding=lambda r: True),
        ROUTED,
        {"task_types": "task_types"},
    ),
    "moelora": MethodCase(
        _row(
            "moelora",
            num_tasks=lambda r: r.integer("task_num"),
            task_width=lambda r: r.integer("task_embedding_dim"),
        ),
        TASK_TENSORS,
        {"task_ids": "task_id"},
    ),
    "loraplus": MethodCase(
        _row("lora_plus", lr_ratio=lambda r: r.record("optimizer").number("ratio")),
        SINGLE,
        optimizer=lambda r: r.renamed("loraplus_weight_decay", "weight_decay"),
    ),
    "lora_pro": MethodCase(_row("lora_pro"), SINGLE, optimizer=lambda r: r.record("adamw")),
}
"""Formula of methods.json -> its counterpart; `methods.REPLAYS` also has those of other kinds."""


@dataclasses.dataclass(frozen=True)
class CaseFile:
    """One entry of methods.json.

    Attributes:
        name: the name of the case; its arrays are in ``NAME.npz``.
        folder: the bundle's folder.
        formula: the formula that it is a case of, a key of `methods.REPLAYS`.
        record: the JSON object of the entry.
    """

    name: str
    folder: Path
    formula: str
    record: Record


def read_entries(folder: Path) -> list[CaseFile]:
    """Lists the cases of a folder with methods.json; their arrays are read later.

    Raises:
        UserError: methods.json is missing, is not a list of objects, or repeats a name.
    """
    path = folder / METHODS
    entries = read_object(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} is not a list of cases")
    case_files: dict[str, CaseFile] = {}
    for number, entry in enumerate(entries):
        name = Record(entry, f"{path}: entry {number}").text("name")
        if name in case_files:
            raise UserError(f"{path} has two cases named {name!r}")
        record = Record(entry, f"{path}: {name}")
        case_files[name] = CaseFile(name, folder, record.text("formula"), record)
    return list(case_files.values())


def read_factors(
    arrays: Arrays, case: MethodCase, record: Record, suffix: str = "0"
) -> dict[str, np.ndarray]:
    """Reads the trained arrays of a case, listed under "trainable" in its entry, in our layout.

    Args:
        arrays: the arrays of the file.
        case: our counterpart of the formula.
        record: the JSON object of the entry.
        suffix: the end of the arrays' names in the file; "0" is for the initial values.

    Raises:
        UserError: an array is missing, unknown or has another shape than listed.
    """
    factors = {}
    for name in record.record("trainable").values:
        if f"{name}{suffix}" not in arrays.values and name in LATE:
            continue
        if name not in case.tensors:
            known = ", ".join(case.tensors)
            raise UserError(f"{record.where}: trainable has {name!r}, this method has: {known}")
        ours, form = case.tensors[name]
        shape = tuple(record.record("trainable").get(name))
        factors[ours] = form.read(arrays.floats(f"{name}{suffix}", shape))
    return factors
