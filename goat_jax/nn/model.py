"""`Model`, the base class of the networks that checkpoints are loaded into."""

from __future__ import annotations

import abc
from typing import Any

from flax import nnx
from jax.sharding import NamedSharding

from goat_jax.nn.attention import AttentionPlan
from goat_jax.nn.attention_need import Need


class Model(nnx.Module):
    """Network with a config, whose modules have Hugging Face names.

    Attributes:
        config: the network's sizes and settings, a frozen dataclass of the network's own.
        attention: the way to compute the attention, and the mesh it is sharded over.
        output_sharding: on a mesh, the sharding of the vocabulary's output kernel where it is used.
            Without it the compiler would shard its inner side and exchange logits. Else None.
    """

    config: Any
    attention: AttentionPlan = AttentionPlan()
    output_sharding: NamedSharding | None = None

    @property
    def output_shape(self) -> tuple[int, int] | None:
        """Shape (D, V) of the vocabulary's output kernel; None for a model without one."""
        return None

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Torch names of the task head's modules; none for a model that predicts its vocabulary."""
        return ()

    @abc.abstractmethod
    def attention_need(self, tokens: int, dtype: str) -> Need:
        """Returns what the model asks of attention in training, on rows of so many tokens.

        Args:
            tokens: the number of tokens in a row; models of images have their own.
            dtype: the name of the hidden states' dtype.
        """

    @abc.abstractmethod
    def hf_names(self) -> dict[str, str]:
        """Maps our path to the torch name of the module (see `goat_jax.nn.named_modules`)."""
