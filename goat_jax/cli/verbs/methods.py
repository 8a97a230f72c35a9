"""``goat-jax methods``: lists the methods, or counts what each of them trains of a model."""

from __future__ import annotations

import dataclasses
import textwrap

from goat_jax.adapters.methods import METHODS
from goat_jax.adapters.protocols import Router
from goat_jax.adapters.spec import PARTS
from goat_jax.text_tables import render_table
from goat_jax.training.abstract_run import count
from goat_jax.validation.records import Dataclass, is_record


def methods(model: str | None = None) -> int:
    """Prints every method: source, equation, parts with their options, whether it merges, notes.

    Args:
        model: a model's name or folder; if given, prints instead how many of its parameters each
            method trains at its published sizes.

    Returns:
        The exit code.
    """
    if model is not None:
        print(share_table(model))
        return 0
    print(f"parts: {', '.join(PARTS)}\n")
    for name, method in METHODS.items():
        parts = [describe_part(getattr(method.spec, part)) for part in PARTS]
        print(f"{name}: {method.source}")
        print(f"  {method.equation}")
        print(textwrap.fill(", ".join(parts), 100, initial_indent="  ", subsequent_indent="  "))
        print(f"  {_merging(method.spec.router)}")
        if method.note:
            print(f"  note: {method.note}")
        print()
    return 0


def share_table(model: str) -> str:
    """Returns a table of the parameters that every method trains, at its published sizes.

    All linear layers of the model's blocks are adapted. The model's config suffices for the count.
    """
    rows = []
    for name, method in METHODS.items():
        counts = count(model, method.spec)
        sizes = [method.spec.total_rank, method.spec.num_experts]
        share = f"{counts.trained_parameters / counts.pretrained_parameters:.2%}"
        rows.append([name, *sizes, f"{counts.trained_parameters:,}", share])
    return render_table(["method", "total rank", "experts", "parameters", "of the model"], rows)


def _merging(router: Router) -> str:
    """Returns the line that says if a method with this router merges into one kernel.

    >>> from goat_jax.adapters.parts.routers import TopK
    >>> _merging(TopK())
    'does not merge: experts are weighted token by token'
    """
    if router.mergeable:
        return "merges into one kernel"
    return f"does not merge: experts are weighted {router.varies}"


def describe_part(part: Dataclass) -> str:
    """Returns a short description of a part: its class and its options.

    >>> from goat_jax.adapters.parts.scales import TheoreticalScale
    >>> describe_part(TheoreticalScale(eta=0.1))
    'TheoreticalScale(eta=0.1)'
    """
    options = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        shown = describe_part(value) if is_record(value) else value
        options.append(f"{field.name}={getattr(shown, '__name__', shown)}")
    name = type(part).__name__
    return f"{name}({', '.join(options)})" if options else name
