"""The list of deliberate faults stays true: every entry applies, and its tests are in CI's tier."""

import ast
import builtins
import keyword
import re
from functools import cache

import pytest

from mutant_list import ROOT, TIER, read_mutants

MUTANTS = read_mutants()
NIGHTLY = "pytest.mark.nightly"


@cache
def ci_tests_of(file):
    """The test functions of a file that are not as a whole left to the night."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    marks = [n.value for n in tree.body if isinstance(n, ast.Assign) and "pytestmark" in names(n)]
    if any(NIGHTLY in ast.unparse(mark) for mark in marks):
        return set()
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {
        function.name
        for function in functions
        if NIGHTLY not in map(ast.unparse, function.decorator_list)
    }


def words(text):
    return set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", text))


def names(assignment):
    return [ast.unparse(target) for target in assignment.targets]


@pytest.mark.parametrize("name", MUTANTS)
def test_an_entry_applies_and_its_tests_are_in_cis_tier(name):
    mutant = MUTANTS[name]
    ast.parse(mutant.applied(), mutant.file)
    strange = words(mutant.new) - words((ROOT / mutant.file).read_text(encoding="utf-8"))
    assert strange <= {*keyword.kwlist, *dir(builtins)}, "a NameError would be caught by any test"
    assert mutant.effect.endswith(".") and "\n" not in mutant.effect
    assert mutant.tests
    for test in mutant.tests:
        file, _, case = test.partition("::")
        assert ci_tests_of(file), f"{file} has no test in CI's tier"
        if case:
            assert case.partition("[")[0] in ci_tests_of(file), f"{test} is none of CI's tier"


def test_the_tier_is_that_of_ci():
    assert f"-m '{TIER}'" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
