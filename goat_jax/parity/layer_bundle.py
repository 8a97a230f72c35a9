"""Reads layer cases: an entry of layers.json and the arrays of ``layer_NAME.npz``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from goat_jax.adapters.parts.scales import ConstantScale
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.parity.bundle import LAYERS, Arrays, Record, read_npz, read_object
from goat_jax.parity.layer_steps import LayerOptimizer, LayerRun
from goat_jax.parity.reference_code import SPEC_KEYS, PublishedType, read_init_type, read_spec


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """One entry of layers.json.

    Attributes:
        name: the name of the case; its arrays are in ``layer_NAME.npz``.
        folder: the bundle's folder.
        record: the JSON object of the entry.
    """

    name: str
    folder: Path
    record: Record


def read_cases(folder: Path) -> list[LayerCase]:
    """Lists the cases of a folder with layers.json; their arrays are read later, case by case.

    Raises:
        UserError: layers.json is missing, is not a list of objects, or repeats a name.
    """
    path = folder / LAYERS
    entries = read_object(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} is not a list of layer cases")
    cases: dict[str, LayerCase] = {}
    for number, entry in enumerate(entries):
        name = Record(entry, f"{path}: entry {number}").text("name")
        if name in cases:
            raise UserError(f"{path} has two cases named {name!r}")
        cases[name] = LayerCase(name, folder, Record(entry, f"{path}: {name}"))
    return list(cases.values())


@dataclasses.dataclass(frozen=True)
class LayerReplay:
    """A layer case, read and checked, with kernels (I, O) as everywhere in the package.

    Attributes:
        kind: the meaning of its init type.
        run: the layer's spec, at the file's scale, and its training.
        kernel: the pretrained kernel, (I, O).
        residual: the frozen kernel, (I, O).
        factors: the initial a (E, I, R), b (E, R, O) and router (I, E).
        expected: PyTorch's results by quantity, in PyTorch's layout.
    """

    kind: PublishedType
    run: LayerRun
    kernel: np.ndarray
    residual: np.ndarray
    factors: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]

    @property
    def spec(self) -> AdapterSpec:
        """Adapter spec of the layer."""
        return self.run.spec

    @property
    def steps(self) -> int:
        """Number of AdamW steps."""
        return self.run.steps


def read_adamw(adamw: Record) -> tuple[LayerOptimizer, int]:
    """Reads an AdamW with a constant learning rate and no clipping, and its number of steps."""
    adamw.require("lr", "betas", "eps", "weight_decay", "steps")
    betas = adamw.numbers("betas", 2)
    config = OptimizerConfig(
        learning_rate=adamw.number("lr"),
        schedule="constant",
        warmup_steps=0,
        weight_decay=adamw.number("weight_decay"),
        max_grad_norm=None,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=adamw.number("eps"),
    )
    return LayerOptimizer(config), adamw.integer("steps")


def read_plan(case: LayerCase) -> LayerReplay:
    """Reads and checks a case and its arrays.

    Raises:
        UserError: a key or an array is missing or invalid.
    """
    record = case.record
    record.require(*SPEC_KEYS, "scaling", "in_features", "out_features", "aux_coef", "adamw")
    kind = read_init_type(record.text("init_type"), record.number("eta", 1.0))
    spec = read_spec(
        record, kind, ConstantScale(record.numbers("scaling", record.integer("num_experts")))
    )
    optimizer, steps = read_adamw(record.record("adamw"))
    arrays = read_npz(case.folder / f"layer_{case.name}.npz")
    sizes = (record.integer("out_features"), record.integer("in_features"), steps)
    arrays_read = _read_arrays(arrays, spec, *sizes)
    aux_coef = record.number("aux_coef")
    batch = {name: arrays_read.pop(name) for name in ("bias", "x", "target")}
    run = LayerRun(spec=spec, optimizer=optimizer, steps=steps, aux_coef=aux_coef, **batch)
    return LayerReplay(kind=kind, run=run, **arrays_read)


STORED = (
    *("W0", "bias", "W_res", "A0", "B0", "router0", "x", "target", "y", "aux", "loss"),
    *("grad_x", "grad_A", "grad_B", "grad_router", "adamw_losses", "y_final"),
)
"""Arrays of a layer case."""


def _read_arrays(
    arrays: Arrays, spec: AdapterSpec, out_features: int, in_features: int, steps: int
) -> dict[str, Any]:
    arrays.require(*STORED)
    m, n, e, d = out_features, in_features, spec.num_experts, spec.rank
    tokens = arrays.get("x").shape[:1]
    bias = arrays.floats("bias", (0,) if arrays.get("bias").size == 0 else (m,))
    shapes = {
        "y": (*tokens, m),
        "aux": (),
        "loss": (),
        "grad_x": (*tokens, n),
        "grad_A": (e, d, n),
        "grad_B": (e, m, d),
        "grad_router": (e, n),
        "adamw_losses": (steps,),
        "y_final": (*tokens, m),
    }
    return {
        "kernel": arrays.floats("W0", (m, n)).T,
        "residual": arrays.floats("W_res", (m, n)).T,
        "bias": bias if bias.size else None,
        "factors": {
            "a": swap(arrays.floats("A0", (e, d, n))),
            "b": swap(arrays.floats("B0", (e, m, d))),
            "router": arrays.floats("router0", (e, n)).T,
        },
        "x": arrays.floats("x", (*tokens, n)),
        "target": arrays.floats("target", (*tokens, m)),
        "expected": {name: arrays.get(name, shape) for name, shape in shapes.items()},
    }


def swap(factor: np.ndarray) -> np.ndarray:
    """Converts a factor from PyTorch's (E, out, in) to our (E, in, out), or back."""
    return np.swapaxes(factor, 1, 2)
