"""Learning rates of runs that are shorter than their warm-up."""

import numpy as np
import pytest

from goat_jax.errors import UserError
from goat_jax.optim.optimizer import OptimizerConfig, schedule_of, shortened_warmup
from goat_jax.optim.schedules import make_schedule


@pytest.mark.parametrize("steps", [4, 30, 99, 100, 140])
def test_a_run_reaches_its_peak_rate_and_ends_at_zero(steps):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=100)
    rates = np.array([schedule_of(config, steps)(np.array(n)) for n in range(steps + 1)], float)
    warm = 100 if steps >= 100 else steps // 10
    assert rates.argmax() == warm and rates[warm] == pytest.approx(1.0)
    assert (rates[-1] == pytest.approx(0.0, abs=1e-6)) == (steps > warm)
    assert (shortened_warmup(config, steps) is None) == (steps >= 100)


def test_a_negative_warm_up_is_refused():
    with pytest.raises(UserError, match="warm-up steps -1 must be at least 0"):
        make_schedule("cosine", 1.0, -1, 10)
