"""Terminal output of the import of transformers where torch is missing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import goat_jax

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"
REMARK = "PyTorch was not found"


def stderr_of(code):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code], capture_output=True, text=True, check=True
    )
    return done.stderr


@pytest.mark.slow
def test_nothing_is_said_and_the_remark_would_be():
    assert REMARK in stderr_of("import transformers")
    quiet = (
        "from goat_jax.pretrained.quiet_transformers import import_transformers\n"
        "t = import_transformers()\n"
    )
    assert stderr_of(quiet + "t.PreTrainedTokenizerFast") == ""


def imports(path):
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text if " transformers" in text else "")):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_no_other_module_imports_transformers():
    files = Path(goat_jax.__file__).parent.rglob("*.py")
    loud = [path for path in files if any(m.split(".")[0] == "transformers" for m in imports(path))]
    assert loud == []


@pytest.mark.slow
def test_errors_are_still_said():
    code = (
        "import logging; from goat_jax.pretrained.quiet_transformers import import_transformers\n"
        "import_transformers(); log = logging.getLogger('transformers')\n"
        "log.warning('a warning'); log.error('an error'); print(log.filters)"
    )
    assert stderr_of(code).removeprefix("[transformers] ") == "an error\n"
