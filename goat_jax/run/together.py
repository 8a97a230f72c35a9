"""Runs that differ in seed or learning rate, trained at once: adapters under vmap, one base.

Nothing is saved on the way: a comparison is many short runs. Each member's numbers are those of a
run of its own with the same seed (every batch padded alike), up to rounding.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from goat_jax.config import RunConfig
from goat_jax.errors import UserError
from goat_jax.run.evaluate import evaluate
from goat_jax.run.placed import placement_of
from goat_jax.run.problems import problem_of
from goat_jax.run.setup import (
    Built,
    build,
    check_tokens,
    evaluation_batches,
    load_rows,
    training_batches,
)
from goat_jax.run.state import RunState
from goat_jax.run.step import make_train_step
from goat_jax.typing import Array, Batch, PyTree


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of several.

    Attributes:
        seed: of its start, its data's order and its dropout.
        learning_rate: its peak rate.
    """

    seed: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a member came to.

    Attributes:
        member: which.
        losses: the task's loss of every step's batch.
        before, after: scores at the start and after the last step.
        trained_parameters: of one member, heads included.
        adapter_share: its adapters' parameters over the pretrained model's.
        step_seconds: median time of a step, divided by the members that ran in it.
        temporary_bytes: what the compiled step needs besides its arguments, divided likewise.
    """

    member: Member
    losses: tuple[float, ...]
    before: dict[str, float]
    after: dict[str, float]
    trained_parameters: int
    adapter_share: float
    step_seconds: float
    temporary_bytes: int


def train_together(
    config: RunConfig, members: Sequence[Member], at_once: int = 1
) -> Iterator[Outcome]:
    """Trains all members, `at_once` of them in one step where they can share the frozen arrays.

    Members whose method makes another frozen kernel for each seed run one after the other.

    Raises:
        UserError: a config with a mesh.
    """
    if placement_of(config) is not None:
        raise UserError("runs are trained together on one device: leave mesh as it is")
    one_shape = dataclasses.replace(config.train, shapes=1)
    config = dataclasses.replace(config, train=one_shape)
    for first in range(0, len(members), at_once):
        yield from _train_some(config, members[first : first + at_once])


def _train_some(config: RunConfig, members: Sequence[Member]) -> Iterator[Outcome]:
    builts = _with_one_base(config, members)
    if builts is None:
        for member in members:
            yield from _train_some(config, [member])
    else:
        yield from _Group(config, members, builts).train()


def with_member(config: RunConfig, member: Member) -> RunConfig:
    """The config of a member as a run of its own."""
    train = dataclasses.replace(config.train, seed=member.seed)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=member.learning_rate)
    return dataclasses.replace(config, train=train, optimizer=optimizer)


def _with_one_base(config: RunConfig, members: Sequence[Member]) -> list[Built] | None:
    """The members' models, all with the first one's frozen arrays; None if those differ."""
    of_seed: dict[int, Built] = {}
    first = None
    for member in members:
        if member.seed in of_seed:
            continue
        built = build(with_member(config, dataclasses.replace(members[0], seed=member.seed)))
        first = built if first is None else first
        same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), built.base, first.base)
        if not all(jax.tree.leaves(same)):
            return None
        of_seed[member.seed] = dataclasses.replace(built, base=first.base)
    return [of_seed[member.seed] for member in members]


class _Group:
    """Members that share their frozen arrays."""

    def __init__(self, config: RunConfig, members: Sequence[Member], builts: Sequence[Built]):
        self.config, self.members, self.builts = config, members, builts
        self.built, self.base = builts[0], builts[0].base
        first = members[0].learning_rate
        self.rates = jnp.asarray([member.learning_rate / first for member in members])
        rows, held_out = load_rows(config, "train", "evaluation")
        if self.built.vocabulary is not None:
            texts = [*rows.input_ids, *held_out.input_ids]  # type: ignore[attr-defined]
            check_tokens(texts, self.built.vocabulary)
        configs = [with_member(config, member) for member in members]
        self.batches = [training_batches(each, rows) for each in configs]
        self.held_out = evaluation_batches(config, held_out)

    def train(self) -> list[Outcome]:
        """From the start to the last step."""
        state = _stack([built.state for built in self.builts])
        batch = self.next_batch()
        step = jax.jit(jax.vmap(self.step, in_axes=(0, None, 0, 0)), donate_argnums=0)
        compiled = step.lower(state, self.base, batch, self.rates).compile()
        before, losses, seconds = self.evaluate(state), [], []
        for number in range(1, self.config.train.steps + 1):
            start = time.perf_counter()
            state, loss = compiled(state, self.base, batch, self.rates)
            batch = self.next_batch()
            losses.append(np.asarray(loss))
            seconds.append(time.perf_counter() - start)
            if number in self.built.switches:
                state = self.switched(state, number)
        memory: Any = compiled.memory_analysis()
        after, count = self.evaluate(state), len(self.members)
        report = self.built.inject_report
        return [
            Outcome(
                member=member,
                losses=tuple(float(loss[i]) for loss in losses),
                before=before[i],
                after=after[i],
                trained_parameters=report.trained_parameters,
                adapter_share=report.adapter_share,
                step_seconds=float(np.median(seconds)) / count,
                temporary_bytes=int(memory.temp_size_in_bytes) // count,
            )
            for i, member in enumerate(self.members)
        ]

    def next_batch(self) -> Batch:
        """The members' next batches, one above the other."""
        return _stack([next(batches) for batches in self.batches], np)

    def step(
        self, state: RunState, base: PyTree, batch: Batch, rate: Array
    ) -> tuple[RunState, Array]:
        """One member's step, and its loss."""
        own = make_train_step(
            self.built.graph,
            problem_of(self.config.task).objective(self.config.task),
            self.built.optimizer_at(rate),
            aux_weight=self.config.adapter.spec().aux_weight,
            accumulate=self.config.train.accumulate,
        )
        state, metrics = own(state, base, batch)
        return state, metrics["task_loss"]

    def switched(self, state: RunState, number: int) -> RunState:
        """What the method changes after that step, in every member."""
        switch = self.built.switches[number]
        return _stack([switch(each, self.base) for each in self.apart(state)])

    def evaluate(self, state: RunState) -> list[dict[str, float]]:
        """Every member's scores."""
        found = [self.eval_step(state, self.base, batch) for batch in self.held_out]
        scores = []
        for place in range(len(self.members)):
            own = iter([jax.tree.map(lambda a, i=place: a[i], each) for each in found])
            done = evaluate(
                lambda *_, own=own: next(own), {}, None, self.held_out, self.config.task
            )
            scores.append(done.scores)
        return scores

    @partial(jax.jit, static_argnums=0)
    def eval_step(self, state: RunState, base: PyTree, batch: Batch) -> Any:
        """All members' sums and outputs on one batch."""
        step = self.built.eval_step
        return jax.vmap(lambda s: step(s.trainable, s.frozen(base), batch))(state)

    def apart(self, state: RunState) -> list[RunState]:
        """The members' own states."""
        return [jax.tree.map(lambda a, i=i: a[i], state) for i in range(len(self.members))]


def _stack(trees: Sequence[Any], library: Any = jnp) -> Any:
    return jax.tree.map(lambda *leaves: library.stack(leaves), *trees)
