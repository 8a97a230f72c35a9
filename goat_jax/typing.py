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

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Factors: TypeAlias = dict[str, Array]
"""Trained arrays of one adapter by name: ``a`` (E, I, R), ``b`` (E, R, O), ``router`` (I, E)."""
Batch: TypeAlias = Mapping[str, Any]
"""Arrays of a batch by name, of numpy or jax."""
