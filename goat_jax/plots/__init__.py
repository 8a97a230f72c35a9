"""Pictures of a run, drawn from its records.

Figures are made without pyplot: no window, no global state, and safe in threads and without a
display. Colours can be told apart with any colour vision (Okabe and Ito 2008; PuOr of ColorBrewer).
"""

from goat_jax.plots.expert_load import plot_expert_load
from goat_jax.plots.training import plot_training

__all__ = ["plot_expert_load", "plot_training"]
