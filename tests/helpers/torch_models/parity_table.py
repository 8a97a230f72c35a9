"""The rows that docs/models.md has of a kind of models: families, largest differences, exports."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import transformers

from goat_jax.interop.hf_config import FORMS
from goat_jax.models.registry import ARCHITECTURES
from goat_jax.models.vision.families import FAMILIES as TOWERS

Case = TypeVar("Case")


def exports(name: str) -> str:
    """The ends of the classes of transformers that a family's merged models and adapters load in.

    >>> exports("gemma2")
    'CausalLM, SequenceClassification, TokenClassification'
    """
    architecture = ARCHITECTURES[name]
    heads = {"tower" if name in TOWERS and not TOWERS[name].classifier else head: None
             for head in architecture.heads}  # fmt: skip
    endings = [FORMS[architecture.kind, head].ending for head in heads]
    classes = {ending: architecture.family.class_with(ending) for ending in endings}
    found = [ending for ending, name in classes.items() if name is not None]
    assert all(hasattr(transformers, classes[ending] or "") for ending in found)
    return ", ".join(ending.removeprefix("For") for ending in found)


def print_table(
    cases: Iterable[Case],
    family_of: Callable[[Case], str],
    difference: Callable[[Case, Path], float],
) -> None:
    """Prints model_type, number of variants, largest difference and exports of every family.

    Args:
        cases: the variants.
        family_of: function from a variant to its model_type.
        difference: function from a variant and an empty folder to its largest difference.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    errors: dict[str, list[float]] = {}
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            errors.setdefault(family_of(case), []).append(difference(case, Path(folder)))
    for name, differences in sorted(errors.items()):
        print(f"| `{name}` | ... | {len(differences)} | {max(differences):.1e} | {exports(name)} |")
