"""Replays a model run and compares every number.

The replay loads the model, initializes its adapters and trains it with the package's train step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.adapters.spec import AdapterSpec
from goat_jax.errors import UserError
from goat_jax.injection.inject import inject, train_in_full
from goat_jax.interop.modules import ModuleStart, read_kernels, read_starts
from goat_jax.models.load import load_model
from goat_jax.nn.dense import split_model
from goat_jax.optim.schedules import make_schedule
from goat_jax.parity.align import LARGEST_NOISE, agreeing_steps, align_signs, svd_noise
from goat_jax.parity.checks import GIVEN, MODEL, OWN, Check, Comparison, Note, worst
from goat_jax.parity.model_bundle import ModelRun, adapter_tensors, hf_config, read_run
from goat_jax.parity.model_inputs import INPUTS, complete_batch
from goat_jax.parity.reference_code import scale_note
from goat_jax.parity.ties import settle_ties
from goat_jax.parity.training import Trainer, TrainingResult
from goat_jax.typing import Array, Factors

Starts = Mapping[str, ModuleStart]
Kernels = Mapping[str, np.ndarray]


def replay_run(folder: Path) -> list[Check | Note]:
    """Replays a model run from the given factors and from our initialization.

    Returns:
        The checks of every quantity, and notes.

    Raises:
        UserError: the bundle cannot be read, or parity does not cover the model.
    """
    run, hf = read_run(folder), hf_config(folder)
    with jax.default_matmul_precision("highest"):
        loaded = load_model(folder, key=jax.random.key(0))
        model, kind = loaded.model, INPUTS[loaded.kind]
        loss_fn, where = kind.loss_fn(hf), str(folder / "batches.npz")
        batches = [complete_batch(batch, kind, loss_fn, where) for batch in run.batches]
        kernels = read_kernels(model, run.modules)
        inject(model, run.spec, run.modules, key=jax.random.key(0))
        train_in_full(model, run.head)
        our_starts = read_starts(model)
        given_starts = _given_starts(run, kernels, our_starts)
        trainer = Trainer.create(run, model, loss_fn, batches)
        first, second = (Comparison(MODEL, str(folder), run.name, s) for s in (GIVEN, OWN))
        settings = list(_check_settings(trainer, our_starts, first))
        judge = partial(_check_outcome, run, compare=first)
        outcome, rows = settle_ties(trainer.train, given_starts, judge, first)
        return [
            *settings,
            *rows,
            *_check_from_ours(trainer, kernels, our_starts, given_starts, outcome, second),
        ]


def _given_starts(run: ModelRun, kernels: Kernels, our_starts: Starts) -> dict[str, ModuleStart]:
    """Returns the bundle's factors with the frozen kernels that belong to them, by module."""
    starts = {}
    for name, kernel in kernels.items():
        if name not in our_starts:
            raise UserError(
                f"{run.folder}: the smaller side of {name} {kernel.T.shape} is below the rank "
                f"{run.spec.total_rank}: PyTorch leaves such a module without adapter"
            )
        factors = adapter_tensors(run.initial, name, run.spec, kernel.shape)
        frozen = _edit_base(run.spec, kernel, factors, our_starts[name].scale)
        starts[name] = ModuleStart(np.asarray(frozen), factors, our_starts[name].scale)
    return starts


@partial(jax.jit, static_argnums=0)
def _edit_base(spec: AdapterSpec, kernel: Array, factors: Factors, scale: Array) -> Array:
    return spec.kernel_edit(kernel, factors, scale, spec)


def _check_settings(
    trainer: Trainer, starts: Starts, compare: Comparison
) -> Iterator[Check | Note]:
    """Compares trained parameters, learning rates, and the scale if the init type determines it."""
    run, config = trainer.run, trainer.run.optimizer
    _, trainable, _ = split_model(trainer.model)
    count = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    yield compare.check("trained parameters", np.asarray(count), np.asarray(run.trained_parameters))
    rate = make_schedule(config.schedule, config.learning_rate, config.warmup_steps, run.steps)
    yield compare.check("lr", np.asarray(rate(jnp.arange(run.steps))), run.expected["lr"])
    if run.scaling is None:
        return
    theirs, rule = np.asarray(run.scaling), run.kind.scale
    if run.kind.fixed:
        checks = [
            compare.check(
                "scale", np.asarray(rule(s.kernel.shape[0], None, run.spec)), theirs, name
            )
            for name, s in starts.items()
        ]
        # If the scale depends on the layer's size, the file's one number is that of some layer.
        yield min(checks, key=lambda check: check.error)
    else:
        ours = np.asarray(rule(1, None, run.spec))
        if not np.allclose(ours, theirs, rtol=1e-6):
            yield compare.note(scale_note(theirs, ours))


def _check_outcome(
    run: ModelRun, outcome: TrainingResult, compare: Comparison, agree: int | None = None
) -> Iterator[Check | Note]:
    """Compares all results, but only the first `agree` steps of the training."""
    expected = dict(run.expected)
    expected["loss"] = expected["task_loss"] + run.aux_coef * expected["aux_loss"]
    yield compare.check("logits_first", outcome.logits_first, expected["logits_first"])
    for name, values in outcome.per_step.items():
        yield compare.check(name, values[:agree], expected[name][:agree])
    if agree is not None and agree < run.steps:
        yield compare.note(
            f"own start: a token changes its experts at step {agree}, a near-tie that the SVD's "
            "rounding decides; losses are compared up to there"
        )
        return
    yield compare.check("logits_after", outcome.logits_after, expected["logits_after"])
    yield compare.check("loss_after", outcome.loss_after, expected["loss_after"])
    yield from _check_final(run, outcome, compare)


FINAL = {"a": "final A", "b": "final B", "router": "final router"}


def _check_final(run: ModelRun, outcome: TrainingResult, compare: Comparison) -> Iterator[Check]:
    """Compares the trained tensors after the last step; yields the worst module of each kind."""
    rows: dict[str, list[Check]] = {}

    def add(quantity: str, ours: np.ndarray, theirs: np.ndarray, where: str) -> None:
        rows.setdefault(quantity, []).append(compare.check(quantity, ours, theirs, where))

    for name, start in outcome.starts.items():
        ours = start.factors
        theirs = adapter_tensors(run.final, name, run.spec, start.kernel.shape)
        for key, quantity in FINAL.items():
            add(quantity, ours[key], theirs[key], name)
        add("final BA", _product(ours), _product(theirs), name)
    for name, value in outcome.head.items():
        add("final head", value, run.final.floats(name, value.shape), name)
    yield from map(worst, rows.values())


def _product(factors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Computes sum_i a_i b_i (I, O), which does not depend on the signs of singular vectors."""
    return np.einsum("EIR,ERO->IO", factors["a"], factors["b"])


def _check_from_ours(
    trainer: Trainer,
    kernels: Kernels,
    our_starts: Starts,
    given_starts: Starts,
    reference: TrainingResult,
    compare: Comparison,
) -> Iterator[Check | Note]:
    """Compares our initialization, and the run from it with the given routers and head."""
    run, spec = trainer.run, trainer.run.spec
    choice = run.kind.segments
    rows: list[list[Check]] = []
    starts = {}
    for name, start in our_starts.items():
        theirs = given_starts[name].factors
        if choice is None:
            # a is random, so only b can be compared: it is zero, and the adapter adds nothing.
            rows.append([compare.check("init B", start.factors["b"], theirs["b"], name)])
            continue
        noise = svd_noise(kernels[name], choice, spec.num_experts, spec.rank)
        if noise > LARGEST_NOISE:
            yield compare.note(
                f"no run from our own start: {name} has singular values too near each other (noise "
                f"{noise:.1e}) for its singular vectors to be comparable"
            )
            return
        a, b = align_signs(start.factors["a"], start.factors["b"], theirs["a"], theirs["b"])
        starts[name] = start._replace(factors={"a": a, "b": b, "router": theirs["router"]})
        one = compare.with_noise(noise)
        rows.append(
            [
                one.check("W_res", start.kernel, given_starts[name].kernel, name),
                one.check("init A", a, theirs["a"], name),
                one.check("init B", b, theirs["b"], name),
            ]
        )
    yield from map(worst, zip(*rows, strict=True))
    if starts:
        outcome = trainer.train(starts)
        yield from _check_outcome(
            run, outcome, compare, agreeing_steps(outcome.loads, reference.loads)
        )
