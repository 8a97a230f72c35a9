"""Replays a layer case: a `Dense` with an adapter, its gradients, and AdamW steps on one batch."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from goat_jax.adapters.adapter import Report, init_adapter
from goat_jax.adapters.context import EVAL
from goat_jax.adapters.scales import Fixed
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError
from goat_jax.layers import Adapter, Dense, merge_model, run_model, split_model
from goat_jax.optim.optimizer import OptimizerConfig, make_optimizer
from goat_jax.parity.align import align_signs, svd_noise
from goat_jax.parity.bundle import LAYERS, Arrays, Record, read_npz, read_object
from goat_jax.parity.checks import GIVEN, LAYER, OWN, Check, compare
from goat_jax.parity.published import SPANS_WHOLE_RANK, PublishedType, published_spec, read_init_type
from goat_jax.typing import Array, Factors, PyTree


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """One entry of layers.json.

    Attributes:
        name: of the case; its arrays are in ``layer_NAME.npz``.
        folder: the bundle.
        record: the entry.
    """

    name: str
    folder: Path
    record: Record


def read_cases(folder: Path) -> list[LayerCase]:
    """The cases of a folder with layers.json."""
    path = folder / LAYERS
    entries = read_object(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path} is not a list of layer cases")
    cases = []
    for number, entry in enumerate(entries):
        name = Record(entry, f"{path}: entry {number}").text("name")
        cases.append(LayerCase(name, folder, Record(entry, f"{path}: {name}")))
    return cases


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a case says, read and checked. Kernels are (I, O), as everywhere in the package.

    Attributes:
        kind: what its init type means.
        spec: the layer as parts, at the file's scale.
        optimizer: its AdamW.
        steps: AdamW steps.
        aux_coef: weight of the balance loss.
        kernel, residual: pretrained and frozen kernel (I, O).
        bias: (O,) or None.
        factors: a (E, I, R), b (E, R, O), router (I, E) at the start.
        x, target: (S, I), (S, O).
        expected: what PyTorch computed, by quantity, in its own layout.
    """

    kind: PublishedType
    spec: AdapterSpec
    optimizer: OptimizerConfig
    steps: int
    aux_coef: float
    kernel: np.ndarray
    residual: np.ndarray
    bias: np.ndarray | None
    factors: dict[str, np.ndarray]
    x: np.ndarray
    target: np.ndarray
    expected: dict[str, np.ndarray]


def read_plan(case: LayerCase) -> Plan:
    """Reads and checks a case and its arrays."""
    record = case.record
    kind = read_init_type(record.text("init_type"), record.number("eta", 1.0))
    experts = record.integer("num_experts")
    zero = kind.choice is None
    spec = published_spec(
        kind,
        rank=record.integer("rank"),
        num_experts=experts,
        top_k=record.integer("top_k"),
        alpha=record.number("alpha"),
        scale=Fixed(record.numbers("scaling", experts)),
        rho=record.number("rho", 10.0 if zero else None),
        init_cof=record.number("init_cof", 1 / experts if zero else None),
    )
    adamw = record.record("adamw")
    betas = adamw.numbers("betas", 2)
    optimizer = OptimizerConfig(
        learning_rate=adamw.number("lr"),
        schedule="constant",
        warmup_steps=0,
        weight_decay=adamw.number("weight_decay"),
        clip=None,
        beta1=betas[0],
        beta2=betas[1],
        epsilon=adamw.number("eps"),
    )
    arrays = read_npz(case.folder / f"layer_{case.name}.npz")
    sizes = (record.integer("out_features"), record.integer("in_features"))
    return Plan(
        kind=kind,
        spec=spec,
        optimizer=optimizer,
        steps=adamw.integer("steps"),
        aux_coef=record.number("aux_coef"),
        **_read_arrays(arrays, spec, *sizes, adamw.integer("steps")),
    )


def _read_arrays(
    arrays: Arrays, spec: AdapterSpec, out_features: int, in_features: int, steps: int
) -> dict[str, Any]:
    m, n, e, d = out_features, in_features, spec.num_experts, spec.rank
    tokens = arrays.get("x").shape[0] if arrays.get("x").ndim else 0
    bias = arrays.floats("bias", None if arrays.get("bias").size == 0 else (m,))
    shapes = {
        "y": (tokens, m),
        "aux": (),
        "loss": (),
        "grad_x": (tokens, n),
        "grad_A": (e, d, n),
        "grad_B": (e, m, d),
        "grad_router": (e, n),
        "adamw_losses": (steps,),
        "y_final": (tokens, m),
    }
    return {
        "kernel": arrays.floats("W0", (m, n)).T,
        "residual": arrays.floats("W_res", (m, n)).T,
        "bias": bias if bias.size else None,
        "factors": {
            "a": _swap(arrays.floats("A0", (e, d, n))),
            "b": _swap(arrays.floats("B0", (e, m, d))),
            "router": arrays.floats("router0", (e, n)).T,
        },
        "x": arrays.floats("x", (tokens, n)),
        "target": arrays.floats("target", (tokens, m)),
        "expected": {name: arrays.get(name, shape) for name, shape in shapes.items()},
    }


def _swap(factor: np.ndarray) -> np.ndarray:
    """torch's (E, out, in) to ours and back."""
    return np.swapaxes(factor, 1, 2)


def replay_case(case: LayerCase) -> list[Check]:
    """Runs a case from the given factors and from our own start, and compares every quantity."""
    plan = read_plan(case)
    label = (str(case.folder), case.name)
    with jax.default_matmul_precision("highest"):
        return [*_given(plan, (*label, GIVEN)), *_own(plan, (*label, OWN))]


def _scale_check(plan: Plan, label: tuple[str, str, str]) -> list[Check]:
    """Our rule against the file's scale, where the init type settles which rule it is."""
    if not plan.kind.fixed:
        return []
    ours = plan.kind.scale(plan.kernel.shape[0], None, plan.spec)
    return [compare(LAYER, label, "scale", np.asarray(ours), _scale(plan))]


def _scale(plan: Plan) -> np.ndarray:
    return np.asarray(plan.spec.scale(plan.kernel.shape[0], None, plan.spec))


def _given(plan: Plan, label: tuple[str, str, str]) -> list[Check]:
    factors = {name: jnp.asarray(value) for name, value in plan.factors.items()}
    residual = _edit_base(plan.spec, jnp.asarray(plan.kernel), factors, jnp.asarray(_scale(plan)))
    checks = _scale_check(plan, label)
    checks.append(compare(LAYER, label, "W_res", np.asarray(residual), plan.residual))
    return checks + _compare_run(plan, label, plan.residual, factors, 0.0)


@partial(jax.jit, static_argnums=0)
def _edit_base(spec: AdapterSpec, kernel: Array, factors: Factors, scale: Array) -> Array:
    return spec.base_edit(kernel, factors, scale, spec)


@partial(jax.jit, static_argnums=0)
def _start(spec: AdapterSpec, kernel: Array) -> tuple[Array, Array, Array]:
    start = init_adapter(kernel, spec, jax.random.key(0))
    return start.kernel, start.factors["a"], start.factors["b"]


def _own(plan: Plan, label: tuple[str, str, str]) -> list[Check]:
    residual, a, b = map(np.asarray, _start(plan.spec, jnp.asarray(plan.kernel)))
    given = plan.factors
    if plan.kind.choice is None:
        # A is random: what can be compared is that nothing is taken off and nothing added.
        return [
            compare(LAYER, label, "W_res", residual, plan.residual),
            compare(LAYER, label, "init B", b, given["b"]),
        ]
    noise = svd_noise(plan.kernel, plan.kind.choice, plan.spec.num_experts, plan.spec.rank)
    a, b = align_signs(a, b, given["a"], given["b"])
    checks = [
        compare(LAYER, label, "W_res", residual, plan.residual, svd_noise=noise),
        compare(LAYER, label, "init A", a, given["a"], svd_noise=noise),
        compare(LAYER, label, "init B", b, given["b"], svd_noise=noise),
    ]
    factors = {"a": jnp.asarray(a), "b": jnp.asarray(b), "router": jnp.asarray(given["router"])}
    return checks + _compare_run(plan, label, residual, factors, noise)


class Seen(NamedTuple):
    """What one step of a case computes, in our layout."""

    y: Array
    aux: Array
    loss: Array
    load: Array
    grad_x: Array
    grads: Factors


class Outcome(NamedTuple):
    """What a case gives: all of its first step, the losses (steps,), the output after the last."""

    first: Seen
    losses: Array
    y_final: Array


def _compare_run(
    plan: Plan, label: tuple[str, str, str], residual: np.ndarray, factors: Factors, noise: float
) -> list[Check]:
    first, losses, y_final = _run_plan(plan, residual, factors)
    grads = {name: np.asarray(value) for name, value in first.grads.items()}
    ours = {
        "y": first.y,
        "aux": first.aux,
        "loss": first.loss,
        "grad_x": first.grad_x,
        "grad_A": _swap(grads["a"]),
        "grad_B": _swap(grads["b"]),
        "grad_router": grads["router"].T,
        "adamw_losses": losses,
        "y_final": y_final,
    }
    return [
        compare(LAYER, label, name, np.asarray(ours[name]), theirs, svd_noise=noise)
        for name, theirs in plan.expected.items()
    ]


def _run_plan(plan: Plan, residual: np.ndarray, factors: Factors) -> Outcome:
    """Builds the layer out of the package's own modules and trains it."""
    in_features, out_features = plan.kernel.shape
    with_bias = plan.bias is not None
    layer = nnx.eval_shape(
        lambda: Dense(in_features, out_features, use_bias=with_bias, rngs=nnx.Rngs(0))
    )
    layer.kernel.set_value(jnp.asarray(residual))
    if layer.bias is not None:
        layer.bias.set_value(jnp.asarray(plan.bias))
    layer.adapter = Adapter(factors, jnp.asarray(_scale(plan)), plan.spec, salt=0)
    graph, trainable, base = split_model(layer)
    batch = (jnp.asarray(plan.x), jnp.asarray(plan.target), jnp.asarray(plan.aux_coef, jnp.float32))
    state = (trainable, make_optimizer(plan.optimizer, plan.steps).init(trainable))
    losses = []
    for number in range(plan.steps + 1):
        state, seen = _step(graph, plan.optimizer, state, base, *batch)
        first = seen if number == 0 else first
        losses.append(seen.loss)
    return Outcome(first, jnp.stack(losses[:-1]), seen.y)


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    graph: Any,
    config: OptimizerConfig,
    state: tuple[PyTree, Any],
    base: PyTree,
    x: Array,
    target: Array,
    aux_coef: Array,
) -> tuple[tuple[PyTree, Any], Seen]:
    """What a layer computes, and the state after one AdamW step on it."""

    def loss_of(trainable: dict[str, PyTree], x: Array) -> tuple[Array, tuple[Array, Report]]:
        y, sown = run_model(merge_model(graph, trainable, base), x, EVAL)
        report = sown["adapter"]["report"][0]
        return jnp.mean(jnp.square(y - target)) + aux_coef * report.aux_loss, (y, report)

    trainable, opt_state = state
    grad_of_loss = jax.value_and_grad(loss_of, (0, 1), has_aux=True)
    (loss, (y, report)), (grads, grad_x) = grad_of_loss(trainable, x)
    # The rate is constant, so the number of steps does not matter to the optimizer.
    updates, opt_state = make_optimizer(config, 1).update(grads, opt_state, trainable)
    seen = Seen(y, report.aux_loss, loss, report.load, grad_x, grads["adapter"]["adapter"])
    return (optax.apply_updates(trainable, updates), opt_state), seen
