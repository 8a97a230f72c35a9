"""Every program in ``train/`` ends a user's error in one line, with exit code 2."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from goat_jax.adapters.lorahub import search
from goat_jax.cli.entry import in_one_line
from goat_jax.errors import RunFailed, UserError
from programs import FOLDER, load_program

DEMO = str(FOLDER.parent / "configs" / "demo.py")


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        ("lorahub", ["nosuch.py", "a", "b"], "config file nosuch.py does not exist"),
        ("lorahub", [f"{DEMO}:nosuch=1", "a", "b"], "no option 'nosuch'"),
        ("lorahub", [DEMO, "a"], "1 runs are given: LoRAHub combines two or more"),
        ("lorahub", [DEMO, "a", "b"], "a is not a run folder"),
        ("lorahub", [DEMO, "a", "b", "--rows", "0"], "--rows 0 is not valid"),
        ("lorahub", [DEMO, "a", "b", "--budget", "-1"], "--budget -1 is not valid"),
        ("lorahub", [DEMO, "a", "b", "--adapter.method", "gaot"], "did you mean 'goat'"),
        ("paper", ["draw", "nosuch"], "no run in nosuch"),
        ("paper", ["figure4", "--options", "nosuch=1"], "no option 'nosuch'"),
        ("paper", ["table4", "--options", "nosuch=1"], "no option 'nosuch'"),
        ("paper", ["table4", "--methods", "gaot"], "did you mean 'goat'"),
        ("paper", ["table1", "--tasks", "nosuch"], "nosuch"),
        ("paper", ["table1", "--seeds", "0", "0"], "0 is given twice"),
        ("paper", ["table3", "--judge-model", "x"], "--judge-model needs a judge"),
        ("paper", ["table2", "--tasks", "math", "--options", "nosuch=1"], "no option 'nosuch'"),
        ("paper", ["table9"], "invalid choice"),
        ("peft_comparison", ["--methods", "gaot"], "did you mean 'goat'"),
        ("peft_comparison", ["--methods", "lora"], "has none of the files MetaMathQA-395K"),
        ("peft_comparison", ["--wiki", "nosuch.xlsx"], "nosuch.xlsx: unknown file type"),
        ("peft_comparison", ["--beams", "0"], "--beams 0 is not valid"),
        ("against_torch", ["--config", "nosuch.py", "--model", "x"], "nosuch.py does not exist"),
        ("against_torch", ["--config", DEMO, "--model", "x", "--turns", "0"], "--turns 0 is not"),
        ("generation_against_torch", ["--model", "nosuch"], "nosuch: neither a folder"),
        ("generation_against_torch", ["--rows", "0"], "--rows 0 is not valid"),
        ("svd_against_torch", ["--method", "gaot"], "did you mean 'goat'"),
        ("svd_against_torch", ["--model", "package:nosuch"], "no packaged model 'nosuch'"),
    ],
)
def test_a_users_error_is_one_line(program, words, message, capsys, tmp_path, monkeypatch):
    if "against_torch" in program:
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    assert load_program(program).main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and ": error: " in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_program_ends_with_the_exit_code():
    done = subprocess.run(
        [sys.executable, str(FOLDER / "lorahub.py"), "nosuch.py", "a", "b"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "lorahub: error: config file nosuch.py does not exist\n"


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("x"), 2), (RunFailed("x"), 1), (OSError(28, "x"), 1), (None, 7)]
)
def test_exit_codes(error, code, capsys):
    def run():
        if error is not None:
            raise error
        return 7

    assert in_one_line("this", run) == code
    assert capsys.readouterr().err.startswith("this: error: x") == (error is not None)


def test_a_search_passes_over_what_is_not_finite():
    def loss_fn(coefficients):
        return (
            np.nan if abs(coefficients).max() < 0.01 else float(((coefficients - 0.5) ** 2).sum())
        )

    best, value = search(loss_fn, 2, jax.random.key(0))
    assert value < 0.1 and np.isfinite(best).all()
