"""The rows that docs/models.md has of a kind of models: families and their largest differences."""

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import transformers

Case = TypeVar("Case")


def print_table(
    cases: Iterable[Case],
    family_of: Callable[[Case], str],
    difference: Callable[[Case, Path], float],
) -> None:
    """Prints model_type, number of variants and largest difference of every family.

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
        print(f"| `{name}` | ... | {len(differences)} | {max(differences):.1e} |")
