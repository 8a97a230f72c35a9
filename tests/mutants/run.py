"""Applies each deliberate fault of mutants.toml to a copy of the tree and runs the tests for it.

Every fault has to be caught: at least one of its tests has to fail. Exit code 0 if all are, else 1.

    python tests/mutants/run.py                 all faults
    python tests/mutants/run.py NAME ...        some of them
    python tests/mutants/run.py --list          their names and effects
    python tests/mutants/run.py --any NAME ...  all of CI's tests in place of the named ones (long)
"""

import argparse
import compileall
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from py_compile import PycInvalidationMode

import pytest

from mutant_list import ROOT, TIER, Mutant, read_mutants

OPTIONS = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "--doctest-modules")
# Without the tests of this folder: with a fault applied, its entry no longer fits.
ALL_TESTS = ("tests", "goat_jax", "--ignore=tests/mutants")
PASSED, FAILED, BROKEN = 0, 1, 3
"""Exit codes of pytest; those above 1 mean that it could not run the tests."""


def import_large_packages() -> None:
    """Imports what most tests need; none of it looks at the tree."""
    os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="goat_jax_compiled_")
    )
    for name in ("jax", "flax.nnx", "optax", "orbax.checkpoint"):
        importlib.import_module(name)


def copy_tree(folder: Path) -> Path:
    """Copies the files that git tracks, or would, and links the development data beside them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    copy = folder / "repository"
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (folder / "shared").symlink_to(ROOT.parent / "shared")
    # Compiled files are else matched by size and second of change, which two faults may share.
    mode = PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(copy / "goat_jax", quiet=1, invalidation_mode=mode)
    return copy


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Runs tests of CI's tier in the copy, up to the first that fails: (exit code, output)."""
    log = copy.parent / "output.txt"
    child = os.fork()  # the large packages, imported once, take most of a start
    if child == 0:
        try:
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.chdir(copy)
            sys.path.insert(0, str(copy))
            os.environ["PYTHONPATH"] = str(copy)  # for the processes that tests start
            code = int(pytest.main([*OPTIONS, "-m", TIER, *tests]))
        except BaseException:
            traceback.print_exc()
            code = BROKEN
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, log.read_text(encoding="utf-8", errors="replace")


def verdict_on(mutant: Mutant, copy: Path, tests: Sequence[str]) -> str:
    """Applies a fault, runs the tests, takes the fault back and returns what came of it."""
    path = copy / mutant.file
    try:
        changed = mutant.applied(copy)
    except ValueError as error:
        return f"DOES NOT APPLY: {error}"
    sound = path.read_text(encoding="utf-8")
    path.write_text(changed, encoding="utf-8")
    try:
        code, output = run_tests(copy, tests)
    finally:
        path.write_text(sound, encoding="utf-8")
    if code == PASSED:
        return "NOT CAUGHT"
    if code != FAILED:
        return f"TESTS DO NOT RUN (exit code {code})\n{output[-2000:]}"
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return f"caught by {failed[0].split(' - ')[0].split(' ', 1)[1]}"


def check_sound(copy: Path, mutants: Sequence[Mutant]) -> None:
    """Exits unless the named tests pass without any fault."""
    code, output = run_tests(copy, sorted({test for mutant in mutants for test in mutant.tests}))
    if code != PASSED:
        sys.exit(f"{output}\nthe tests fail without any fault")


def arguments(known: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="the faults (default: all)")
    parser.add_argument("--list", action="store_true", help="print the faults and their effects")
    parser.add_argument("--any", action="store_true", help="run all of CI's tests for each fault")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no fault {unknown[0]!r}: --list prints their names")
    return options


def main() -> int:
    known = read_mutants()
    options = arguments(list(known))
    chosen = [known[name] for name in options.names or known]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name} ({mutant.file})\n    {mutant.effect}")
        return 0
    caught = 0
    import_large_packages()
    with tempfile.TemporaryDirectory(prefix="goat_jax_mutants_") as folder:
        copy = copy_tree(Path(folder))
        if not options.any:
            check_sound(copy, chosen)
        for mutant in chosen:
            start = time.perf_counter()
            verdict = verdict_on(mutant, copy, ALL_TESTS if options.any else mutant.tests)
            caught += verdict.startswith("caught")
            print(f"{mutant.name} ({time.perf_counter() - start:.0f} s): {verdict}", flush=True)
    print(f"{caught} of {len(chosen)} faults caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
