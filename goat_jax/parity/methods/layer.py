"""Reads and checks a case of another method that is one layer, and compares one of its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from goat_jax.adapters.context import Context
from goat_jax.parity.bundle import Arrays
from goat_jax.parity.checks import Check, Comparison
from goat_jax.parity.layer_bundle import read_adamw
from goat_jax.parity.layer_steps import LayerRun, ObservedStep
from goat_jax.parity.methods.cases import CASES, CaseFile, MethodCase, read_factors


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """A case that is one layer, read and checked.

    Attributes:
        case: our counterpart of its formula.
        run: the layer's spec and its training.
        kernel: the pretrained kernel, (I, O).
        frozen: the frozen kernel, (I, O).
        scale: the experts' scales, (E,).
        factors: the initial trained arrays by name.
    """

    case: MethodCase
    run: LayerRun
    kernel: np.ndarray
    frozen: np.ndarray
    scale: np.ndarray
    factors: dict[str, np.ndarray]


def read_layer(entry: CaseFile, arrays: Arrays) -> LayerPlan:
    """Reads a case whose formula is in `CASES`.

    Raises:
        UserError: a key or an array is missing or invalid.
    """
    record, case = entry.record, CASES[entry.formula]
    spec = case.spec(record)
    record.require("in_features", "out_features", "scale", "aux_coef", "optimizer", "trainable")
    arrays.require("W0", "bias", "x", "target", "y", "aux", "loss", "grad_x")
    m, n = record.integer("out_features"), record.integer("in_features")
    tokens = arrays.get("x").shape[:-1]
    kernel = arrays.floats("W0", (m, n)).T
    bias = arrays.floats("bias", (0,) if arrays.get("bias").size == 0 else (m,))
    recipe, steps = read_adamw(case.optimizer(record.record("optimizer")))
    run = LayerRun(
        spec=spec,
        optimizer=dataclasses.replace(recipe, transform=spec.transform),
        steps=steps,
        aux_coef=record.number("aux_coef"),
        bias=bias if bias.size else None,
        x=arrays.floats("x", (*tokens, n)),
        target=arrays.floats("target", (*tokens, m)),
        ctx=_context(case, arrays, tokens),
    )
    edited = "W_res" in arrays.values
    return LayerPlan(
        case=case,
        run=run,
        kernel=kernel,
        frozen=arrays.floats("W_res", (m, n)).T if edited else kernel,
        scale=np.asarray(spec.scale(n, None, spec)),
        factors=read_factors(arrays, case, record),
    )


def _context(case: MethodCase, arrays: Arrays, tokens: tuple[int, ...]) -> Context:
    fields: dict[str, Any] = {
        field: jnp.asarray(arrays.get(name, tokens[:1]).astype(np.int32))
        for field, name in case.tasks.items()
    }
    return Context(**fields)


def check_seen(
    case: MethodCase, observed: ObservedStep, arrays: Arrays, compare: Comparison, suffix: str = ""
) -> Iterator[Check]:
    """Compares the output, losses and gradients of one step, under names that end in `suffix`."""
    ours: dict[str, Any] = {
        "y": observed.y,
        "aux": observed.aux,
        "loss": observed.loss,
        "grad_x": observed.grad_x,
    }
    for name, (our_name, form) in case.tensors.items():
        if our_name in observed.grads:
            ours[f"grad_{name}"] = form.write(np.asarray(observed.grads[our_name]))
    for name, value in ours.items():
        if not suffix or f"{name}{suffix}" in arrays.values:
            theirs = arrays.get(f"{name}{suffix}")
            yield compare.check(f"{name}{suffix}", np.asarray(value), theirs)
