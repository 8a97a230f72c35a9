"""Axis letters and type aliases used throughout the package.

Arrays have lower-case names; capitals are axes only, as in ``jnp.einsum("SI,EIR->SER", x, a)``.

======  ==============================  ======  ==================================
letter  meaning                         letter  meaning
======  ==============================  ======  ==================================
B       batch                           E       experts
T       tokens in a sequence            K       experts kept per token (``top_k``)
S       all tokens, B * T flattened     R       rank of one expert
I / O   input / output features         L       layers
D       model width                     N, H    heads, head size
F       feed-forward width              V       vocabulary
======  ==============================  ======  ==================================
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import jax
from jax.typing import DTypeLike

__all__ = [
    "Array",
    "Batch",
    "DTypeLike",
    "Factors",
    "Key",
    "PyTree",
    "Tokenizer",
]

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Factors: TypeAlias = dict[str, Array]
"""Trained arrays of one adapter by name: ``a`` (E, I, R), ``b`` (E, R, O), ``router`` (I, E)."""
Batch: TypeAlias = Mapping[str, Any]
"""Arrays of a batch by name, of numpy or jax."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that this package uses."""

    eos_token: str | None
    eos_token_id: int | None
    pad_token_id: int | None
    model_max_length: int
    special_tokens_map: Mapping[str, Any]

    def __call__(self, *texts: str | Sequence[str], **options: Any) -> Any:
        """Returns the token ids of texts, and what else is requested, by name."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Returns the text of tokens."""
        ...

    def convert_ids_to_tokens(self, ids: int) -> str:
        """Returns the token with this id."""
        ...

    def __len__(self) -> int:
        """Returns the number of tokens."""
        ...

    def add_tokens(self, new_tokens: Sequence[Any]) -> int:
        """Adds those tokens that it does not have; returns their number."""
        ...

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        """Returns the ids of tokens."""
        ...

    def save_pretrained(self, save_directory: Any) -> Any:
        """Writes its files to a folder."""
        ...

    def num_special_tokens_to_add(self, *, pair: bool) -> int:
        """Returns the number of special tokens that are added to a text or to a pair of texts."""
        ...

    def get_chat_template(self, *, tools: object) -> str:
        """Returns the chat template, a Jinja text."""
        ...

    def apply_chat_template(self, conversation: Sequence[Any], **options: Any) -> Any:
        """Renders messages with the chat template."""
        ...
