"""The training loop without a model: the order of what happens between two steps, and a restart."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np

from checkpoints import Batches, state_of
from goat_jax.training.checkpoints.checkpoint import Checkpoints
from goat_jax.training.loop import Loop


class Rows(Batches):
    """An endless iterator of equal batches, whose position is the number of those read."""

    def __next__(self):
        self.state = {"next_index": self.state["next_index"] + 1}
        return {"weights": np.ones(2)}


def loop_of(config, folder, change_steps=()):
    """A loop whose steps only count, and what it has done: names of events in order."""
    done = []

    def step(state, base, batch):
        done.append("step")
        state = dataclasses.replace(state, step=state.step + 1)
        return state, {"loss": jnp.float32(1.0), "grad_norm": jnp.float32(1.0)}

    def change(state, base):
        done.append("phase change")
        return state

    built: Any = SimpleNamespace(
        state=state_of(0),
        base={},
        shardings=None,
        train_step=step,
        phase_changes=dict.fromkeys(change_steps, change),
    )
    records: Any = SimpleNamespace(resume=lambda step: done.append(f"records up to {step}"))
    data: Any = SimpleNamespace(train=Rows(), shares=1)
    whole = dataclasses.replace(
        config,
        train=dataclasses.replace(
            config.train, steps=99, eval_every=99, save_every=99, log_every=99
        ),
        logging=dataclasses.replace(config.logging, utilization=False),
    )
    loop = Loop(whole, built, data, records, Checkpoints(folder, "accuracy"))
    profile: Any = SimpleNamespace(before=lambda step: None, after=lambda step, state: None)
    loop.profile = profile
    return loop, done


def test_a_phase_changes_right_after_its_step(config, tmp_path):
    loop, done = loop_of(config, tmp_path, change_steps=[2])
    for _ in range(3):
        loop.take_step()
    loop.checkpoints.close()
    assert done == ["step", "step", "phase change", "step"]


def test_a_restart_takes_up_step_batch_and_records(config, tmp_path):
    first, _ = loop_of(config, tmp_path)
    for _ in range(3):
        first.take_step()
    first.save(None)
    first.checkpoints.close()
    again, done = loop_of(config, tmp_path)
    again.restore()
    again.checkpoints.close()
    assert done == ["records up to 3"]
    assert again.step == again.saved == int(again.state.step) == 3
    assert again.data.train.get_state() == {"next_index": 3}
