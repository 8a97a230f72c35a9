"""Replays a model run: loads the model, starts its adapters, trains it with the package's own step
and compares every number on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError
from goat_jax.inject import inject, train_in_full
from goat_jax.layers import split_model
from goat_jax.models.load import load_model
from goat_jax.optim.schedules import make_schedule
from goat_jax.parity.align import align_signs, svd_noise
from goat_jax.parity.checks import GIVEN, MODEL, OWN, Check, compare, worst
from goat_jax.parity.families import FAMILIES, complete_batch
from goat_jax.parity.model_bundle import ModelRun, adapter_tensors, hf_config, read_run
from goat_jax.parity.modules import Start, read_kernels, read_starts
from goat_jax.parity.training import Outcome, Trainer
from goat_jax.typing import Array, Factors

Label = tuple[str, str, str]
Starts = Mapping[str, Start]


def replay_run(folder: Path) -> list[Check]:
    """Runs a model run from the given factors and from our own start; compares every quantity."""
    run, hf = read_run(folder), hf_config(folder)
    with jax.default_matmul_precision("highest"):
        model = load_model(folder, key=jax.random.key(0)).model
        family = FAMILIES.get(str(hf.get("model_type")))
        if family is None:
            raise UserError(f"{folder}: parity does not cover model_type {hf.get('model_type')!r}")
        where = str(folder / "batches.npz")
        batches = [complete_batch(batch, family, where) for batch in run.batches]
        kernels = read_kernels(model, run.modules)
        inject(model, run.spec, run.modules, key=jax.random.key(0))
        train_in_full(model, run.head)
        own = read_starts(model)
        given = _given_starts(run, kernels, own)
        trainer = Trainer.create(run, model, family.objective(hf), batches)
        labels = [(str(folder), run.name, start) for start in (GIVEN, OWN)]
        checks = [*_check_settings(trainer, own, labels[0])]
        outcome = trainer.train(given)
        checks += _check_outcome(run, outcome, labels[0])
        return checks + list(_check_own(trainer, given, own, kernels, outcome, labels[1]))


def _given_starts(run: ModelRun, kernels: Mapping[str, np.ndarray], own: Starts) -> dict[str, Start]:
    """The bundle's factors, and the frozen kernels that belong to them."""
    starts = {}
    for name, kernel in kernels.items():
        if name not in own:
            raise UserError(
                f"{run.folder}: {name} has shape {kernel.T.shape}, too small for total rank "
                f"{run.spec.total_rank}: PyTorch cannot have adapted it"
            )
        factors = adapter_tensors(run.initial, name, run.spec, kernel.shape)
        frozen = _edit_base(run.spec, kernel, factors, own[name].scale)
        starts[name] = Start(np.asarray(frozen), factors, own[name].scale)
    return starts


@partial(jax.jit, static_argnums=0)
def _edit_base(spec: AdapterSpec, kernel: Array, factors: Factors, scale: Array) -> Array:
    return spec.base_edit(kernel, factors, scale, spec)


def _check_settings(trainer: Trainer, starts: Starts, label: Label) -> Iterator[Check]:
    """Trained parameters, learning rates, and the scale where the init type settles it."""
    run = trainer.run
    _, trainable, _ = split_model(trainer.model)
    count = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    yield compare(MODEL, label, "trained parameters", _one(count), _one(run.trained_parameters))
    config = run.optimizer
    rate = make_schedule(config.schedule, config.learning_rate, config.warmup_steps, run.steps)
    yield compare(MODEL, label, "lr", np.asarray(rate(jnp.arange(run.steps))), run.expected["lr"])
    if run.kind.fixed and run.scaling is not None:
        # Where the scale depends on the layer's size, the file's one number is that of some layer.
        scales = [compare(MODEL, label, "scale", start.scale, np.asarray(run.scaling), where=name)
                  for name, start in starts.items()]  # fmt: skip
        yield min(scales, key=lambda check: check.error)


def _one(value: Any) -> np.ndarray:
    return np.asarray([value])


def _check_outcome(run: ModelRun, outcome: Outcome, label: Label) -> Iterator[Check]:
    expected = run.expected
    theirs = {
        **{name: expected[name] for name in ("task_loss", "aux_loss", "grad_norm")},
        "loss": expected["task_loss"] + run.aux_coef * expected["aux_loss"],
    }
    check = partial(compare, MODEL, label)
    yield check("logits_first", outcome.logits_first, expected["logits_first"])
    for name, value in theirs.items():
        yield check(name, outcome.per_step[name], value)
    yield check("logits_after", outcome.logits_after, expected["logits_after"])
    yield check("loss_after", outcome.loss_after, expected["loss_after"])
    yield from _check_final(run, outcome, label)


def _check_final(run: ModelRun, outcome: Outcome, label: Label) -> Iterator[Check]:
    """The trained tensors after the last step, the worst module of each kind."""
    check = partial(compare, MODEL, label)
    rows: dict[str, list[Check]] = {}
    for name, start in outcome.starts.items():
        ours = start.factors
        theirs = adapter_tensors(run.final, name, run.spec, start.kernel.shape)
        pairs = {"final " + key.replace("a", "A").replace("b", "B") if len(key) == 1 else "final router": key for key in ours}
        for quantity, key in pairs.items():
            rows.setdefault(quantity, []).append(check(quantity, ours[key], theirs[key], where=name))
        rows.setdefault("final BA", []).append(check("final BA", product(ours), product(theirs), where=name))
    for name, value in outcome.head.items():
        theirs = run.final.floats(name, value.shape)
        rows.setdefault("final head", []).append(check("final head", value, theirs, where=name))
    yield from map(worst, rows.values())


def product(factors: Mapping[str, np.ndarray]) -> np.ndarray:
    """sum_i a_i b_i (I, O): what the factors do together, whatever their signs."""
    return np.einsum("EIR,ERO->IO", factors["a"], factors["b"])


def _check_own(
    trainer: Trainer,
    given: Starts,
    own: Starts,
    kernels: Mapping[str, np.ndarray],
    reference: Outcome,
    label: Label,
) -> Iterator[Check]:
    run = trainer.run
    check = partial(compare, MODEL, label)
    rows: dict[str, list[Check]] = {}
    aligned = {}
    noises = []
    for name, start in own.items():
        theirs = given[name].factors
        a, b = align_signs(start.factors["a"], start.factors["b"], theirs["a"], theirs["b"])
        aligned[name] = Start(start.kernel, {"a": a, "b": b, "router": theirs["router"]}, start.scale)
        noise = svd_noise(kernels[name], run.kind.choice, run.spec.num_experts, run.spec.rank)
        noises.append(noise)
        for q, x, y in (("W_res", start.kernel, given[name].kernel), ("init A", a, theirs["a"]), ("init B", b, theirs["b"])):
            rows.setdefault(q, []).append(check(q, x, y, svd_noise=noise, where=name))
    yield from map(worst, rows.values())
    outcome = trainer.train(aligned)
    print('noise', max(noises), 'diverge', np.where(np.abs(outcome.loads-reference.loads).max(-1)>1e-6)[0][:5])
    yield from _check_outcome(run, outcome, label)
