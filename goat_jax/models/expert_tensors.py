"""Tensors that hold a linear layer of all experts of a mixture, or several side by side.

They are split when a checkpoint is opened and joined when one is written, so that between the two
every expert's layer has its own name, as in checkpoints with a tensor per expert.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from goat_jax.pretrained.safetensors import Weights
from goat_jax.pretrained.weight_view import Place, view

BIAS = "_bias"
"""End of the name of the tensor that holds the biases."""


@dataclasses.dataclass(frozen=True)
class ExpertTensor:
    """A parameter of transformers' experts, which holds a layer of each of them.

    Attributes:
        name: the end of its name, such as "mlp.experts.down_proj".
        parts: the ends of its layers' names, with ``{}`` for the expert's number.
        inputs_first: whether its axes are (X, I, O), not (X, O, I).
        interleaved: whether the outputs of its layers alternate; else they are side by side.
        written: whether checkpoints have it, and not a tensor per layer and expert.
    """

    name: str
    parts: tuple[str, ...]
    inputs_first: bool = False
    interleaved: bool = False
    written: bool = False

    def layers(self, name: str) -> tuple[str, str] | None:
        """Returns (prefix, parameter) of the layers by the full name of a tensor; None for others.

        >>> ExpertTensor("a.up", ("a.{}.up",)).layers("b.a.up_bias")
        ('b.', 'bias')
        """
        for end, parameter in ((self.name, "weight"), (self.name + BIAS, "bias")):
            if name.endswith("." + end):
                return name.removesuffix(end), parameter
        return None

    def outputs(self, part: int, total: int) -> slice:
        """Returns the outputs of a layer among all outputs."""
        if self.interleaved:
            return slice(part, None, len(self.parts))
        size = total // len(self.parts)
        return slice(part * size, (part + 1) * size)

    def of_layer(self, name: str) -> tuple[str, int, int] | None:
        """Returns (full name, expert, part) by the full name of a layer; None for others.

        >>> ExpertTensor("a.all", ("a.{}.gate", "a.{}.up")).of_layer("b.a.3.up")
        ('b.a.all', 3, 1)
        """
        for part, pattern in enumerate(self.parts):
            start, end = pattern.split("{}")
            before, found, number = name.removesuffix(end).rpartition("." + start)
            if name.endswith(end) and found and number.isdigit():
                return f"{before}.{self.name}", int(number), part
        return None


def split_experts(weights: Weights, tensors: Sequence[ExpertTensor]) -> Weights:
    """Returns a checkpoint's tensors with those of all experts as one per layer and expert."""
    places = {}
    for name, entry in weights.entries.items():
        for each in tensors:
            found = each.layers(name)
            if found is None:
                continue
            prefix, parameter = found
            turned = parameter == "weight" and each.inputs_first
            total = entry.shape[-1] if turned or parameter == "bias" else entry.shape[-2]
            for part, pattern in enumerate(each.parts):
                rows = each.outputs(part, total)
                for expert in range(entry.shape[0]):
                    layer = f"{prefix}{pattern.format(expert)}.{parameter}"
                    places[layer] = Place(name, rows, expert, turned)
            break
        else:
            places[name] = Place(name)
    return view(weights, places) if len(places) != len(weights) else weights


def join_experts(
    tensors: Iterable[tuple[str, np.ndarray]], experts: int, stored: Sequence[ExpertTensor]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields tensors as checkpoints have them: layers are held back until a tensor is complete.

    Args:
        tensors: (name, tensor) with a tensor per layer and expert.
        experts: the number of experts.
        stored: the tensors of all experts; those that are not `written` stay in parts.
    """
    stored = [each for each in stored if each.written]
    held: dict[str, dict[tuple[int, int], np.ndarray]] = {}
    for name, tensor in tensors:
        module, _, parameter = name.rpartition(".")
        for each in stored:
            found = each.of_layer(module)
            if found is None:
                continue
            whole = found[0] + (BIAS if parameter == "bias" else "")
            own = held.setdefault(whole, {})
            own[found[1:]] = tensor
            if len(own) == experts * len(each.parts):
                yield whole, _joined(each, held.pop(whole), experts)
            break
        else:
            yield name, tensor
    assert not held, f"layers are missing of {list(held)}"


def _joined(
    each: ExpertTensor, layers: dict[tuple[int, int], np.ndarray], experts: int
) -> np.ndarray:
    parts = len(each.parts)
    first = layers[0, 0]
    whole = np.empty((experts, parts * first.shape[0], *first.shape[1:]), first.dtype)
    for (expert, part), layer in layers.items():
        whole[expert, each.outputs(part, whole.shape[1])] = layer
    return np.swapaxes(whole, 1, 2) if each.inputs_first and whole.ndim == 3 else whole
