"""Epochs in place of steps: in a config, as an override, and converted to steps by the rows."""

import dataclasses

import pytest

from goat_jax.config.fields import config_from_json, flatten, with_fields
from goat_jax.config.run import ModelConfig, RunConfig
from goat_jax.config.train import STEPS, TrainConfig
from goat_jax.data.tasks.registry import reviews
from goat_jax.errors import UserError

CONFIG = RunConfig(ModelConfig("m"), reviews(), train=TrainConfig(steps=40))


def test_steps_are_those_of_whole_batches():
    train = TrainConfig(epochs=2.5, batch_size=10)
    assert train.over(49).total_steps == 10  # four batches an epoch
    assert train.over(9).total_steps == 3  # at least one
    assert TrainConfig(steps=7).over(49).total_steps == 7
    assert TrainConfig().total_steps == STEPS


def test_an_override_of_one_removes_the_other():
    by_epochs = with_fields(CONFIG, {"train.epochs": 3.0})
    assert (by_epochs.train.steps, by_epochs.train.epochs) == (None, 3.0)
    assert config_from_json(flatten(by_epochs)) == by_epochs
    assert with_fields(by_epochs, {"train.steps": 40}) == CONFIG
    assert with_fields(by_epochs, {"train.steps": None}) == by_epochs


def test_both_are_one_error():
    message = r"train.steps 40 and train.epochs 3 are both given: give one of them"
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG.train, epochs=3.0)
    with pytest.raises(UserError, match=message):
        with_fields(CONFIG, {"train.epochs": 3.0, "train.steps": 40})


def test_a_number_of_epochs_that_is_not_valid():
    with pytest.raises(UserError, match=r"train.epochs 0 is not valid: give a number above 0"):
        TrainConfig(epochs=0)
