"""Figures of runs, drawn from their records.

Figures are made without pyplot, so there is no window and no global state, and drawing is safe in
threads and without a display. Colors can be distinguished with any color vision (Okabe and Ito
2008; PuOr of ColorBrewer).
"""

from goat_jax.plots.expert_load import plot_expert_load
from goat_jax.plots.training import plot_training

__all__ = ["plot_expert_load", "plot_training"]
