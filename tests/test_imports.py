"""The floors of the package: a module imports its own room and lower floors, nothing else.

A room is a folder or a module right under ``goat_jax/``. A failure prints the rule that is broken.
"""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "goat_jax"

FLOORS = (
    ("typing", "errors"),
    ("core", "extras", "files", "text_tables", "validation"),
    ("hardware", "plots", "pretrained", "registry", "torch"),
    ("data", "optim"),
    ("adapters",),
    ("nn",),
    ("injection", "models", "sharding"),
    ("config", "integrations"),
    ("training",),
    ("bench", "evaluation", "interop", "planning"),
    ("analysis", "inference", "parity"),
    ("cli",),
)
"""The floors from the ground up. Rooms of one floor do not see each other."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FOR_TESTS = "testing"
FACADE = "__init__"
PROGRAM = "__main__"
ONLY = {
    "core": {"jax", "numpy"},
    "errors": set(),
    "extras": set(),
    "files": set(),
    "torch": {"torch", "peft"},
    "typing": {"jax"},
}
"""Packages that these rooms may import besides the standard library."""
NEVER = {"torch", "peft", "tensorflow", "pickle"}
EXCEPT = {"torch": {"torch", "peft"}}
"""Room -> what it alone may import of these."""


def imports_of(source):
    """(line, dotted name) of everything imported anywhere in a module, names of ``from`` too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def broken_rules(room, source):
    """One line for every import that a module of this room must not have."""
    found = []
    if room not in FLOOR_OF and room not in (FOR_TESTS, FACADE, PROGRAM):
        return [f"room {room!r} has no floor: give it one in FLOORS"]
    for line, name in imports_of(source):
        root, _, rest = name.partition(".")
        rule = (
            inner_rule(room, rest.split(".")[0]) if root == "goat_jax" else outer_rule(room, root)
        )
        if rule:
            found.append(f"line {line}: {name}: {rule}")
    return found


def inner_rule(room, other):
    if other == FOR_TESTS:
        return "testing is imported by tests only"
    if room in (FOR_TESTS, FACADE, PROGRAM) or other in (room, "__version__"):
        return None
    if other not in FLOOR_OF:
        return f"{other!r} is not a room of the package"
    mine, theirs = FLOOR_OF[room], FLOOR_OF[other]
    if theirs == mine:
        return f"{room} and {other} are on one floor and do not see each other"
    return f"{room} (floor {mine}) is below {other} (floor {theirs})" if theirs > mine else None


def outer_rule(room, root):
    if not root:
        return "imports are absolute"
    if root in NEVER - EXCEPT.get(room, set()):
        return f"{root} is not used by the library"
    if room in ONLY and root not in ONLY[room] and root not in sys.stdlib_module_names:
        return f"{room} imports only {', '.join(sorted(ONLY[room])) or 'the standard library'}"
    return None


MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def room_of(module):
    return module.removesuffix(".py").split("/")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    source = (PACKAGE / module).read_text(encoding="utf-8")
    assert not broken_rules(room_of(module), source)


def test_all_modules_are_seen():
    seen = {"core/svd.py", "injection/inject.py", "adapters/__init__.py", "__init__.py"}
    assert seen <= set(MODULES)
    assert {room_of(module) for module in MODULES} >= {"core", "data", "models", "training", FACADE}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("evaluation/sandbox/")])
def test_the_sandbox_needs_the_standard_library_alone(module):
    """It runs in an interpreter that sees nothing else."""
    for _, name in imports_of((PACKAGE / module).read_text(encoding="utf-8")):
        ours = name.startswith(("goat_jax.evaluation.sandbox", "goat_jax.errors"))
        assert ours or name.partition(".")[0] in sys.stdlib_module_names, name


@pytest.mark.parametrize(
    ("room", "source", "rule"),
    [
        ("core", "from goat_jax.adapters.spec import AdapterSpec", "core (floor 1) is below"),
        ("data", "import goat_jax.models.encoder.model", "data (floor 3) is below models"),
        ("data", "from goat_jax import models", "data (floor 3) is below models"),
        ("core", "from goat_jax.files import read_json", "core and files are on one floor"),
        (
            "nn",
            "def f():\n    from goat_jax.injection.inject import inject",
            "nn (floor 5) is below",
        ),
        ("bench", "from goat_jax.cli.main import main", "bench (floor 9) is below cli"),
        ("training", "from goat_jax.testing import TinyModel", "imported by tests only"),
        ("testing", "import torch", "torch is not used by the library"),
        ("core", "import flax", "core imports only jax, numpy"),
        ("core", "import optax.losses", "core imports only jax, numpy"),
        ("errors", "import jax", "errors imports only the standard library"),
        ("core", "from . import svd", "imports are absolute"),
        ("core", "from ..adapters import spec", "imports are absolute"),
        ("core", "from goat_jax import AdapterSpec", "is not a room of the package"),
        ("misc", "import jax", "room 'misc' has no floor"),
    ],
)
def test_the_checker_sees_a_bad_import(room, source, rule):
    found = broken_rules(room, source)
    assert len(found) == 1 and rule in found[0], found


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("core", "import jax.numpy as jnp\nimport numpy as np\nimport functools"),
        ("core", "from goat_jax.core.svd import Svd\nfrom goat_jax.errors import UserError"),
        ("cli", "from goat_jax.training.trainer import fit\nimport rich"),
        ("cli", "from goat_jax import __version__"),
        (
            "injection",
            "from goat_jax.nn.named_modules import find_modules\nfrom goat_jax import nn",
        ),
        ("__init__", "from goat_jax.injection.inject import inject"),
        ("testing", "from goat_jax.nn.stack import Stack"),
    ],
)
def test_the_checker_lets_good_imports_pass(room, source):
    assert broken_rules(room, source) == []


def forbidden_names(source):
    """Names that the library must not use: the environment, and promises it does not keep."""
    names = {"environ", "getenv", "NotImplementedError"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in names:
                yield f"line {node.lineno}: {name}"


MAY_LOOK = ("bench/accelerator/suite.py", "cli/main.py", "files.py")
"""At the environment: the suite that starts processes, the command line, and the rule for cache
folders."""


@pytest.mark.parametrize("module", [m for m in MODULES if m not in MAY_LOOK])
def test_no_environment_variables_and_nothing_unimplemented(module):
    assert not list(forbidden_names((PACKAGE / module).read_text(encoding="utf-8")))


def test_forbidden_names_are_seen():
    source = "import os\nos.environ['A']\nos.getenv('B')\nraise NotImplementedError\nenv = os.name"
    expected = {"line 2: environ", "line 3: getenv", "line 4: NotImplementedError"}
    assert set(forbidden_names(source)) == expected
