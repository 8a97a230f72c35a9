"""Modules with a row or a column for each token: the table of a model's input, and its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from goat_jax.adapters.context import Context
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core.cross_entropy import Output
from goat_jax.nn.activation_sharding import constrained
from goat_jax.nn.dense import Adaptable, Adapter, Dense, Frozen, Head
from goat_jax.nn.modules import Embedding
from goat_jax.nn.named_modules import ModuleRef, find_modules
from goat_jax.typing import Array


class TrainedRows(nnx.Module):
    """Vectors of a few tokens that are trained while all others are frozen.

    Attributes:
        ids: the tokens (n,), ascending.
        values: their vectors (n, D), float32.
    """

    def __init__(self, ids: Sequence[int], values: Array):
        self.ids = Frozen(jnp.asarray(ids, jnp.int32))
        self.values = Head(values.astype(jnp.float32))

    def replace(self, vectors: Array, ids: Array) -> Array:
        """Returns vectors (..., D) of the tokens `ids` (...,) with those that are trained."""
        known = self.ids[...]
        place = jnp.minimum(jnp.searchsorted(known, ids), len(known) - 1)
        trained = jnp.take(self.values[...], place, axis=0).astype(vectors.dtype)
        return jnp.where((known[place] == ids)[..., None], trained, vectors)

    def columns(self) -> tuple[Array, Array]:
        """Returns the fields `columns` and `ids` of an `Output`."""
        return self.values[...].T, self.ids[...]


class TokenTable(Embedding, Adaptable):
    """The table (V, D) of the tokens' vectors.

    As in a linear layer, an adapter changes the table, whose input is a token's number.

    Attributes:
        rows: the tokens whose vectors are trained; None for none.

    >>> TokenTable(5, 3, rngs=nnx.Rngs(0))(jnp.array([[0, 4]]), Context()).shape
    (1, 2, 3)
    """

    matrix: ClassVar[str] = "table"
    vocabulary_axis: ClassVar[int | None] = 0

    def __init__(self, size: int, features: int, *, rngs: nnx.Rngs):
        super().__init__(size, features, rngs=rngs)
        self.adapter: Adapter | None = nnx.data(None)
        self.rows: TrainedRows | None = nnx.data(None)
        self.quantized = None

    @property
    def kernel(self) -> nnx.Variable[Array]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The table."""
        return self.table

    def spec_for(self, spec: AdapterSpec) -> tuple[AdapterSpec | None, str]:
        if not spec.combine.looks_up:
            return None, f"{type(spec.combine).__name__} multiplies x, a table has an index alone"
        return spec.replace(initializer=spec.initializer.for_table()), ""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, ids: Array, ctx: Context
    ) -> Array:
        """Looks up vectors (..., D) for integer ids (...)."""
        x = super().__call__(ids)
        if self.rows is not None:
            x = self.rows.replace(x, ids)
        if self.adapter is not None:
            x = x + self.adapter.look_up(ids, self.table[...], ctx, x)
        for sharding in self.lookup_shardings[-1:] if x.ndim == 3 else ():
            x = constrained(x, sharding)
        return x


class VocabularyOutput(Dense):
    """The linear layer from hidden states to the logits of the vocabulary.

    Attributes:
        rows: the tokens whose columns are trained; None for none.
    """

    vocabulary_axis: ClassVar[int | None] = 1

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        super().__init__(in_features, out_features, use_bias=False, rngs=rngs)
        self.rows: TrainedRows | None = nnx.data(None)

    def output(self, hidden: Array, ctx: Context, sharding: jax.sharding.Sharding | None) -> Output:
        """Returns the layer at hidden states (..., D), whose kernel gets a sharding, if given."""
        kernel, products = self.kernel[...], ()
        if self.adapter is not None:
            products = self.adapter.products(hidden, kernel, ctx)
        if self.adapter is None or not self.adapter.replaces:
            products = ((hidden, placed(kernel, sharding)), *products)
        inputs, kernels = zip(*products, strict=True)
        return Output(inputs, kernels, *(() if self.rows is None else self.rows.columns()))


def placed(kernel: Array, sharding: jax.sharding.Sharding | None) -> Array:
    """Returns a kernel in a sharding, if one is given."""
    return kernel if sharding is None else jax.lax.with_sharding_constraint(kernel, sharding)


class Tokens(NamedTuple):
    """Tokens that a run adds to a vocabulary or trains the vectors of.

    Attributes:
        size: the number of rows that the vocabulary needs.
        new: the tokens that the pretrained model does not know, ascending.
        trained: the tokens whose vectors are trained, ascending.
    """

    size: int
    new: tuple[int, ...] = ()
    trained: tuple[int, ...] = ()


Place = Callable[[ModuleRef[Adaptable]], jax.sharding.Sharding]
"""Module with a vocabulary -> the sharding of its matrix."""


def add_tokens(model: nnx.Module, tokens: Tokens, place: Place | None = None) -> None:
    """Adds tokens to a model's table and to its output, in place.

    A new token starts at the mean of all others, computed in float32. transformers adds noise with
    a billionth of their covariance, whose decomposition costs more than it brings: the gradients of
    two tokens differ from the first step on.

    Args:
        model: the model, without adapters.
        tokens: the tokens.
        place: gives the sharding of the matrices on a mesh; None for one device.
    """
    for ref in _of_vocabulary(model):
        variable, axis = getattr(ref.module, ref.module.matrix), ref.module.vocabulary_axis
        variable.set_value(_grown(variable[...], axis, tokens.size, tokens.new))
        if place is not None:
            # Only now the matrix has the size that its sharding depends on.
            there = jax.jit(lambda matrix: matrix, out_shardings=place(ref))
            variable.set_value(there(variable[...]))


def train_rows(
    model: nnx.Module, ids: Sequence[int], chosen: Callable[[str], bool] = lambda name: True
) -> None:
    """Makes the vectors of some tokens trained, in place, and leaves all others frozen.

    Args:
        model: the model, without adapters.
        ids: the tokens, ascending.
        chosen: name of a module with a vocabulary -> whether its rows are trained.
    """
    for ref in _of_vocabulary(model):
        if chosen(ref.pattern):
            matrix = getattr(ref.module, ref.module.matrix)[...]
            rows = jnp.take(matrix, np.array(ids), axis=ref.module.vocabulary_axis)
            ref.module.rows = TrainedRows(ids, rows.T if ref.module.vocabulary_axis else rows)


def fold_rows(model: nnx.Module) -> None:
    """Writes trained rows into their matrices, in place."""
    for ref in _of_vocabulary(model):
        rows, matrix = ref.module.rows, getattr(ref.module, ref.module.matrix)
        if rows is not None:
            values = rows.values[...].astype(matrix.dtype)
            at = rows.ids[...]
            whole = matrix[...]
            matrix.set_value(
                whole.at[:, at].set(values.T)
                if ref.module.vocabulary_axis
                else whole.at[at].set(values)
            )
            ref.module.rows = nnx.data(None)


def _of_vocabulary(model: nnx.Module) -> list[ModuleRef[TokenTable | VocabularyOutput]]:
    return find_modules(model, (TokenTable, VocabularyOutput))


@partial(jax.jit, static_argnums=(1, 2, 3))
def _grown(matrix: Array, axis: int, size: int, new: tuple[int, ...]) -> Array:
    """Returns a matrix with `size` rows or columns along an axis, the new ones at the mean."""
    mean = matrix.astype(jnp.float32).mean(axis, keepdims=True).astype(matrix.dtype)
    shape = list(matrix.shape)
    shape[axis] = size - shape[axis]
    grown = jnp.concatenate([matrix, jnp.broadcast_to(mean, shape)], axis)
    at = (slice(None),) * axis + (np.array(new, np.int32),)
    return grown.at[at].set(mean)
