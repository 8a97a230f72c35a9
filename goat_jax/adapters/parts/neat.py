"""NEAT (PEANuT): a small network computes the kernel's change from the kernel itself."""

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from goat_jax.adapters.protocols import Combine, CombineInputs, Extras, Initializer, InitInputs
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core.initializers import kaiming_uniform
from goat_jax.core.precision import wide
from goat_jax.errors import UserError
from goat_jax.registry import part
from goat_jax.typing import Array, Factors, Key
from goat_jax.validation.fields import Natural, OneOf, check_fields

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


@part("initializer", "zero_network")
@dataclasses.dataclass(frozen=True)
class ZeroNetwork(Initializer):
    """Initializes the first layer a (1, width, R) at random, the last b (1, R, width) to zero."""

    layout: ClassVar[str] = "network"

    def factors(self, inputs: InitInputs, spec: AdapterSpec, key: Key) -> Factors:
        width = inputs.kernel.shape[0 if getattr(spec.combine, "over_inputs", False) else 1]
        return {
            "a": kaiming_uniform(key, (1, width, spec.rank), width),
            "b": jnp.zeros((1, spec.rank, width), jnp.float32),
        }


@part("combine", "kernel_network")
@dataclasses.dataclass(frozen=True)
class KernelNetwork(Combine):
    """NEAT's combine: ``x (W0 + s act(W0 a) b)``, with further layers between a and b if deep.

    A deep network has `depth` encoders (R, R) and as many decoders with skip connections: the last
    encoder's input is added to the first decoder's output, and so on outwards. The activation
    follows a and every encoder and decoder matrix, before the skip connection is added.

    Attributes:
        depth: the number of encoder-decoder pairs; "depth D" in NEAT's code is 2 + 2 depth.
        activation: the activation function, a key of `ACTIVATIONS`.
        over_inputs: whether the network acts on the kernel's input axis, W0 + s b' act(a' W0), as
            in the paper and a later fork; otherwise on the output axis, as in the first code and
            PEFT.
    """

    depth: Natural = 0
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "relu"
    over_inputs: bool = False
    layout: ClassVar[str] = "network"
    replaces: ClassVar[bool] = True
    starts_plain: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, spec: AdapterSpec) -> None:
        """Refuses experts, routers and dropout: the network's input is the kernel, not a token."""
        if spec.num_experts > 1 or not spec.router.mergeable:
            raise UserError("KernelNetwork is one network: set num_experts=1 and router=none")
        if spec.dropout:
            raise UserError(
                f"KernelNetwork changes the kernel and takes no dropout: set dropout=0, not "
                f"{spec.dropout}"
            )

    def extras(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec, key: Key
    ) -> Extras:
        del kernel, factors, scale
        if self.depth == 0:
            return Extras({}, {})
        shape = (self.depth, spec.rank, spec.rank)
        keys = jax.random.split(key)
        matrices = [kaiming_uniform(matrix_key, shape, spec.rank) for matrix_key in keys]
        return Extras(dict(zip(("encoders", "decoders"), matrices, strict=True)), {})

    def _changed(self, kernel: Array, arrays: Factors, scale: Array) -> Array:
        """Returns the kernel (I, O) plus the network's scaled output on it, in float32 at least."""
        return kernel.astype(wide(kernel.dtype)) + scale[0] * self._change(kernel, arrays)

    def _change(self, kernel: Array, arrays: Factors) -> Array:
        """Returns the network's output on the kernel (I, O), before its scale."""
        act, rows = ACTIVATIONS[self.activation], kernel.astype(wide(kernel.dtype))
        rows = rows.T if self.over_inputs else rows
        hidden = act(jnp.dot(rows, arrays["a"][0]))
        kept = []
        for layer in range(self.depth):
            kept.append(hidden)
            hidden = act(jnp.dot(hidden, arrays["encoders"][layer]))
        for layer in range(self.depth):
            hidden = act(jnp.dot(hidden, arrays["decoders"][layer])) + kept.pop()
        change = jnp.dot(hidden, arrays["b"][0])
        return change.T if self.over_inputs else change

    def __call__(self, inputs: CombineInputs) -> Array:
        ((x, changed),) = self.products(inputs)
        return jnp.dot(x, changed.astype(x.dtype))

    def products(self, inputs: CombineInputs) -> tuple[tuple[Array, Array], ...]:
        return ((inputs.x, self._changed(inputs.kernel, inputs.arrays, inputs.scale)),)

    def merge(self, kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec) -> Array:
        del spec
        return self._changed(kernel, arrays, scale).astype(kernel.dtype)

    def low_rank(self, arrays: Factors, scale: Array) -> tuple[Array, Array]:
        raise UserError("a network of the kernel computes the change, which is not of low rank")
