"""Replays cases without training: LoRAHub's combination of adapters, and KaSA's auxiliary loss."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.adapters.adapter import apply_layer
from goat_jax.adapters.context import EVAL
from goat_jax.adapters.lorahub import combine_adapters, penalty
from goat_jax.adapters.methods import method_spec
from goat_jax.adapters.parts.aux_losses import CoreAndOrthogonality
from goat_jax.core.residual import delta_weight
from goat_jax.core.routers import route_all
from goat_jax.parity.bundle import Arrays
from goat_jax.parity.checks import GIVEN, METHOD, Check, Comparison, worst
from goat_jax.parity.methods.cases import KASA_TENSORS, ONE_PAIR, CaseFile
from goat_jax.typing import Array, Factors


def replay_hub(entry: CaseFile, arrays: Arrays) -> Iterator[Check]:
    """Compares the combined factors, and the layer's output with them and with each adapter."""
    record = entry.record
    compare = Comparison(METHOD, str(entry.folder), entry.name, GIVEN)
    spec = method_spec("lora", total_rank=record.integer("rank"), alpha=record.number("alpha"))
    kernel, x = jnp.asarray(arrays.floats("W0").T), jnp.asarray(arrays.floats("x"))
    bias, scale = arrays.floats("bias"), spec.scale(kernel.shape[0], None, spec)
    pairs = [
        {"a": jnp.asarray(ONE_PAIR.read(a)), "b": jnp.asarray(ONE_PAIR.read(b))}
        for a, b in zip(arrays.floats("A"), arrays.floats("B"), strict=True)
    ]
    coefficients = jnp.asarray(arrays.floats("coef"))
    hat = combine_adapters(pairs, coefficients)

    def output(factors: Factors) -> np.ndarray:
        y, _ = apply_layer(x, kernel, factors, scale, spec, EVAL)
        return np.asarray(y) + (bias if bias.size else 0.0)

    y = output(hat)
    results = {
        "A_hat": ONE_PAIR.write(np.asarray(hat["a"])),
        "B_hat": ONE_PAIR.write(np.asarray(hat["b"])),
        "delta_W": np.asarray(delta_weight(hat["a"], hat["b"], scale)).T,
        "y": y,
        "y_single": np.stack([output(pair) for pair in pairs]),
        "loss": np.square(y - arrays.floats("target")).mean(),
        "aux": np.asarray(penalty(coefficients)),
    }
    yield compare.check("scale", np.asarray(scale), np.full(1, record.number("scale")))
    for name, value in results.items():
        yield compare.check(name, value, arrays.get(name))


def replay_kasa_loss(entry: CaseFile, arrays: Arrays) -> Iterator[Check]:
    """Compares both forms of the auxiliary loss over several layers, and their gradients."""
    record = entry.record
    layers = record.integer("layers")
    compare = Comparison(METHOD, str(entry.folder), entry.name, GIVEN)
    factors = [
        {our_name: jnp.asarray(form.read(arrays.floats(f"{name}_{layer}")))
         for name, (our_name, form) in KASA_TENSORS.items()}
        for layer in range(layers)
    ]  # fmt: skip
    for form, published in (("peft", False), ("reference", True)):
        part = CoreAndOrthogonality(record.number("beta"), record.number("gamma"), published)
        # The loss is summed over layers here and in PEFT, but averaged in KaSA's published code.
        weight = 1 / layers if published else 1.0
        loss, grads = _loss_of(part, factors, weight)
        yield compare.check(f"aux_{form}", np.asarray(loss), arrays.get(f"aux_{form}"))
        for name, (our_name, layout) in KASA_TENSORS.items():
            yield worst(
                [
                    compare.check(
                        f"grad_{form}_{name}",
                        layout.write(np.asarray(grads[layer][our_name])),
                        arrays.get(f"grad_{form}_{name}_{layer}"),
                        f"layer {layer}",
                    )
                    for layer in range(layers)
                ]
            )


@partial(jax.jit, static_argnums=0)
def _loss_of(
    part: CoreAndOrthogonality, factors: list[Factors], weight: float
) -> tuple[Array, list[Factors]]:
    def total(factors: list[Factors]) -> Array:
        routing = route_all((1,), 1)
        return weight * sum(
            (part(routing, layer_factors, EVAL) for layer_factors in factors), jnp.zeros(())
        )

    return jax.value_and_grad(total)(factors)
