"""Training of a run: setup, training loop, losses, evaluation, shardings."""
