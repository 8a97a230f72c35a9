"""Protocols of the parts that a method is made of, and the records that their calls take.

A part is a frozen dataclass. Its optional method ``check(spec)`` runs when a spec is made, and
raises `UserError` if the part does not fit the spec. The protocols of the two parts that act on a
whole run are beside their implementations: `Transform` and `Phases`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from goat_jax.core.routers import Routing
from goat_jax.core.svd import Svd
from goat_jax.errors import UserError
from goat_jax.typing import Array, Factors, Key

if TYPE_CHECKING:
    from goat_jax.adapters.context import Context
    from goat_jax.adapters.spec import AdapterSpec

LAYOUTS = {
    "pairs": "a (E, I, R), b (E, R, O)",
    "shared": "a (1, I, R), b (E, R, O)",
    "network": "a (1, O, R), b (1, R, O), or over I",
    "kernels": "kernels (E, I, O)",
}
"""Layouts of the factors and their shapes: an initializer makes one, a combine works on one."""


class InitInputs(NamedTuple):
    """Inputs from which an initializer makes the factors of one layer.

    Attributes:
        kernel: the pretrained kernel, (I, O).
        segments: the experts' segments of the kernel's SVD; None if the initializer uses none.
        scale: the experts' scales (E,).
        gradient: the gradient of the loss with respect to the kernel, (I, O); None if not given.
    """

    kernel: Array
    segments: Svd | None
    scale: Array
    gradient: Array | None


class Initializer(Protocol):
    """Makes the initial factors of one layer.

    Attributes:
        layout: the shapes of the factors, a key of `LAYOUTS`.
        gradient_batches: the number of training batches whose mean gradient it needs; 0 for none.
    """

    layout: ClassVar[str]
    gradient_batches: int = 0

    def for_table(self) -> Initializer:
        """Returns the initializer of a table's adapter, whose x is an index; by default itself."""
        return self

    def decompose(self, kernel: Array, spec: AdapterSpec, key: Key) -> Svd | None:
        """Returns the experts' segments of the kernel's SVD, or None if it does not use the SVD."""
        del kernel, spec, key
        return None

    def factors(self, inputs: InitInputs, spec: AdapterSpec, key: Key) -> Factors:
        """Returns the initial factors by name, float32.

        Raises:
            UserError: it needs a gradient and none was given.
        """
        ...


class KernelEdit(Protocol):
    """Makes the frozen kernel from the pretrained one.

    Attributes:
        looks_at_kernel: whether the subtracted part depends on the values of the pretrained kernel,
            not on the factors alone.
    """

    looks_at_kernel: ClassVar[bool]

    def __call__(self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec) -> Array:
        """Returns the frozen kernel (I, O) in the dtype of the pretrained one.

        A method that replaces ``x @ kernel`` may return an empty kernel, (0, O).
        """
        ...

    def removed(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec
    ) -> tuple[Array, Array]:
        """Returns the part subtracted from the pretrained kernel, as factors (I, Q) and (Q, O).

        The arguments are those of the original call, with the initial factors.
        """
        ...


class RouterInputs(NamedTuple):
    """Inputs of a router's call.

    Attributes:
        x: tokens (..., I), without dropout.
        arrays: all arrays of the adapter by name.
        spec: the method and its sizes.
        ctx: inputs of the model besides the tokens, such as the tasks.
        logits: x times `Router.matrix`, (..., N) in float32; None if the router has to compute it.
    """

    x: Array
    arrays: Factors
    spec: AdapterSpec
    ctx: Context
    logits: Array | None = None


@runtime_checkable
class ChoosesTriplets(Protocol):
    """A part that selects singular triplets of a kernel."""

    def triplets(self, h: int, spec: AdapterSpec, key: Key) -> Array:
        """Returns the index (E, R) of the triplets among a kernel's h triplets."""
        ...


@runtime_checkable
class DropsTriplets(ChoosesTriplets, Protocol):
    """A base edit that removes the triplets that it selects."""

    def without(self, kernel: Array, minor: Svd) -> Array:
        """Returns the kernel minus these triplets, u (E, I, R), s (E, R), vt (E, R, O)."""
        ...


class Router(Protocol):
    """Computes the experts' weights for every token.

    Attributes:
        mergeable: whether all tokens get the same weights, so that the adapter can be merged into
            the kernel.
        varies: the way the weights vary, for error messages: "token by token", "task by task".
    """

    mergeable: ClassVar[bool]
    varies: ClassVar[str]

    def init(self, in_features: int, spec: AdapterSpec, key: Key) -> Factors:
        """Returns the router's initial trained arrays by name."""
        ...

    def mean_weight(self, spec: AdapterSpec) -> float | tuple[float, ...]:
        """Returns the experts' expected weight E[w_i] (Lemma 3.3), used for the residual kernel.

        One number for all experts, or one for each.
        """
        ...

    def matrix(self, factors: Factors) -> Array | None:
        """Returns the matrix (I, N) that maps x to logits, or None if x has no influence."""
        del factors
        return None

    def __call__(self, inputs: RouterInputs) -> Routing:
        """Routes the tokens."""
        ...


class Extras(NamedTuple):
    """Arrays of a combine besides the factors.

    Attributes:
        trained: the trained arrays by name.
        constants: the frozen arrays by name; a method may replace them between two steps.
    """

    trained: Factors
    constants: Factors


class CombineInputs(NamedTuple):
    """Inputs of a combine's call.

    Attributes:
        x: tokens (..., I), or (copies, ..., I) if dropout is active and `Combine.dropout_copies`
            is not None.
        kernel: the frozen kernel (I, O).
        arrays: all arrays of the adapter by name.
        scale: the experts' scales (E,).
        routing: the experts' weights for every token, (..., E).
        hidden: x times `Combine.inner`, (..., R) in float32; None if the combine has to compute it.
        product: ``x @ kernel``, (..., O); None if it is not known.
    """

    x: Array
    kernel: Array
    arrays: Factors
    scale: Array
    routing: Routing
    hidden: Array | None = None
    product: Array | None = None

    @property
    def gate(self) -> Array:
        """The experts' weights times their scales, (..., E)."""
        weights = self.routing.weights
        return weights * jnp.broadcast_to(self.scale, weights.shape)

    @property
    def copied(self) -> bool:
        """True if x has an additional first axis of independently dropped-out copies."""
        return self.x.ndim > self.routing.weights.ndim


class Combine(Protocol):
    """Computes what the adapter adds to the layer's output from tokens and routing.

    ``arrays`` are all arrays of the adapter by name: factors, the combine's extras, router,
    constants.

    Attributes:
        layout: the factors it works on, a key of `LAYOUTS`.
        replaces: whether it computes the layer's complete output instead of an addition to
            ``x @ kernel``.
        scales: whether its addition scales ``x @ kernel`` too; `output` then computes both at once.
        starts_plain: whether it initially equals ``sum_i w_i s_i a_i b_i``, which kernel edits may
            subtract.
        looks_up: whether x enters by `hidden` and `product` alone. Then it works on tables too,
            whose x is an index: the two are looked up, and there is no x to multiply.
    """

    layout: ClassVar[str]
    replaces: ClassVar[bool]
    scales: ClassVar[bool] = False
    starts_plain: ClassVar[bool]
    looks_up: ClassVar[bool] = False

    def extras(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec, key: Key
    ) -> Extras:
        """Returns its additional arrays besides the factors; `kernel` is the frozen one."""
        del kernel, factors, scale, spec, key
        return Extras({}, {})

    def dropout_copies(self, spec: AdapterSpec) -> int | None:
        """Returns the number of independently dropped-out copies of x, or None for x itself."""
        del spec
        return None

    def inner(self, arrays: Factors) -> Array | None:
        """Returns the narrow matrix (I, R) that multiplies x first, or None if there is none."""
        del arrays
        return None

    def pairs(self, arrays: Factors) -> tuple[Array, Array]:
        """Returns the factors a (E, I, R) and b (E, R, O) of its experts.

        Raises:
            UserError: it is not a sum of experts.
        """
        del arrays
        raise UserError(f"{type(self).__name__} is not a sum of low-rank experts")

    def __call__(self, inputs: CombineInputs) -> Array:
        """Returns what is added to ``x @ kernel``, or replaces it: (..., O)."""
        ...

    def output(self, inputs: CombineInputs) -> Array:
        """Returns ``inputs.product`` plus what a call returns, (..., O)."""
        assert inputs.product is not None
        return inputs.product + self(inputs)

    def products(self, inputs: CombineInputs) -> tuple[tuple[Array, Array], ...]:
        """Returns what a call returns as pairs of (..., Q) and (Q, O), whose products it sums.

        A large O, such as a vocabulary, is then never computed for all tokens at once.
        """
        ...

    def merge(self, kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec) -> Array:
        """Returns the kernel (I, O) equivalent to frozen kernel plus adapter."""
        ...

    def low_rank(self, arrays: Factors, scale: Array) -> tuple[Array, Array]:
        """Returns factors (I, Q) and (Q, O) of the kernel's change if all experts have weight 1.

        Raises:
            UserError: the change of the kernel is not of low rank.
        """
        ...


class ScaleRule(Protocol):
    """Computes the scale that multiplies each expert."""

    def __call__(self, in_features: int, segments: Svd | None, spec: AdapterSpec) -> Array:
        """Returns the experts' scales (E,), float32."""
        ...


class AuxLoss(Protocol):
    """Computes an additional loss of one layer, before its weight."""

    def __call__(self, routing: Routing, arrays: Factors, ctx: Context) -> Array:
        """Returns the loss, a float32 scalar."""
        ...
