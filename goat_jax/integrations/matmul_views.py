"""Views of other libraries' layers as one matrix product of tokens (..., I) and kernel (I, O)."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import jax.numpy as jnp

from goat_jax.errors import UserError
from goat_jax.typing import Array


class MatmulView(Protocol):
    """Maps a layer's kernel, input and output to those of a matrix product, and back.

    Attributes:
        kernel_shape: the shape of one layer's kernel, without axes of stacked layers.
    """

    @property
    def kernel_shape(self) -> tuple[int, ...]: ...

    def matrix(self, kernel: Array) -> Array:
        """Reshapes the layer's kernel to (I, O)."""
        ...

    def kernel(self, matrix: Array) -> Array:
        """Reshapes a matrix (I, O) to the layer's kernel."""
        ...

    def tokens(self, x: Array) -> Array:
        """Reshapes the layer's input to (..., I)."""
        ...

    def output(self, delta: Array) -> Array:
        """Reshapes a delta (..., O) to the layer's output, to which it is added."""
        ...


@dataclasses.dataclass(frozen=True)
class Axes:
    """A kernel of input axes followed by output axes: Linear, Dense, LinearGeneral, DenseGeneral.

    Attributes:
        inputs: sizes of the kernel's input axes.
        outputs: sizes of the kernel's output axes.
        axes: the axes of x that are contracted.

    >>> view = Axes((2, 3), (5,), (-2, -1))
    >>> view.tokens(jnp.ones((7, 2, 3))).shape, view.matrix(jnp.ones((2, 3, 5))).shape
    ((7, 6), (6, 5))
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[int, ...] = (-1,)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return self.inputs + self.outputs

    def matrix(self, kernel: Array) -> Array:
        return kernel.reshape(math.prod(self.inputs), math.prod(self.outputs))

    def kernel(self, matrix: Array) -> Array:
        return matrix.reshape(self.kernel_shape)

    def tokens(self, x: Array) -> Array:
        count = len(self.axes)
        moved = jnp.moveaxis(x, self.axes, range(-count, 0))
        return moved.reshape(*moved.shape[:-count], -1)

    def output(self, delta: Array) -> Array:
        return delta.reshape(*delta.shape[:-1], *self.outputs)


@dataclasses.dataclass(frozen=True)
class Einsum:
    """``einsum("x,kernel->y", x, kernel)`` whose contracted axes and new axes are all the kernel's.

    Attributes:
        x: the input's term; may begin with an ellipsis.
        k: the kernel's term.
        y: the output's term; may begin with an ellipsis.
        kernel_shape: sizes of k's axes.

    >>> view = read_einsum("BTNH,NHD->BTD", (2, 3, 5))
    >>> view.tokens(jnp.ones((1, 7, 2, 3))).shape, view.output(jnp.ones((1, 7, 5))).shape
    ((1, 7, 6), (1, 7, 5))
    """

    x: str
    k: str
    y: str
    kernel_shape: tuple[int, ...]

    @property
    def _inputs(self) -> str:
        return "".join(letter for letter in self.k if letter in self.x)

    @property
    def _outputs(self) -> str:
        return "".join(letter for letter in self.k if letter not in self.x)

    @property
    def _rest(self) -> str:
        left = "".join(letter for letter in self.x.replace("...", "") if letter not in self.k)
        return ("..." if "..." in self.x else "") + left

    def _sizes(self, letters: str) -> tuple[int, ...]:
        return tuple(self.kernel_shape[self.k.index(letter)] for letter in letters)

    def matrix(self, kernel: Array) -> Array:
        moved = _transposed(kernel, self.k, self._inputs + self._outputs)
        return moved.reshape(math.prod(self._sizes(self._inputs)), -1)

    def kernel(self, matrix: Array) -> Array:
        order = self._inputs + self._outputs
        return _transposed(matrix.reshape(self._sizes(order)), order, self.k)

    def tokens(self, x: Array) -> Array:
        moved = _transposed(x, self.x, self._rest + self._inputs)
        return moved.reshape(*moved.shape[: moved.ndim - len(self._inputs)], -1)

    def output(self, delta: Array) -> Array:
        whole = delta.reshape(*delta.shape[:-1], *self._sizes(self._outputs))
        return _transposed(whole, self._rest + self._outputs, self.y)


def _transposed(array: Array, source: str, target: str) -> Array:
    """Reorders an array's axes from one term of an einsum to another.

    Not by `jnp.einsum`: qwix would take it for a product of the layer and quantize it.
    """
    hidden = array.ndim - len(source.replace("...", ""))
    ellipsis = "".join(map(chr, range(hidden)))  # a name for each of its axes
    source, target = (term.replace("...", ellipsis) for term in (source, target))
    return array.transpose([source.index(axis) for axis in target])


def read_einsum(text: str, kernel_shape: tuple[int, ...]) -> Einsum:
    """Parses the einsum of an input and a kernel into its view.

    Args:
        text: the equation, input,kernel->output.
        kernel_shape: the kernel's shape.

    Raises:
        UserError: an einsum that is not a matrix product, such as one with a kernel per head.
    """
    terms, _, y = text.replace(" ", "").partition("->")
    x, _, k = terms.partition(",")
    if not y or not k or "," in k or "..." in k or len(k) != len(kernel_shape):
        raise UserError(f"einsum {text!r} is not of the form input,kernel->output in letters")
    for letter in k:
        if letter in x and letter in y:
            raise UserError(
                f"einsum {text!r} has a separate kernel for every {letter}: no single matrix"
            )
        if letter not in x and letter not in y:
            raise UserError(f"einsum {text!r} sums the kernel's axis {letter} alone")
    gone = [letter for letter in x.replace("...", "") if letter not in k + y]
    if gone:
        raise UserError(f"einsum {text!r} sums the input's axis {gone[0]} alone")
    return Einsum(x, k, y, tuple(kernel_shape))
