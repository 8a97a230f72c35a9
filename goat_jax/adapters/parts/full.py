"""Parts: full fine-tuning. The trained factor is the kernel itself, or one copy per expert."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from goat_jax.adapters.protocols import Combine, CombineInputs, Initializer, InitInputs
from goat_jax.adapters.spec import AdapterSpec
from goat_jax.core.dispatch import expand
from goat_jax.errors import UserError
from goat_jax.registry import part
from goat_jax.typing import Array, Factors, Key


@part("initializer", "copies_of_kernel")
@dataclasses.dataclass(frozen=True)
class CopiesOfKernel(Initializer):
    """Initializes every expert as the pretrained kernel, in float32 (sparse upcycling)."""

    layout: ClassVar[str] = "kernels"

    def factors(self, inputs: InitInputs, spec: AdapterSpec, key: Key) -> Factors:
        del key
        shape = (spec.num_experts, *inputs.kernel.shape)
        return {"kernels": jnp.broadcast_to(inputs.kernel.astype(jnp.float32), shape)}


@part("kernel_edit", "take_out_kernel")
@dataclasses.dataclass(frozen=True)
class TakeOutKernel:
    """Replaces the frozen kernel by an empty one, (0, O), so that it is not stored twice."""

    looks_at_kernel: ClassVar[bool] = False

    def check(self, spec: AdapterSpec) -> None:
        """Refuses a combine that does not compute the layer's output from kernels of its layout."""
        if spec.combine.layout != "kernels":
            raise UserError(
                f"TakeOutKernel leaves no kernel for {type(spec.combine).__name__}: choose "
                "kernel_edit KeepKernel"
            )

    def __call__(self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec) -> Array:
        del factors, scale, spec
        return kernel[:0]

    def removed(
        self, kernel: Array, factors: Factors, scale: Array, spec: AdapterSpec
    ) -> tuple[Array, Array]:
        raise UserError("the pretrained kernel is removed, and that change is not of low rank")


@part("combine", "whole_kernels")
@dataclasses.dataclass(frozen=True)
class WholeKernels(Combine):
    """Complete output of the layer: ``sum_i w_i x W_i``, without scale and frozen kernel.

    Tokens are multiplied by the experts' weights before a single product over (expert, input), so
    no array of the size (E, tokens, O) is made.
    """

    layout: ClassVar[str] = "kernels"
    replaces: ClassVar[bool] = True
    starts_plain: ClassVar[bool] = False

    def check(self, spec: AdapterSpec) -> None:
        """Refuses dropout, and several experts without router, which sum to several kernels."""
        if spec.router.mergeable and spec.num_experts > 1:
            raise UserError(
                f"{spec.num_experts} complete kernels without a router add up to "
                f"{spec.num_experts} times the pretrained one: choose num_experts=1, or a router"
            )
        if spec.dropout:
            raise UserError(
                f"WholeKernels computes the layer itself: dropout on its input, {spec.dropout}, "
                "would also act on the frozen branch: set dropout=0"
            )

    def __call__(self, inputs: CombineInputs) -> Array:
        ((x, kernels),) = self.products(inputs)
        return expand(x, kernels)

    def products(self, inputs: CombineInputs) -> tuple[tuple[Array, Array], ...]:
        x, kernels, weights = inputs.x, inputs.arrays["kernels"], inputs.routing.weights
        if kernels.shape[0] == 1 and "router" not in inputs.arrays:
            return ((x, kernels[0]),)
        shape = (*weights.shape, x.shape[-1])
        gated = jnp.broadcast_to(x[..., None, :], shape) * weights[..., None].astype(x.dtype)
        flat = gated.reshape(*x.shape[:-1], -1)
        return ((flat, kernels.reshape(-1, kernels.shape[-1])),)

    def merge(self, kernel: Array, arrays: Factors, scale: Array, spec: AdapterSpec) -> Array:
        del scale, spec
        return arrays["kernels"][0].astype(kernel.dtype)

    def low_rank(self, arrays: Factors, scale: Array) -> tuple[Array, Array]:
        raise UserError("complete kernels are trained, and their change is not of low rank")
