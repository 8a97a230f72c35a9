"""`goat-jax` in a process that SIGKILL ends before a given step, whatever else it was doing.

    python dying.py STEP VERB ...

The process kills itself, so that no test depends on how soon another process would notice a step.
"""

import os
import signal
import sys

from goat_jax.cli.main import main
from goat_jax.training.loop import Loop


def dies_after(step: int) -> None:
    """Lets the loop take its steps up to this one. What it writes in the background may be cut."""
    take_step = Loop.take_step

    def take_step_or_die(self):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        take_step(self)

    Loop.take_step = take_step_or_die


if __name__ == "__main__":
    dies_after(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
