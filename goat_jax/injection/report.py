"""`InjectReport`: the modules of a model and how each is trained."""

from __future__ import annotations

import dataclasses

import jax
from flax import nnx

from goat_jax.nn.dense import Adaptable, Factor, Head
from goat_jax.nn.named_modules import ModuleRef


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the report: a module (of several layers, if stacked) and how it is trained.

    Attributes:
        name: the module's name pattern.
        layers: the layers that the module holds; None outside a stack.
        shape: the kernel's shape (I, O), without a layer axis.
        trained: number of trained parameters of the module and its adapter.
        what: "adapter", "trained in full" or "frozen".
        reason: the reason why the module has no adapter; else empty.
    """

    name: str
    layers: range | None
    shape: tuple[int, int]
    trained: int
    what: str
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class InjectReport:
    """Summary of an `inject` call.

    Attributes:
        rows: one row per module or run of layers.
        adapter_parameters: number of the adapters' trained parameters.
        head_parameters: number of parameters trained in full.
        total_parameters: number of all parameters of the model, with the adapters' trained ones.
        pretrained_parameters: number of the model's parameters before the call.
    """

    rows: tuple[Row, ...]
    adapter_parameters: int
    head_parameters: int
    total_parameters: int
    pretrained_parameters: int

    @property
    def trained_parameters(self) -> int:
        """Number of parameters that are optimized."""
        return self.adapter_parameters + self.head_parameters

    @property
    def adapter_share(self) -> float:
        """Ratio of adapter parameters to those of the pretrained model, as papers count."""
        return self.adapter_parameters / self.pretrained_parameters


def count_parameters(model: nnx.Module, *kinds: nnx.filterlib.Filter) -> int:
    """Returns the number of parameters of these kinds."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, *kinds)))


def make_report(
    model: nnx.Module, chosen: list[tuple[ModuleRef[Adaptable], str, str, tuple]], pretrained: int
) -> InjectReport:
    """Makes the report.

    Args:
        model: the model with its adapters.
        chosen: the module, how it is trained, the reason and the kernel's shape, for each row.
        pretrained: number of the model's parameters before it had adapters.
    """
    rows = []
    for ref, what, reason, shape in chosen:
        rows.append(
            Row(
                name=ref.pattern,
                layers=ref.layers,
                shape=shape,
                trained=count_parameters(ref.module, (Factor, Head)) if what != "frozen" else 0,
                what=what,
                reason=reason,
            )
        )
    return InjectReport(
        tuple(rows),
        count_parameters(model, Factor),
        count_parameters(model, Head),
        count_parameters(model, nnx.Param),
        pretrained,
    )
