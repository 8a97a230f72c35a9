"""The list of deliberate faults, `tests/mutants/mutants.toml`: reads it, and applies an entry."""

import dataclasses
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LIST = ROOT / "tests" / "mutants" / "mutants.toml"
TIER = "not nightly"
"""The tests among which a fault has to be caught: those of `.ci/run`."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One deliberate fault of the library.

    Attributes:
        name: its name.
        file: the file that is changed, from the repository's root.
        old: text that the file contains exactly once.
        new: the text in its place.
        effect: what would go wrong for a user.
        tests: test ids or files, the cheapest that catch it.
    """

    name: str
    file: str
    old: str
    new: str
    effect: str
    tests: list[str]

    def applied(self, root: Path = ROOT) -> str:
        """Returns the file's text with the fault.

        Raises:
            ValueError: the old text is not there exactly once, or the new one does not differ.
        """
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text.count(self.old) != 1 or self.new == self.old:
            found = f"contains the old text {text.count(self.old)} times" if text else "is missing"
            raise ValueError(f"{self.name}: {self.file} {found}: correct the entry in {LIST.name}")
        return text.replace(self.old, self.new)


def read_mutants() -> dict[str, Mutant]:
    """Returns every entry of the list by its name."""
    entries = tomllib.loads(LIST.read_text(encoding="utf-8"))
    return {name: Mutant(name, **values) for name, values in entries.items()}
