"""Reads a model run: its settings, batches, expected results and trained tensors by module."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from goat_jax.adapters.parts.scales import ConstantScale, TheoreticalScale
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError, nearest
from goat_jax.optim.optimizer import OptimizerConfig
from goat_jax.optim.schedules import SCHEDULES
from goat_jax.parity.bundle import MODEL, Arrays, Record, read_npz, read_object, read_safetensors
from goat_jax.parity.reference_code import SPEC_KEYS, PublishedType, read_init_type, read_spec
from goat_jax.pretrained.safetensors import read_json


@dataclasses.dataclass(frozen=True)
class ModelRun:
    """A model run, read and checked as far as possible without the model.

    Attributes:
        name: the name of the run.
        folder: the bundle's folder.
        kind: the meaning of its init type.
        spec: the adapters' spec.
        scaling: the file's scale of every expert, None if it has none.
        modules: the names of the adapted modules.
        optimizer: the settings of the optimizer.
        steps: the number of training steps.
        aux_coef: the weight of the auxiliary loss.
        trained_parameters: the number of parameters that PyTorch trained.
        head: the names of the modules that were trained in full.
        initial: the tensors of `adapter_init`.
        final: the tensors of `adapter_final`.
        batches: the inputs of every step.
        expected: PyTorch's results by quantity.
    """

    name: str
    folder: Path
    kind: PublishedType
    spec: AdapterSpec
    scaling: tuple[float, ...] | None
    modules: tuple[str, ...]
    optimizer: OptimizerConfig
    steps: int
    aux_coef: float
    trained_parameters: int
    head: tuple[str, ...]
    initial: Arrays
    final: Arrays
    batches: list[dict[str, np.ndarray]]
    expected: dict[str, np.ndarray]


RUN_KEYS = (
    *("name", "modules", "aux_coef", "trainable_params"),
    *("steps", "lr", "schedule", "warmup"),
)
"""Keys of meta.json besides those of the spec."""

PER_STEP = ("task_loss", "aux_loss", "grad_norm", "lr")
"""Results of every step."""


def read_run(folder: Path) -> ModelRun:
    """Reads and checks a folder with meta.json.

    Raises:
        UserError: a file, a key or an array is missing or invalid.
    """
    record = Record(read_object(folder / MODEL), str(folder / MODEL))
    record.require(*SPEC_KEYS, *RUN_KEYS)
    steps = record.integer("steps")
    kind = read_init_type(record.text("init_type"), record.number("eta", 1.0))
    spec, scaling = _spec(record, kind)
    modules = tuple(record.texts("modules"))
    initial = read_safetensors(folder / "adapter_init.safetensors")
    if not modules:
        raise UserError(f"{folder / MODEL}: modules is empty: name the adapted modules")
    return ModelRun(
        name=record.text("name"),
        folder=folder,
        kind=kind,
        spec=spec,
        scaling=scaling,
        modules=modules,
        optimizer=_optimizer(record, steps),
        steps=steps,
        aux_coef=record.number("aux_coef"),
        trained_parameters=record.integer("trainable_params"),
        head=_head_modules(initial, modules, record),
        initial=initial,
        final=read_safetensors(folder / "adapter_final.safetensors"),
        batches=_batches(read_npz(folder / "batches.npz"), steps),
        expected=_expected(read_npz(folder / "expected.npz"), steps),
    )


def _spec(record: Record, kind: PublishedType) -> tuple[AdapterSpec, tuple[float, ...] | None]:
    theory = isinstance(kind.scale, TheoreticalScale)
    # The theoretical scale depends on the layer, so one number in the file cannot describe it.
    absent = theory and record.values.get("scaling") is None
    scaling = None if absent else record.numbers("scaling", record.integer("num_experts"))
    scale = kind.scale if theory or scaling is None else ConstantScale(scaling)
    return read_spec(record, kind, scale), scaling


def _optimizer(record: Record, steps: int) -> OptimizerConfig:
    schedule = record.text("schedule")
    word = re.match(r"[a-z]*", schedule.lower())
    name = word.group() if word else ""
    if name not in SCHEDULES:
        raise UserError(
            f"{record.where}: schedule {schedule!r} does not begin with one of "
            f"{', '.join(SCHEDULES)}"
        )
    warmup = record.integer("warmup", least=0)
    if warmup > steps:
        raise UserError(f"{record.where}: warmup {warmup} is longer than the {steps} steps")
    clip = record.number("clip", 0.0)
    return OptimizerConfig(
        learning_rate=record.number("lr"),
        schedule=name,
        warmup_steps=warmup,
        weight_decay=record.number("weight_decay", 0.0),
        max_grad_norm=clip or None,
    )


def _head_modules(initial: Arrays, modules: tuple[str, ...], record: Record) -> tuple[str, ...]:
    """Returns the modules that are trained in full: `adapter_init` has their tensors.

    Raises:
        UserError: an adapter of a module that is not listed, or no tensor of a listed head.
    """
    of_adapters = re.compile(r"(.+)\.(lora_[AB]\.\d+|lora_gating)\.weight")
    trained = []
    for name in initial.values:
        match = of_adapters.fullmatch(name)
        if match is None:
            trained.append(name)
        elif match[1] not in modules:
            raise UserError(
                f"{initial.path} has {name!r}, but {match[1]!r} is not among the modules of "
                f"{record.where}{nearest(match[1], modules)}"
            )
    for extra in record.texts("train_extra") if "train_extra" in record.values else []:
        if not any(extra in name for name in trained):
            raise UserError(f"{initial.path} has no tensor of {extra!r}, which train_extra lists")
    return tuple(sorted({name.rpartition(".")[0] for name in trained}))


def adapter_tensors(
    arrays: Arrays, module: str, spec: AdapterSpec, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Converts the PyTorch tensors of one module to a (E, I, R), b (E, R, O) and router (I, E).

    Args:
        arrays: the tensors of `adapter_init` or `adapter_final`.
        module: the module's name.
        spec: the adapter spec, which gives E and R.
        shape: the shape (I, O) of the module's kernel.

    Raises:
        UserError: a tensor is missing or has another shape.
    """
    n, m = shape
    d, experts = spec.rank, range(spec.num_experts)
    a = [arrays.floats(f"{module}.lora_A.{i}.weight", (d, n)).T for i in experts]
    b = [arrays.floats(f"{module}.lora_B.{i}.weight", (m, d)).T for i in experts]
    router = arrays.floats(f"{module}.lora_gating.weight", (spec.num_experts, n)).T
    return {"a": np.stack(a), "b": np.stack(b), "router": router}


def _batches(arrays: Arrays, steps: int) -> list[dict[str, np.ndarray]]:
    """Groups the arrays, which are named ``NAME_STEP``, to the inputs of every step by name."""
    batches: list[dict[str, np.ndarray]] = [{} for _ in range(steps)]
    kinds = sorted({name.rpartition("_")[0] for name in arrays.values})
    for kind in kinds:
        for step in range(steps):
            batches[step][kind] = _narrow(arrays.get(f"{kind}_{step}"))
    if "labels" not in kinds:
        raise UserError(f"{arrays.path} lacks the array 'labels_0'")
    return batches


def _narrow(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32)


def _expected(arrays: Arrays, steps: int) -> dict[str, np.ndarray]:
    arrays.require(*PER_STEP, "logits_first", "logits_after", "loss_after")
    shapes = {**{name: (steps,) for name in PER_STEP}, "loss_after": ()}
    expected = {name: arrays.get(name, shape) for name, shape in shapes.items()}
    expected["logits_first"] = arrays.get("logits_first")
    expected["logits_after"] = arrays.get("logits_after", expected["logits_first"].shape)
    return expected


def hf_config(folder: Path) -> Mapping:
    """Reads the model's config.json."""
    return read_json(folder / "config.json", "a model run")
