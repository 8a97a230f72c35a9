"""`Model`, the base class of the networks that checkpoints are loaded into."""

from __future__ import annotations

import abc
from typing import Any

from flax import nnx


class Model(nnx.Module):
    """Network with a config, whose modules have Hugging Face names.

    Attributes:
        config: the network's sizes and settings, a frozen dataclass of the network's own.
    """

    config: Any

    @abc.abstractmethod
    def hf_names(self) -> dict[str, str]:
        """Maps our path to the torch name of the module (see `goat_jax.nn.named_modules`)."""
